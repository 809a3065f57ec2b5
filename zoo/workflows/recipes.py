"""Recipes made from other recipes, and recipes that decide the same numbers; without torch, so faults show soon."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import RecipeError, RunError
from zoo.files import make_folder, write_json
from zoo.json_object import read_json_object
from zoo.spec.overrides import leaves, override, upgrade_recipe
from zoo.spec.recipe import Recipe, parse_recipe, read_recipe

# The keys of a recipe that decide the numbers of a run; name, summary and source do not.
_DECIDING = ("data", "model", "train", "eval", "test")


def new_recipe(source: Path, out: Path, assignments: Sequence[str] = ()) -> Recipe:
    """Copy a recipe to a file of another name, which becomes the recipe's, with changes ``key.key=value``.

    The copy repeats no defaults and has no ``source``: published figures belong to the published recipe.

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


def read_recipe_data(path: Path) -> dict[str, Any]:
    """The content of a recipe file in the present version, not yet checked."""
    return upgrade_recipe(read_json_object(path, error=RecipeError), where=str(path))


def recipe_on_data(path: Path, data_path: Path, assignments: Sequence[str]) -> Recipe:
    """A recipe, with its name, on the data of another: with its evaluation, test, loss and partition of training too.

    Its model, optimizer and epochs stay. ``assignments`` are overrides of the result, as ``key.key=value``.

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


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 over what decides a run's numbers; the name, the summary and the source do not.

    Defaults are left out: a key that a later version adds does not keep a run from being resumed.
    """
    deciding = recipe.model_dump(mode="json", include=set(_DECIDING), exclude_defaults=True)
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def is_longer(held: Recipe, recipe: Recipe) -> bool:
    """True if a recipe is the one that is held, but for more epochs."""
    num_epochs = recipe.train.num_epochs
    longer = held.model_copy(update={"train": held.train.model_copy(update={"num_epochs": num_epochs})})
    return num_epochs > held.train.num_epochs and recipe_digest(longer) == recipe_digest(recipe)


def check_same_recipe(path: Path, held: Recipe, recipe: Recipe) -> None:
    """Raise a RunError with the first places where the recipe of a run directory differs from the one asked for."""
    if recipe_digest(held) == recipe_digest(recipe):
        return
    before, after = dict(leaves(held.to_json())), dict(leaves(recipe.to_json()))
    places = [place for place in sorted(before | after) if place.split(".")[0] in _DECIDING]
    changes = [place for place in places if before.get(place) != after.get(place)]
    shown = "; ".join(f"{place}: {before.get(place)} there, {after.get(place)} here" for place in changes[:3])
    more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
    raise RunError(f"{path}: holds another run ({shown}{more}); choose another --out")
