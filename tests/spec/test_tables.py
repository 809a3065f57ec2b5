"""A choice is a Literal, or a union of specs by ``type``, and every table that serves it has a row for each name."""

import importlib
import pkgutil
import typing
from collections.abc import Iterator, Mapping
from types import ModuleType

import pytest

import zoo
from zoo.spec.base import Spec

# Modules that need an optional package or a GPU; they hold kernels and no tables.
LEFT_OUT = ("cuda", "triton", "kernels")


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(zoo.__path__, "zoo."):
        if not any(word in info.name.rpartition(".")[2] for word in LEFT_OUT) and not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def choices() -> dict[str, frozenset[object]]:
    """The names of every Literal and the classes of every union of specs that some module defines."""
    found: dict[str, frozenset[object]] = {}
    for module in modules():
        for name, value in vars(module).items():
            if typing.get_origin(value) is typing.Literal:
                found[name] = frozenset(typing.get_args(value))
            elif typing.get_origin(value) is typing.Annotated:
                members = typing.get_args(typing.get_args(value)[0])
                if members and all(isinstance(member, type) and issubclass(member, Spec) for member in members):
                    found[name] = frozenset(members)
                    found[f"{name}.type"] = frozenset(tag for member in members for tag in tags(member))
    return {name: members for name, members in found.items() if len(members) > 1}


def tags(spec: type[Spec]) -> tuple[str, ...]:
    return typing.get_args(spec.model_fields["type"].annotation) if "type" in spec.model_fields else ()


def tables() -> dict[str, frozenset[object]]:
    """The keys of every table that stands in a module; of a table with several keys, those of each place."""
    found: dict[int, tuple[str, Mapping[object, object]]] = {}
    for module in modules():
        for name, value in vars(module).items():
            if isinstance(value, Mapping) and not name.startswith("__"):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    columns = {}
    for name, table in found.values():
        keys = [key if isinstance(key, tuple) else (key,) for key in table]
        for place, column in enumerate(zip(*keys, strict=False)):
            columns[f"{name}[{place}]"] = frozenset(column)
    return columns


CHOICES = choices()
# Names that need no row: "none" chooses nothing, and the data set "file" brings its own facts.
ROWLESS = {"none", "file"}
# Tables about some names of a choice only.
PARTIAL = {
    "COPURCHASE_FILES": "the data sets of one source",
    "OGB": "the data sets of the Open Graph Benchmark",
}


def served(keys: frozenset[object]) -> list[str]:
    """The choices whose names are most of a table's keys."""
    return [
        name for name, members in CHOICES.items() if 2 * len(keys & members) > len(keys) and len(keys & members) > 1
    ]


TABLES = {
    place: keys
    for place, keys in tables().items()
    if served(keys) and not any(place.partition("[")[0].endswith(f".{name}") for name in PARTIAL)
}


def test_the_tables_of_the_package_are_found() -> None:
    expected = {"NORMS[0]", "CONVS[0]", "METRICS[0]", "METRIC_FACTS[0]", "FEATURES[0]", "DATASETS[0]", "LOSSES[1]"}
    assert expected <= {place.rpartition(".")[2] for place in TABLES}


@pytest.mark.parametrize("place", TABLES)
def test_every_name_of_a_choice_has_its_row(place: str) -> None:
    assert any(TABLES[place] | ROWLESS == CHOICES[name] | ROWLESS for name in served(TABLES[place]))
