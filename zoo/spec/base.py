"""The base of every spec; plain data checked against a spec, with one line for each fault."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from zoo.errors import RecipeError, nearest
from zoo.json_object import abbreviate

NAME_PATTERN = r"^[a-z0-9][a-z0-9_]{0,63}$"
DATA_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._/-]{0,99}$"
_IN_WORDS = {
    NAME_PATTERN: "1 to 64 lower-case letters, digits and underscores, the first no underscore",
    DATA_NAME_PATTERN: "1 to 100 letters, digits, spaces, points, slashes, hyphens and underscores",
}


# Of a file from anywhere, whose faults and keys could be without end.
_MAX_FAULTS = 50
_MAX_PLACE = 200


class Spec(BaseModel):
    """A frozen part of a recipe: exact types, no unknown keys, no NaN or infinity."""

    # Strict, so that "80" for 80 is an error; frozen, because nothing checks a spec again after it was read. Validators
    # are built when they are first used: that of a recipe includes those of its parts, which then need none.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


SpecT = typing.TypeVar("SpecT", bound=Spec)


def parse_spec(cls: type[SpecT], data: Mapping[str, Any], *, where: str, error: type[Exception] = RecipeError) -> SpecT:
    """Check the content of a JSON object against a spec class; ``where`` is its origin, as errors name it.

    Raises:
        error: with every fault, one a line, each with its place.
    """
    try:
        # JSON mode, so that a list may stand for a tuple while every other type stays exact. What JSON lacks, such as a
        # torch.device, is taken by its name.
        return cls.model_validate_json(json.dumps(data, default=str))
    except ValidationError as invalid:
        details = invalid.errors(include_url=False)
        if details[0]["type"] == "json_invalid":
            # Python's JSON accepts any depth, and halves of characters that no UTF-8 text can hold.
            texts = {key: json.dumps({key: data[key]}, ensure_ascii=False) for key in data}
            half = next(
                (f"{key!r} holds a lone surrogate" for key in data if re.search("[\ud800-\udfff]", texts[key])), ""
            )
            raise error(f"{where}: {half or 'nested too deeply'}") from None
        # A list of which an item is wrong counts as too short as well.
        inner = {detail["loc"][:-1] for detail in details if detail["loc"]}
        details = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in inner]
        faults = list(dict.fromkeys(_fault(cls, data, detail) for detail in details[:_MAX_FAULTS]))
        if len(details) > _MAX_FAULTS:
            faults.append(f"and {len(details) - _MAX_FAULTS:,} more faults")
        # A key may hold a line break, which must not look like the next fault.
        lines = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in fault) for fault in faults)
        raise error(*(f"{where}: {line}" for line in lines)) from None


def _fault(cls: type[Spec], data: Any, detail: ErrorDetails) -> str:
    """One line about one fault: its place, what is wrong, what would be right."""
    # pydantic's messages name Python types and tags of unions; a recipe's author thinks in JSON and keys.
    kind, context = detail["type"], detail.get("ctx", {})
    place, siblings = _locate(cls, data, detail["loc"], ends_in_key=kind in ("missing", "extra_forbidden"))
    place = place if len(place) <= _MAX_PLACE else f"{place[:_MAX_PLACE]}..."
    prefix = f"{place}: " if place else ""
    if kind == "extra_forbidden":
        hint = nearest(str(detail["loc"][-1]), siblings, f"known: {', '.join(siblings)}")
        return f"{prefix}unknown key; {hint}"
    if kind == "missing":
        return prefix + "missing"
    if kind in ("union_tag_invalid", "literal_error"):
        if kind == "union_tag_invalid":
            # It is reported at the object, but the key at fault is its type.
            prefix = f"{place}.type: " if place else "type: "
        given = context.get("tag", detail["input"])
        choices = re.findall(r"'([^']*)'", context.get("expected_tags", context.get("expected", "")))
        expected = f"expected one of {', '.join(choices) or context.get('expected')}, got {abbreviate(given)}"
        hint = nearest(str(given), choices)
        return prefix + expected + (f"; {hint}" if hint else "")
    if kind == "union_tag_not_found":
        return prefix + "missing key 'type'"
    if kind == "value_error":
        return prefix + str(context.get("error", detail["msg"]))
    if detail["input"] is None:
        return prefix + "null is not a value; leave the key out"
    wanted = {
        "int_type": "an integer",
        "int_from_float": "an integer",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "a string",
        "tuple_type": "a list",
        "model_type": "an object",
        "model_attributes_type": "an object",
    }
    if kind in wanted:
        return prefix + f"expected {wanted[kind]}, got {abbreviate(detail['input'])}"
    if kind == "too_short":
        least = context["min_length"]
        return prefix + f"expected at least {least} item{'' if least == 1 else 's'}, got {abbreviate(detail['input'])}"
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return prefix + f"expected {_IN_WORDS.get(pattern, f'text like {pattern}')}, got {abbreviate(detail['input'])}"
    message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return prefix + f"{message}, got {abbreviate(detail['input'])}"


def _locate(cls: type[Spec], data: Any, loc: tuple[int | str, ...], *, ends_in_key: bool) -> tuple[str, list[str]]:
    """Turn a pydantic location, which also names union tags, into a place in the file and the keys known there."""
    parts: list[str] = []
    node, known = data, cls
    for index, key in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(key, int):
            parts[-1] += f"[{key}]"
        elif isinstance(node, dict) and key not in node and not (last and (ends_in_key or key in known.model_fields)):
            continue  # the tag of a union, not a key that is missing or has its default
        else:
            parts.append(key)
        if last:
            break
        node = typing.cast("Any", node)[key] if isinstance(node, list | dict) else None
        known = _class_at(known, key, node) or known
    # The spec class that holds the last key knows what else could stand there, for "did you mean".
    siblings = [field.alias or name for name, field in known.model_fields.items()]
    return ".".join(parts), siblings


def _class_at(cls: type[Spec], key: int | str, value: Any) -> type[Spec] | None:
    """The spec class of ``value``, which stands under ``key`` in an object of class ``cls``."""
    if isinstance(key, int) or key not in cls.model_fields:
        return None
    tag = value.get("type") if isinstance(value, dict) else None
    candidates = list(_classes(cls.model_fields[key].annotation))
    for candidate in candidates:
        field = candidate.model_fields.get("type")
        if field is None or tag in typing.get_args(field.annotation):
            return candidate
    # With a wrong or missing tag any class of the union will do: its keys only serve as suggestions.
    return candidates[0] if candidates else None


def _classes(annotation: Any) -> typing.Iterator[type[Spec]]:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None and issubclass(annotation, Spec):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _classes(argument)
