"""The recipe: one JSON file that says everything about a model, its data, its training and its evaluation."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from typing_extensions import Self

from zoo.errors import RecipeError
from zoo.spec.base import Spec
from zoo.spec.model import Model
from zoo.spec.size import MAX_PARAMETERS, count_parameters
from zoo.spec.train import EvalSpec, MetricName, TestSpec, TrainSpec

SCHEMA_VERSION = 1
MAX_RECIPE_BYTES = 1 << 20
MAX_WIDTH = 1_000_000
MAX_EDGE_FEATURES = 65_536
_NAME = r"^[a-z0-9][a-z0-9_]{0,63}$"
_IN_WORDS = {_NAME: "1 to 64 lower-case letters, digits and underscores, the first no underscore"}


class GraphShape(Spec):
    """What a model must know of a graph: the sizes of its inputs and outputs.

    Attributes:
        num_node_features: columns of x.
        num_node_categories: how many of the last columns of x are a one-hot code of a category; 0 if none.
        num_edge_features: columns of edge_attr; 0 if the edges carry no features.
        num_tasks: outputs per node.
    """

    num_node_features: int = Field(ge=1, le=MAX_WIDTH)
    num_node_categories: int = Field(default=0, ge=0, le=MAX_WIDTH)
    num_edge_features: int = Field(default=0, ge=0, le=MAX_EDGE_FEATURES)
    num_tasks: int = Field(ge=1, le=MAX_WIDTH)

    @model_validator(mode="after")
    def _categories(self) -> Self:
        if self.num_node_categories >= self.num_node_features and self.num_node_categories:
            raise ValueError(
                f"num_node_categories ({self.num_node_categories}) must be less than "
                f"num_node_features ({self.num_node_features})"
            )
        return self


class ReportedResult(Spec):
    """A figure somebody published: what was measured, how, and where it is written."""

    split: Literal["train", "valid", "test"]
    metric: MetricName
    mean: float
    std: Annotated[float, Field(ge=0)] | None = None
    protocol: str
    source: str


class SourceSpec(Spec):
    """Where the model comes from."""

    paper: str
    code: str = ""
    num_parameters: int = Field(default=0, ge=0, description="published parameter count; 0: none was published")
    reported: tuple[ReportedResult, ...] = ()


DatasetName = Literal[
    "ogbn-proteins",
    "ogbn-arxiv",
    "ogbn-products",
    "digits",
    "minesweeper",
    "roman-empire",
    "amazon-ratings",
    "tolokers",
    "questions",
    "cora",
    "citeseer",
    "pubmed",
    "file",
]
NodeFeature = Literal["node", "edge_sum", "species_one_hot", "degree", "laplacian", "constant"]


class DataSpec(Spec):
    """The graph and the node features the model sees."""

    dataset: DatasetName
    path: str = Field(default="", description="dataset 'file' only: a .npz file or a folder of .npy files")
    split: int = Field(default=0, ge=0, description="which of the data set's splits")
    node_features: tuple[NodeFeature, ...] = Field(default=("node",), min_length=1)
    undirected: bool = Field(default=False, description="add the reverse of every edge of a directed graph")
    self_loops: bool = Field(default=False, description="every node gets exactly one edge from itself to itself")

    @model_validator(mode="after")
    def _path(self) -> Self:
        if (self.dataset == "file") != bool(self.path):
            raise ValueError("path goes with dataset 'file', and only with it")
        return self


class Recipe(Spec):
    """Everything about one model, as written in ``recipes/NAME.json``."""

    schema_: str = Field(default="", alias="$schema", description="for editors; not read")
    schema_version: Literal[1]
    name: str = Field(pattern=_NAME)
    summary: str = Field(min_length=1, max_length=300)
    source: SourceSpec | None = None
    data: DataSpec
    model: Model
    train: TrainSpec
    eval: EvalSpec
    test: TestSpec = TestSpec()

    @model_validator(mode="after")
    def _last_columns(self) -> Self:
        if self.train.label_reuse is not None and "species_one_hot" in self.data.node_features:
            raise ValueError("train.label_reuse and the node feature 'species_one_hot' both want the last columns of x")
        return self

    @model_validator(mode="after")
    def _size(self) -> Self:
        count = count_parameters(self.model, GraphShape(num_node_features=1, num_tasks=1))
        if count > MAX_PARAMETERS:
            raise ValueError(
                f"the model would have {count:,} parameters ({count * 4 / 1e9:,.0f} GB of weights); "
                f"at most {MAX_PARAMETERS:,} are built: lower model.num_layers or model.hidden_channels"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON data with every default spelled out."""
        return self.model_dump(mode="json", exclude={"schema_"}, exclude_none=True)


