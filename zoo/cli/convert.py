"""``revgnn-zoo convert``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import echo, echo_json, json_option, set_option, zoo_command


@zoo_command(
    "convert",
    "revgnn-zoo convert official.pth --recipe rev_deep --out ./rev_deep",
    "revgnn-zoo eval ./rev_deep --split test",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help="The recipe of the model in the checkpoint: a shipped name or a file.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder. [default: CHECKPOINT without .pth]")
@set_option
@json_option
def command(
    *, checkpoint: Path, recipe: str, out: Path | None, assignments: tuple[str, ...], as_json: bool, quiet: bool
) -> None:
    """Turn a .pth checkpoint of the authors' code (github.com/lightaime/deep_gcns_torch) into a bundle.

    Only tensors are read from it; a file that holds anything else is refused.
    """
    from zoo.spec.recipe import read_recipe

    spec = read_recipe(recipe, assignments)
    from zoo.workflows.convert import convert

    out = out or checkpoint.with_suffix("")
    config = convert(checkpoint, spec, out)
    if as_json:
        echo_json({"bundle": str(out), "sha256": config.weights.sha256, "shape": config.shape.model_dump()})
    else:
        echo(f"bundle: {out} ({config.weights.num_bytes:,} bytes of weights)")
