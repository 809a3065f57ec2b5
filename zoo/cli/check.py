"""``revgnn-zoo check``."""

from __future__ import annotations

import click

from zoo.cli.common import common_options, echo, example, set_option
from zoo.errors import NotFoundError, RecipeError
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import recipe_path

EXAMPLE = example("revgnn-zoo check rev_deep my_recipe.json")


@click.command("check", epilog=EXAMPLE)
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@set_option
@common_options
def command(*, recipes: tuple[str, ...], assignments: tuple[str, ...], quiet: bool) -> None:
    """Check recipes and report every fault with its place.

    RECIPE is a shipped name or a file.
    """
    faults = []
    for name in recipes:
        try:
            path = recipe_path(name)
            read_recipe(path, assignments)
        except (RecipeError, NotFoundError) as error:
            faults.append(error)
        else:
            if not quiet:
                echo(f"{path}: ok")
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise RecipeError("\n".join(str(fault) for fault in faults))
