"""``revgnn-zoo push`` and ``pull``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
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
def push_command(*, source: str, repo_id: str, as_json: bool, quiet: bool, **options: Any) -> None:
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


@zoo_command("pull", "revgnn-zoo pull org/revgnn-deep@v1", "revgnn-zoo pull org/revgnn-deep --to ./revgnn-deep")
@click.argument("reference", metavar="OWNER/NAME[@REVISION]")
@click.option("--to", "out", type=click.Path(path_type=Path), help="Copy the files to this folder.")
@click.option("--update", is_flag=True, help="With --to: replace the bundle that the folder holds.")
@click.option("--dry-run", is_flag=True, help="Say what would be downloaded, with sizes; download nothing.")
@click.option("--offline", is_flag=True, help="Use only what is in the cache, without network access.")
@json_option
def pull_command(
    *, reference: str, out: Path | None, update: bool, dry_run: bool, offline: bool, as_json: bool, quiet: bool
) -> None:
    """Fetch a model from the Hub, verify it and print its folder.

    The host is HF_ENDPOINT, the token that of 'hf auth login' or HF_TOKEN. The cache is in HF_HOME; 'hf cache ls' and
    'hf cache rm' look after it, and HF_HUB_OFFLINE=1 is --offline.
    """
    from zoo.hub.client import connect
    from zoo.hub.pull import pull_sizes
    from zoo.hub.reference import parse_reference
    from zoo.workflows.pull import copy_bundle, fetch

    if update and out is None:
        raise click.UsageError("--update goes with --to")
    if dry_run:
        commit, files = pull_sizes(connect(offline=offline), parse_reference(reference))
        if as_json:
            echo_json({"commit": commit, "num_bytes": files})
            return
        for name, num_bytes in files.items():
            echo(f"{num_bytes:>15,}  {name}")
        echo(f"{sum(files.values()):>15,}  bytes to download of {reference} at {commit}")
        return
    pulled = fetch(reference, offline=offline, quiet=quiet or as_json)
    folder = pulled.folder
    if out is not None:
        copy_bundle(pulled, out, update=update)
        folder = out
    if as_json:
        echo_json(
            {
                "folder": str(folder),
                "repository": pulled.reference.repo_id,
                "revision": pulled.reference.revision,
                "commit": pulled.commit,
                "sha256": pulled.config.weights.sha256,
                "is_stale": pulled.is_stale,
            }
        )
    else:
        echo(str(folder))
