"""Overrides of a recipe's keys, ``key.key=value``, from Python and from the command line alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.errors import RecipeError
from zoo.json_object import parse_json


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of ``data`` with ``key.key=value`` assignments applied.

    Raises:
        RecipeError: if an assignment is malformed or passes through something that is not an object.
    """
    result: dict[str, Any] = json.loads(json.dumps(data))
    for assignment in assignments:
        place, equals, text = assignment.partition("=")
        keys = place.split(".")
        if not equals or not all(keys):
            raise RecipeError(f"--set {assignment}: expected KEY.KEY=VALUE, such as train.num_epochs=5")
        try:
            value = parse_json(text)
        except ValueError:
            value = text
        node = result
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise RecipeError(f"--set {assignment}: '{key}' is not an object")
        node[keys[-1]] = value
    return result
