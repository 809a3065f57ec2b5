"""Every option of a recipe is used by a shipped recipe, or stands in a list with the reason why it is there."""

import json
import typing
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from zoo.spec.base import Spec
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shipped import list_recipes, recipe_path

EXCEPTIONS = json.loads((Path(__file__).parent / "proof_of_use_exceptions.json").read_text(encoding="utf-8"))


def specs(annotation: Any) -> Iterator[type[Spec]]:
    """The spec classes that an annotation names, and those that they name in turn."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
        for field in annotation.model_fields.values():
            yield from specs(field.annotation)
    for argument in typing.get_args(annotation):
        yield from specs(argument)


def options() -> set[str]:
    """Every spec class, every key that may be left out, and every value of a choice."""
    found = set()
    for cls in specs(Recipe):
        found.add(cls.__name__)
        for key, field in cls.model_fields.items():
            if not field.is_required():
                found.add(f"{cls.__name__}.{key}")
            if typing.get_origin(field.annotation) is typing.Literal:
                found |= {f"{cls.__name__}.{key}={value}" for value in typing.get_args(field.annotation)}
    return found


def used(spec: Any) -> Iterator[str]:
    """What a recipe uses: the classes and the values of its choices, and the keys that differ from their defaults."""
    if isinstance(spec, tuple):
        for item in spec:
            yield from used(item)
    if not isinstance(spec, Spec):
        return
    name = type(spec).__name__
    yield name
    for key, field in type(spec).model_fields.items():
        value = getattr(spec, key)
        if value != field.default:
            yield f"{name}.{key}"
        yield f"{name}.{key}={value}"
        yield from used(value)


def test_every_option_is_used_by_a_recipe_or_listed_with_its_reason() -> None:
    in_use = {option for name in list_recipes() for option in used(read_recipe(recipe_path(name)))}
    unused = options() - in_use
    unlisted = [option for option in sorted(unused) if not any(fnmatchcase(option, place) for place in EXCEPTIONS)]
    assert unlisted == []
    stale = [place for place in EXCEPTIONS if not any(fnmatchcase(option, place) for option in unused)]
    assert stale == [], "exceptions that are in use now, or are no options any more"
    assert all(len(reason) > 10 for reason in EXCEPTIONS.values())
