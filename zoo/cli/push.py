"""``revgnn-zoo push``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from zoo.cli.common import echo, echo_json, json_option, run_or_bundle, zoo_command


@zoo_command(
    "push",
    "revgnn-zoo push runs/quickstart me/quickstart --dry-run",
    "revgnn-zoo push runs/quickstart me/quickstart --tag v1",
)
@click.argument("source", metavar="RUN_OR_BUNDLE")
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--license", help="License of the model, such as apache-2.0. [default: what README.md says]")
@click.option("--private", is_flag=True, help="A repository that has to be created is private; refuse a public one.")
@click.option("--tag", default="", help="Also set this tag. One that exists elsewhere is never moved.")
@click.option("--branch", default="main", show_default=True, help="Commit to this branch; created if it is not there.")
@click.option("--message", default="", help="Title of the commit.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--replace-card", is_flag=True, help="Render README.md anew even if somebody wrote its words.")
@click.option("--benchmark", default="", metavar="DATASET:TASK", help="Enter the test figure on this leaderboard.")
@click.option("--sign", metavar="KEY", help="Sign it with this private key, a PEM file; needs revgnn-zoo[sign].")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be sent; send nothing.")
@json_option
def command(*, source: str, repo_id: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Publish a bundle, or the bundle of a finished run, to the Hub in one commit.

    The right to write, the card, the weights and that they load again are checked before anything is sent. The host is
    HF_ENDPOINT, the token that of 'hf auth login' or HF_TOKEN.
    """
    from zoo.workflows.publish import push

    done = push(run_or_bundle(source), repo_id, quiet=quiet or as_json, **options)
    if as_json:
        facts = dataclasses.asdict(done)
        echo_json({"repository": facts.pop("repo_id"), **facts, "dry_run": options["dry_run"]})
    elif options["dry_run"]:
        create = "would create it; " if done.is_new else ""
        echo(f"{repo_id}: {create}would send {', '.join(done.changed) or 'nothing: it holds all of this already'}")
    elif not done.changed:
        echo(f"{repo_id}: unchanged at {done.commit}, nothing was sent" + (f"; tag {done.tag}" if done.tag else ""))
    elif done.commit is None:
        echo(f"pull request: {done.url}")
    else:
        echo(f"{done.url} at {done.commit}" + (f", tag {done.tag}" if done.tag else ""))
