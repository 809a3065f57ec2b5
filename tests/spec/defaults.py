"""Keys of a recipe that only repeat a default."""

import json
from collections.abc import Iterator
from typing import Any

from zoo.errors import RecipeError
from zoo.spec.recipe import Recipe, parse_recipe


def repeated_defaults(data: dict[str, Any]) -> list[str]:
    """The places of keys that could be left out without changing the recipe, outermost first."""
    whole = parse_recipe(data, where="recipe")
    places = []
    for place in _places(data):
        if not any(place[: len(outer)] == outer for outer in places) and _parsed(_without(data, place)) == whole:
            places.append(place)
    return [".".join(place) for place in places]


def without_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """A copy of recipe data without the keys that only repeat a default."""
    for place in repeated_defaults(data):
        data = _without(data, tuple(place.split(".")))
    return data


def _places(data: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in data.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _places(value, (*above, key))


def _without(data: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(data))
    node = copy
    for key in place[:-1]:
        node = node[key]
    del node[place[-1]]
    return copy


def _parsed(data: dict[str, Any]) -> Recipe | None:
    try:
        return parse_recipe(data, where="recipe")
    except RecipeError:
        return None
