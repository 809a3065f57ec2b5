"""Start your own recipe from another one; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.errors import RecipeError
from zoo.files import make_folder, write_json
from zoo.spec.overrides import override
from zoo.spec.recipe import Recipe, parse_recipe, read_recipe, read_recipe_data


def new_recipe(source: Path, out: Path, assignments: Sequence[str] = ()) -> Recipe:
    """Copy a recipe to a file of another name.

    The copy repeats no defaults, as the source does not. It has no ``source``: published figures belong to the
    published recipe.

    Args:
        source: the recipe file to copy.
        out: the new file; its stem becomes the recipe's name.
        assignments: ``key.key=value`` changes.

    Returns:
        The new recipe.

    Raises:
        RecipeError: if ``out`` is there already or is no name of a recipe, or the source or a change is at fault.
    """
    if out.suffix != ".json":
        raise RecipeError(f"{out}: the name of a recipe file ends in .json, such as {out.with_suffix('.json').name}")
    if out.exists():
        raise RecipeError(f"{out}: already there; choose another name")
    read_recipe(source)
    data = override(read_recipe_data(source), assignments) | {"name": out.stem}
    data = {key: value for key, value in data.items() if key not in ("$schema", "source")}
    recipe = parse_recipe(data, where=str(out))
    make_folder(out.parent, RecipeError)
    write_json(out, data, RecipeError)
    return recipe
