"""Upgrade recipes as earlier versions wrote them, so that their files, runs and bundles can still be read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from zoo.errors import ZooWarning

# Former keys of "train" that do not influence a result, with their defaults, and the options that took their place.
_OPTIONS = {"capture": (False, "--capture"), "edge_precision": ("fp32", "--edge-precision fp16")}


def upgrade_recipe(data: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A copy of recipe data without the keys that have become options of a run.

    A run directory or a bundle spells out every default, so nearly every file of an earlier version holds these keys.

    Args:
        data: a recipe as JSON data, right or wrong; what is at fault is kept.
        where: its origin, as a warning names it.
    """
    train = data.get("train")
    if not isinstance(train, dict):
        return dict(data)
    for key, (default, option) in _OPTIONS.items():
        if train.get(key, default) != default:
            warnings.warn(f"{where}: train.{key} is not a key any more and is ignored; use {option}", ZooWarning, 2)
    return {**data, "train": {key: value for key, value in train.items() if key not in _OPTIONS}}
