"""``revgnn-zoo pull``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import echo, echo_json, json_option, zoo_command


@zoo_command("pull", "revgnn-zoo pull org/revgnn-deep@v1", "revgnn-zoo pull org/revgnn-deep --to ./revgnn-deep")
@click.argument("reference", metavar="OWNER/NAME[@REVISION]")
@click.option("--to", "out", type=click.Path(path_type=Path), help="Copy the files to this folder.")
@click.option("--update", is_flag=True, help="With --to: replace the bundle that the folder holds.")
@click.option("--dry-run", is_flag=True, help="Say what would be downloaded, with sizes; download nothing.")
@click.option("--offline", is_flag=True, help="Use only what is in the cache, without network access.")
@json_option
def command(
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
