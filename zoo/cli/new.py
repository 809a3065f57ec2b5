"""``revgnn-zoo new``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import echo, set_option, zoo_command
from zoo.spec.shipped import recipe_path


@zoo_command("new", "revgnn-zoo new my.json --from small_rev --set model.num_layers=64", "revgnn-zoo train my.json")
@click.argument("out", metavar="FILE.json", type=click.Path(path_type=Path))
@click.option("--from", "source", metavar="RECIPE", required=True, help="The recipe to copy: a shipped name or a file.")
@set_option
def command(*, out: Path, source: str, assignments: tuple[str, ...], quiet: bool) -> None:
    """Copy a recipe under your own name for it, to be edited.

    The name of the file becomes the name of the recipe. A file that is there already is never overwritten.
    """
    from zoo.workflows.recipes import new_recipe

    recipe = new_recipe(recipe_path(source), out, assignments)
    if not quiet:
        echo(f"{out}: {recipe.name}, a copy of {source}; train it with: revgnn-zoo train {out}")
