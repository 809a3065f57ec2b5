"""Plugins: convolutions, families, data sets, losses and metrics of other packages, found by their entry points.

A package lists each plugin in its ``pyproject.toml``, under the name that recipes use::

    [project.entry-points."revgnn_zoo.convs"]
    multi_hop = "zoo_example:MULTI_HOP"

The object there is a :class:`Plugin`, in a module that imports no torch, so that recipes are checked without it. Only
packages on this machine are asked: nothing that a recipe or a bundle holds is ever imported.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from zoo.errors import RecipeError
from zoo.spec.base import Spec

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from zoo.spec.shape import Widths

Group = Literal["convs", "families", "datasets", "losses", "metrics"]
Key = TypeVar("Key")
Value = TypeVar("Value")

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}==[A-Za-z0-9][A-Za-z0-9.+!_-]{0,49}")
# The keys of a recipe that may name a plugin.
_PLACES: Mapping[Group, tuple[str, ...]] = {
    "families": ("model", "type"),
    "convs": ("model", "conv", "type"),
    "datasets": ("data", "dataset"),
    "losses": ("train", "loss"),
    "metrics": ("eval", "metric"),
}


class Plugin(NamedTuple):
    """A part of the zoo that another package brings."""

    # "module:name" of what does the work, imported when it is used: the layer of a convolution, the builder of a
    # family, the Dataset of a data set, the function of a loss or metric.
    code: str
    spec: type[Spec] | None = None  # of a convolution or family
    widths: Widths | None = None  # of a data set
    tasks: tuple[str, ...] = ()  # that a loss or metric fits, such as "multiclass"
    lower_is_better: bool = False  # of a metric

    def load(self) -> Any:
        """The object that ``code`` names."""
        return pkgutil.resolve_name(self.code)


@cache
def _entry_points(group: Group) -> dict[str, EntryPoint]:
    # Imported and scanned only when a recipe names what this package does not have: it takes a tenth of a second.
    import importlib.metadata

    return {entry.name: entry for entry in importlib.metadata.entry_points(group=f"revgnn_zoo.{group}")}


def find_plugin(group: Group, name: str) -> Plugin | None:
    """The plugin of an installed package; None if no package has one of this name.

    Raises:
        RecipeError: if the package cannot be imported, or has no ``Plugin`` there.
    """
    entry = _entry_points(group).get(name)
    if entry is None:
        return None
    try:
        plugin = entry.load()
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"{name!r} of the package {_package(entry)}: {entry.value} does not load: {error}") from error
    if not isinstance(plugin, Plugin):
        raise RecipeError(f"{name!r} of the package {_package(entry)}: {entry.value} is no zoo.spec.plugins.Plugin")
    return plugin


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def packages_of(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The versions of the installed packages whose plugins a recipe, as JSON data, names."""
    packages = {}
    for group, place in _PLACES.items():
        node: Any = recipe
        for key in place:
            node = node.get(key) if isinstance(node, Mapping) else None
        entry = _entry_points(group).get(node) if isinstance(node, str) else None
        if entry is not None and entry.dist is not None:
            packages[entry.dist.name] = entry.dist.version
    return packages


def missing_package(packages: object) -> str | None:
    """The first package, of those that an unchecked bundle says it needs, that is not installed.

    Returns:
        A requirement for pip; None if all packages are there.
    """
    for name, version in packages.items() if isinstance(packages, dict) else ():
        requirement = f"{name}=={version}"
        # What is no name and version is reported by the check of the whole configuration.
        if _REQUIREMENT.fullmatch(requirement):
            import importlib.metadata

            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                return requirement
    return None


class Installed:
    """Opens a choice, annotated with it, to the plugins of a group; what this package has goes first."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of the choice, in a function that also knows plugins."""
        # Serialized by its own class, since the class of a plugin is not one of the choices.
        serialization = core_schema.simple_ser_schema("any")
        return core_schema.no_info_wrap_validator_function(self._check, handler(source), serialization=serialization)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema of the choice with the names of all installed plugins, for editors."""
        found = handler.resolve_ref_schema(handler(schema))
        for name in sorted(_entry_points(self.group)):
            plugin = find_plugin(self.group, name)
            if plugin is not None and plugin.spec is not None:
                found["oneOf"].append(plugin.spec.model_json_schema())
            else:
                found["enum"].append(name)
        return found

    def _check(self, value: Any, choice: Callable[[Any], Any]) -> Any:
        # The choice goes first, so that no package can change what a recipe of this one means.
        try:
            return choice(value)
        except ValidationError as invalid:
            # Any other fault was found in a spec of this package and is reported as it is.
            if invalid.errors()[0]["type"] not in ("union_tag_invalid", "literal_error"):
                raise
            plugin = find_plugin(self.group, _name(value))
            if plugin is None:
                raise
        if plugin.spec is None or isinstance(value, plugin.spec):
            return value
        # As for all specs, in JSON mode: exact types, but a list may stand for a tuple.
        return plugin.spec.model_validate_json(json.dumps(value))


def _name(value: Any) -> str:
    name = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", value)
    return name if isinstance(name, str) else ""


class Table(Mapping[Key, Value]):
    """A table of this package's rows that also answers for the plugins of installed packages; it lists its own alone.

    Args:
        rows: of this package.
        group: of the plugins.
        row: makes the row of a plugin; KeyError if it has none for the key.
    """

    def __init__(self, rows: Mapping[Key, Value], group: Group, row: Callable[[Plugin, Key], Value]) -> None:
        self._rows, self._group, self._row = rows, group, row

    def __getitem__(self, key: Key) -> Value:
        if key in self._rows:
            return self._rows[key]
        # Losses are keyed by task and name; plugins by their name alone.
        plugin = find_plugin(self._group, key[-1] if isinstance(key, tuple) else str(key))
        if plugin is None:
            raise KeyError(key)
        return self._row(plugin, key)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
