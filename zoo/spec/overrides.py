"""Recipe data before they are checked: older versions brought to the present one, and overrides ``key.key=value``."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import RecipeError, ZooWarning
from zoo.json_object import parse_json

SCHEMA_VERSION = 2
# Former keys of "train" that influence no result, with their defaults, and the options that took their place.
_OPTIONS = {"capture": (False, "--capture"), "edge_precision": ("fp32", "--edge-precision fp16")}
_PROTOCOL = re.compile(r"(?:(whole graph)|(single view)|(\d+) views? of (\d+) parts)(?:, (\d+) runs)?")
# Keys that describe one data set and its labels; they are removed when another data set is chosen.
_OF_THE_DATA = (
    *(("data", key) for key in ("generated", "name", "node_features", "split", "undirected")),
    ("train", "loss"),
    ("eval", "metric"),
)


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


def override(data: Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """A copy of JSON data with keys replaced: by values of dotted keys, None to leave one out, or ``key.key=value``.

    If ``data.dataset`` is replaced, node features, split, loss and metric of the former data set are left out first.

    Raises:
        RecipeError: if an assignment is malformed or passes through something that is not an object.
    """
    # A round trip through JSON: a deep copy of plain dicts and lists, whatever mapping came in.
    result: dict[str, Any] = json.loads(json.dumps(data))
    overrides = [overrides] if isinstance(overrides, str) else overrides
    pairs = list(overrides.items()) if isinstance(overrides, Mapping) else [_assignment(text) for text in overrides]
    if any(place == "data.dataset" for place, _ in pairs):
        for part, key in _OF_THE_DATA:
            if isinstance(result.get(part), dict):
                result[part].pop(key, None)
    for place, value in pairs:
        *parents, last = place.split(".")
        node = result
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise RecipeError(f"--set {place}: '{key}' is not an object")
        node[last] = value
        # No value of a recipe is null; from Python it leaves a key out, while on the command line it is a fault.
        if value is None and isinstance(overrides, Mapping):
            del node[last]
    return result


def _assignment(text: str) -> tuple[str, Any]:
    place, equals, value = text.partition("=")
    if not equals or not all(place.split(".")):
        raise RecipeError(f"--set {text}: expected KEY.KEY=VALUE, such as train.num_epochs=5")
    try:
        return place, parse_json(value)
    except RecursionError:
        raise RecipeError(f"--set {place}: nested too deeply") from None
    except ValueError:
        # Not JSON, so it is a string: names need no quotes on a command line.
        return place, value


def faults_of_overrides(
    faults: Sequence[str], assignments: Sequence[str], data: Mapping[str, Any], *, where: str
) -> list[str]:
    """Put --set in place of the file into each fault "WHERE: PLACE: FAULT" that an assignment brought in.

    The recipe data before the assignments tell the whole place of a key of which only the name was given.
    """
    places = tuple(assignment.partition("=")[0] for assignment in assignments)
    places_of_data = [place for place, _ in leaves(data)]
    lines = []
    for line in faults:
        place, _, fault = line.removeprefix(f"{where}: ").partition(": ")
        # An item of a list that an override assigned, such as data.node_features[0], is a part of it like a key.
        if any(place == assigned or place.startswith((f"{assigned}.", f"{assigned}[")) for assigned in places):
            # For a bare name, such as lr, offer the whole places of the keys with that name.
            near = [leaf for leaf in places_of_data if leaf.rpartition(".")[2] == place]
            if near and fault.startswith("unknown key"):
                fault = f"unknown key; did you mean {' or '.join(near)}?"
            line = f"--set: {place}: {fault}"
        lines.append(line)
    return lines


def changes_in_words(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The differences between two recipes in the parts that summary and source describe: the data and the model."""
    old, new = dict(_described(before)), dict(_described(after))
    changes = [f"{place}={value}" for place, value in new.items() if old.get(place) != value]
    return changes + [f"{place} left out" for place in old if place not in new]


def _described(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for place, value in leaves({key: recipe.get(key) for key in ("data", "model")}):
        # The folder of a file differs from machine to machine and may hold private names.
        yield place, Path(value).name if place == "data.path" else value


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Values of nested objects by dotted place, as text."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
