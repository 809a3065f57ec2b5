"""A recipe put on the data of another one; without torch, so that faults are reported at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.spec.overrides import override
from zoo.spec.recipe import Recipe, parse_recipe, read_recipe, read_recipe_data


def recipe_on_data(path: Path, data_path: Path, assignments: Sequence[str]) -> Recipe:
    """A recipe whose data, and all that follows from them, are those of another recipe.

    Its model, optimizer and epochs stay. Data, evaluation, test, loss and the partition of training are the other's.

    Args:
        path: the recipe; its name stays.
        data_path: the recipe whose data are taken.
        assignments: overrides of the result, as ``key.key=value``.

    Raises:
        RecipeError: if one of the two is at fault, or the result.
    """
    recipe, other = read_recipe(path), read_recipe(data_path)
    data, others = (read_recipe_data(place) for place in (path, data_path))
    merged = _with(data, others, ("data", "eval", "test"))
    merged["train"] = _with(data["train"], others["train"], ("loss", "partition"))
    # Published figures hold for the data set of the source, so they are dropped.
    merged.pop("source", None)
    merged["summary"] = f"{recipe.name} on the data of {other.name}"
    return parse_recipe(override(merged, assignments), where=f"{path} on the data of {other.name}")


def _with(target: Mapping[str, Any], source: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """``target`` with some keys as they are in ``source``; a key that is not there is left out."""
    kept = {key: value for key, value in target.items() if key not in keys}
    return kept | {key: source[key] for key in keys if key in source}
