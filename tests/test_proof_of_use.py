"""Every option and every kernel is used by a shipped recipe, or stands in a list with the reason why it is there."""

import json
import sys
import typing
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.models.factory import build_model
from zoo.spec.base import Spec
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shape import GraphShape
from zoo.spec.shipped import list_recipes, recipe_path

OPS = Path(__file__).parents[1] / "zoo" / "ops"
EXCEPTIONS = json.loads((Path(__file__).parent / "proof_of_use_exceptions.json").read_text(encoding="utf-8"))


def specs(annotation: Any) -> Iterator[type[Spec]]:
    """The spec classes that an annotation names, and those that they name in turn."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
        for field in annotation.model_fields.values():
            yield from specs(field.annotation)
    for argument in typing.get_args(annotation):
        yield from specs(argument)


def choices(annotation: Any) -> Iterator[Any]:
    """The values of the Literals that an annotation names."""
    for argument in typing.get_args(annotation):
        if typing.get_origin(annotation) is typing.Literal:
            yield argument
        else:
            yield from choices(argument)


def options() -> set[str]:
    """Every spec class, every key that may be left out, and every value of a choice."""
    found = set()
    for cls in specs(Recipe):
        found.add(cls.__name__)
        for key, field in cls.model_fields.items():
            if not field.is_required():
                found.add(f"{cls.__name__}.{key}")
            found |= {f"{cls.__name__}.{key}={value}" for value in choices(field.annotation)}
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
        for item in value if isinstance(value, tuple) else (value,):
            yield f"{name}.{key}={item}"
        yield from used(value)


def test_every_option_is_used_by_a_recipe_or_listed_with_its_reason() -> None:
    in_use = {option for name in list_recipes() for option in used(read_recipe(recipe_path(name)))}
    unused = options() - in_use
    unlisted = [option for option in sorted(unused) if not any(fnmatchcase(option, place) for place in EXCEPTIONS)]
    assert unlisted == []
    stale = [place for place in EXCEPTIONS if not any(fnmatchcase(option, place) for option in unused)]
    assert stale == [], "exceptions that are in use now, or are no options any more"
    assert all(len(reason) > 10 for reason in EXCEPTIONS.values())


def small_models() -> dict[str, Any]:
    """The model of every shipped recipe at four layers and few channels, once for those that differ in size alone."""
    models = {}
    for name in list_recipes():
        model = read_recipe(recipe_path(name)).model
        sizes = {"num_layers": 4, "num_distinct_layers": 2, "hidden_channels": 12}
        small = model.model_copy(update={key: value for key, value in sizes.items() if key in type(model).model_fields})
        models[small.model_dump_json(exclude={"dropout", "input_dropout", "edge_dropout"})] = small
    return models


@pytest.mark.filterwarnings("ignore:.*without converging")
def test_every_kernel_is_run_by_a_recipe() -> None:
    """Observed on the CPU; on a GPU the same operators run the kernels beside those of the CPU."""
    kernels = {str(path) for path in OPS.glob("*/cpu.py")}
    called: set[str] = set()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            called.add(frame.f_code.co_filename)

    torch.manual_seed(0)
    x, edge_index, edge_attr = torch.randn(9, 7), torch.randint(9, (2, 40)), torch.rand(40, 3)
    for spec in small_models().values():
        shape = GraphShape(num_node_features=7, num_edge_features=3 if spec.reads_edges else 0, num_tasks=2)
        model = build_model(spec, shape)
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            model(x, edge_index, edge_attr if spec.reads_edges else None).sum().backward()
        finally:
            sys.setprofile(before)
        # Further models could add nothing.
        if kernels <= called:
            break
    assert kernels - called == set()
    assert {path.parent for path in OPS.glob("*/cuda.py")} <= {path.parent for path in OPS.glob("*/cpu.py")}
