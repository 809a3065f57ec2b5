"""``revgnn-zoo export``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import common_options, echo, echo_json, example, json_option, run_or_bundle

EXAMPLE = example("revgnn-zoo export runs/quickstart")


@click.command("export", epilog=EXAMPLE)
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder. [default: RUN/bundle]")
@json_option
@common_options
def command(*, run: str, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Write the best weights of a finished run as a bundle: config.json, model.safetensors, README.md."""
    from zoo.workflows.export import export

    path, config = export(run_or_bundle(run), out)
    if as_json:
        echo_json({"bundle": str(path), "sha256": config.weights.sha256, "num_bytes": config.weights.num_bytes})
    else:
        echo(f"bundle: {path} ({config.weights.num_bytes:,} bytes of weights, SHA-256 {config.weights.sha256[:16]}...)")
