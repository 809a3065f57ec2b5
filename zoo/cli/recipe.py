"""``revgnn-zoo check`` and ``new``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import echo, echo_json, json_option, set_option, zoo_command
from zoo.errors import NotFoundError, RecipeError
from zoo.spec.shipped import recipe_path


@zoo_command("check", "revgnn-zoo check rev_deep my_recipe.json")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@set_option
@json_option
def check_command(*, recipes: tuple[str, ...], assignments: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Check recipes and report every fault with its place.

    RECIPE is a shipped name or a file.
    """
    from zoo.spec.recipe import read_recipe

    faults: dict[str, RecipeError | NotFoundError] = {}
    for name in recipes:
        try:
            path = recipe_path(name)
            read_recipe(path, assignments)
        except (RecipeError, NotFoundError) as error:
            faults[name] = error
        else:
            if not quiet and not as_json:
                echo(f"{path}: ok")
    if as_json:
        echo_json([{"recipe": n, "faults": faults[n].lines if n in faults else []} for n in recipes])
        raise click.exceptions.Exit(max((error.exit_code for error in faults.values()), default=0))
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        raise RecipeError(*(line for fault in faults.values() for line in fault.lines))


@zoo_command("new", "revgnn-zoo new my.json --from small_rev --set model.num_layers=64", "revgnn-zoo train my.json")
@click.argument("out", metavar="FILE.json", type=click.Path(path_type=Path))
@click.option("--from", "source", metavar="RECIPE", required=True, help="The recipe to copy: a shipped name or a file.")
@set_option
def new_command(*, out: Path, source: str, assignments: tuple[str, ...], quiet: bool) -> None:
    """Copy a recipe under your own name for it, to be edited.

    The name of the file becomes the name of the recipe. A file that is there already is never overwritten.
    """
    from zoo.workflows.recipes import new_recipe

    recipe = new_recipe(recipe_path(source), out, assignments)
    if not quiet:
        echo(f"{out}: {recipe.name}, a copy of {source}; train it with: revgnn-zoo train {out}")