def read_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe file.

    Args:
        path: the JSON file; its stem must be the recipe's name.
        overrides: ``key.key=value`` assignments, checked like the file. A value is JSON, else a string.

    Raises:
        RecipeError: with every fault, one a line, each with its place.
    """
    path = Path(path)
    data = read_json_object(path)
    recipe = parse_recipe(data, where=str(path), overrides=overrides)
    if recipe.name != path.stem:
        raise RecipeError(f"{path}: name: expected {path.stem!r}, the name of the file, got {recipe.name!r}")
    return recipe


def parse_recipe(data: Mapping[str, Any], *, where: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check recipe data; ``where`` names its origin in errors.

    Raises:
        RecipeError: with every fault, one a line, each with its place.
    """
    version = data.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise RecipeError(
            f"{where}: schema_version: {version} was written by a newer revgnn-zoo; this one reads {SCHEMA_VERSION}"
        )
    return parse_spec(Recipe, override(data, overrides), where=where)


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "revgnn-zoo recipe", **schema}


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
            value = _loads(text)
        except ValueError:
            value = text
        node = result
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise RecipeError(f"--set {assignment}: '{key}' is not an object")
        node[keys[-1]] = value
    return result


def read_json_object(path: Path, *, max_bytes: int = MAX_RECIPE_BYTES) -> dict[str, Any]:
    """Read a JSON file that must hold one object: no duplicate keys, no NaN, bounded size and depth.

    Raises:
        RecipeError: with the place of the fault.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_json_object(raw, where=str(path), max_bytes=max_bytes)


def parse_json_object(raw: bytes, *, where: str, max_bytes: int = MAX_RECIPE_BYTES) -> dict[str, Any]:
    """Parse JSON bytes that must hold one object; ``where`` names their origin in errors.

    Raises:
        RecipeError: with the place of the fault.
    """
    if len(raw) > max_bytes:
        raise RecipeError(f"{where}: larger than {max_bytes:,} bytes")
    try:
        data = _loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise RecipeError(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise RecipeError(f"{where}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise RecipeError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: expected an object, got {_show(data)}")
    return data


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} stands twice in one object")
        result[key] = value
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


SpecT = typing.TypeVar("SpecT", bound=Spec)


def parse_spec(cls: type[SpecT], data: Mapping[str, Any], *, where: str) -> SpecT:
    """Check plain JSON data against a spec class.

    Raises:
        RecipeError: with every fault, one a line, each with its place.
    """
    try:
        # JSON mode, so that a list may stand for a tuple while every other type stays exact.
        return cls.model_validate_json(json.dumps(data))
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A list of which an item is wrong counts as too short as well.
        inner = {detail["loc"][:-1] for detail in details if detail["loc"]}
        details = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in inner]
        places = {_place(cls, data, detail)[0] for detail in details}
        faults = [*(_fault(cls, data, detail) for detail in details), *_rule_faults(cls, data, places)]
        raise RecipeError("\n".join(f"{where}: {fault}" for fault in dict.fromkeys(faults))) from None


def _rule_faults(cls: type[Spec], data: Any, places: Collection[str], place: str = "") -> typing.Iterator[str]:
    """Faults against rules that join several keys, in objects where some other key is at fault.

    Pydantic judges such a rule only where every key is right by itself. Here a rule sees the keys that are.

    Args:
        cls: what ``data`` should be.
        data: the object that stands at ``place``.
        places: of the faults that pydantic found.
        place: of ``data`` in the file.
    """
    prefix = f"{place}." if place else ""
    if not isinstance(data, dict) or place in places or not any(fault.startswith(prefix) for fault in places):
        return
    right: dict[str, Any] = {}
    for key, field in cls.model_fields.items():
        here = prefix + key
        child = _class_at(cls, key, data.get(key))
        if any(fault == here or fault.startswith((f"{here}.", f"{here}[")) for fault in places):
            if child is not None:
                yield from _rule_faults(child, data.get(key), places, here)
        elif key not in data:
            right[key] = field.get_default(call_default_factory=True)
        elif child is not None and isinstance(data[key], dict):
            right[key] = child.model_validate_json(json.dumps(data[key]))
        else:
            right[key] = data[key]
    for rule in cls.__pydantic_decorators__.model_validators:
        try:
            getattr(cls, rule)(SimpleNamespace(**right))
        except AttributeError:
            continue  # it needs a key that is at fault
        except ValueError as error:
            yield f"{place}: {error}" if place else str(error)


def _place(cls: type[Spec], data: Any, detail: ErrorDetails) -> tuple[str, list[str]]:
    return _locate(cls, data, detail["loc"], ends_in_key=detail["type"] in ("missing", "extra_forbidden"))


def _fault(cls: type[Spec], data: Any, detail: ErrorDetails) -> str:
    """One line about one fault: its place, what is wrong, what would be right."""
    kind, context = detail["type"], detail.get("ctx", {})
    place, siblings = _place(cls, data, detail)
    prefix = f"{place}: " if place else ""
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(detail["loc"][-1]), siblings, n=1)
        return prefix + "unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(siblings)}")
    if kind == "missing":
        return prefix + "missing"
    if kind in ("union_tag_invalid", "literal_error"):
        if kind == "union_tag_invalid":
            prefix = f"{place}.type: " if place else "type: "
        given = context.get("tag", detail["input"])
        choices = re.findall(r"'([^']*)'", context.get("expected_tags", context.get("expected", "")))
        near = difflib.get_close_matches(str(given), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return prefix + f"expected one of {', '.join(choices) or context.get('expected')}, got {_show(given)}{hint}"
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
        return prefix + f"expected {wanted[kind]}, got {_show(detail['input'])}"
    if kind == "too_short":
        least = context["min_length"]
        return prefix + f"expected at least {least} item{'' if least == 1 else 's'}, got {_show(detail['input'])}"
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return prefix + f"expected {_IN_WORDS.get(pattern, f'text like {pattern}')}, got {_show(detail['input'])}"
    message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return prefix + f"{message}, got {_show(detail['input'])}"


def _locate(cls: type[Spec], data: Any, loc: tuple[int | str, ...], *, ends_in_key: bool) -> tuple[str, list[str]]:
    """Turn a pydantic location, which also names union tags, into a place in the file and the keys known there."""
    parts: list[str] = []
    node, known = data, cls
    for index, key in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(key, int):
            parts[-1] += f"[{key}]"
        elif isinstance(node, dict) and key not in node and not (last and ends_in_key):
            continue  # the tag of a union, not a key
        else:
            parts.append(key)
        if last:
            break
        node = typing.cast("Any", node)[key] if isinstance(node, list | dict) else None
        known = _class_at(known, key, node) or known
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
    return candidates[0] if candidates else None


def _classes(annotation: Any) -> typing.Iterator[type[Spec]]:
    if isinstance(annotation, type) and typing.get_origin(annotation) is None and issubclass(annotation, Spec):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _classes(argument)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True) if not isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    print(json.dumps(recipe_schema(), indent=2))
