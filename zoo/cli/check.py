"""``revgnn-zoo check``."""

from __future__ import annotations

import click

from zoo.cli.common import echo, echo_json, json_option, set_option, zoo_command
from zoo.errors import NotFoundError, RecipeError
from zoo.spec.shipped import recipe_path


@zoo_command("check", "revgnn-zoo check rev_deep my_recipe.json")
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@set_option
@json_option
def command(*, recipes: tuple[str, ...], assignments: tuple[str, ...], as_json: bool, quiet: bool) -> None:
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
