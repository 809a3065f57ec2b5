"""Recipes of older versions, brought to the present one when they are read; what is no recipe stays as it is."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from zoo.errors import RecipeError, ZooWarning

SCHEMA_VERSION = 2
# Former keys of "train" that influence no result, with their defaults, and the options that took their place.
_OPTIONS = {"capture": (False, "--capture"), "edge_precision": ("fp32", "--edge-precision fp16")}
_PROTOCOL = re.compile(r"(?:(whole graph)|(single view)|(\d+) views? of (\d+) parts)(?:, (\d+) runs)?")


def upgrade_recipe(data: Mapping[str, Any], *, where: str, error: type[Exception] = RecipeError) -> dict[str, Any]:
    """A copy of recipe data in the present version.

    Raises:
        error: if a newer revgnn-zoo wrote it.
    """
    version = data.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise error(
            f"{where}: schema_version: {version} was written by a newer revgnn-zoo; this one reads {SCHEMA_VERSION}"
        )
    result: dict[str, Any] = json.loads(json.dumps(data))
    if type(version) is int and version == 1:
        _from_version_1(result, where)
        result["schema_version"] = 2
    return result


def _from_version_1(data: dict[str, Any], where: str) -> None:
    # Faults are not judged here: whatever is not as expected stays, for the check that follows.
    model, train, source = (_object(data.get(key)) for key in ("model", "train", "source"))
    channels, heads = model.get("hidden_channels"), model.get("num_heads", 1)
    if model.get("type") == "rev_gat" and type(channels) is int and type(heads) is int:
        # It was the width of a head.
        model["hidden_channels"] = heads * channels
    for key, (default, option) in _OPTIONS.items():
        if train.pop(key, default) != default:
            warnings.warn(f"{where}: train.{key} is not a key any more and is ignored; use {option}", ZooWarning, 2)
    reported = source.get("reported")
    for figure in reported if isinstance(reported, list) else ():
        if isinstance(figure, dict) and isinstance(figure.get("protocol"), str):
            figure.update(_protocol(figure.pop("protocol")))


def _protocol(text: str) -> dict[str, int]:
    """The numbers in a protocol that was written as prose; empty if it is none of the usual ones."""
    match = _PROTOCOL.fullmatch(text)
    if match is None:
        return {}
    whole, _, views, parts, runs = match.groups()
    numbers = {"num_views": views or 1, "num_parts": "1" if whole else parts, "num_runs": runs}
    return {key: int(number) for key, number in numbers.items() if number is not None}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
