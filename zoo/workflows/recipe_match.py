"""Recipes that decide the same numbers: which run may be continued by which recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import RunError
from zoo.spec.recipe import Recipe

_DECIDING = ("data", "model", "train", "eval", "test")


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
    """Make sure that a run directory is of the recipe that is asked for.

    Args:
        path: the run directory.
        held: its recipe.
        recipe: the one that is asked for.

    Raises:
        RunError: with the first places where they differ.
    """
    if recipe_digest(held) == recipe_digest(recipe):
        return
    before, after = _flat(held.to_json()), _flat(recipe.to_json())
    places = [place for place in sorted(before | after) if place.split(".")[0] in _DECIDING]
    changes = [place for place in places if before.get(place) != after.get(place)]
    shown = "; ".join(f"{place}: {before.get(place)} there, {after.get(place)} here" for place in changes[:3])
    more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
    raise RunError(f"{path}: holds another run ({shown}{more}); choose another --out")


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Leaves by dotted place, as JSON text."""
    result: dict[str, str] = {}
    for key, value in data.items():
        place = f"{prefix}{key}"
        result |= _flat(value, f"{place}.") if isinstance(value, dict) else {place: json.dumps(value)}
    return result
