"""The suites: which cases are measured side by side, and the lines fitted through them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field

from zoo.spec.base import Spec
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows.options import EdgePrecision

# Source: the pages of OGB on ogbn-proteins.
TRUE_NODES, TRUE_EDGES = 132_534, 79_122_504
TRUE_LAYERS, WIDE_LAYERS, WIDE_PER_DEEP_CHANNELS = 1001, 448, 224 / 80


class Case(Spec):
    """A model and a graph to measure; by default training steps of 14 layers on one of ten parts of ogbn-proteins.

    Attributes:
        implementation: this package's model, reversible or under plain autograd; the same architecture from PyG's
            GENConv and GroupAddRev, reversible or not.
        work: training steps with the optimizer, or the evaluation of the whole graph.
        recipe: a shipped name: the model, the loss and the optimizer.
        settings: ``KEY=VALUE`` overrides of the recipe.
        num_layers: L; overrides the recipe's.
        channels: C; overrides the recipe's.
        num_nodes: of the random graph.
        num_edges: of the random graph, each direction counted.
        num_parts: P; overrides the recipe's in training and is the P of an evaluation.
        num_steps: steps that are timed.
        capture: replay CUDA graphs of one layer, on a GPU.
        edge_precision: of the edge features on a GPU.
    """

    implementation: Literal["zoo", "zoo_plain", "pyg", "pyg_plain"] = "zoo"
    work: Literal["train", "evaluate"] = "train"
    recipe: str = "rev_deep"
    settings: tuple[str, ...] = ()
    num_layers: int = Field(default=14, ge=1)
    channels: int = Field(default=80, ge=2)
    num_nodes: int = Field(default=13_253, ge=64)
    num_edges: int = Field(default=791_000, ge=1)
    num_parts: int = Field(default=1, ge=1)
    num_steps: int = Field(default=3, ge=1)
    capture: bool = False
    edge_precision: EdgePrecision = "fp32"

    def read_recipe(self) -> Recipe:
        """The recipe at the sizes of the case.

        Raises:
            ZooError: if there is no such recipe, or it has no such sizes.
        """
        sizes = [
            f"model.num_layers={self.num_layers}",
            f"model.hidden_channels={self.channels}",
            f"train.partition={json.dumps({'type': 'random', 'num_parts': self.num_parts})}",
        ]
        if self.implementation == "zoo_plain":
            sizes.append("model.reversible=false")
        return read_recipe(recipe_path(self.recipe), [*sizes, *self.settings])

    @property
    def label(self) -> str:
        """The case in words."""
        parts = "1 part" if self.num_parts == 1 else f"{self.num_parts} parts"
        work = "" if self.work == "train" else ", evaluation"
        return (
            f"{self.implementation}, {self.recipe}, {self.num_layers} layers of {self.channels} channels, "
            f"{self.num_edges:,} edges, {parts}{work}"
        )


class Trend(NamedTuple):
    """A straight line to be fitted through the cases of each implementation.

    Attributes:
        over: the figure that a suite varies.
        per: in units of this many.
        of: the figure that follows.
    """

    over: str
    per: int
    of: str


class Suite(NamedTuple):
    """A list of cases measured in one go.

    Attributes:
        summary: what it shows.
        base: the sizes that are measured unless others are asked for.
        cases: of the sizes asked for.
        trend: what should be a straight line.
    """

    summary: str
    base: Case
    cases: Callable[[Case], Iterator[Case]]
    trend: Trend | None = None


def _memory(base: Case) -> Iterator[Case]:
    # PyG takes long, and its layers are reversible too: a quarter of the depth shows it.
    for implementation, divisors in (("zoo", (4, 1)), ("zoo_plain", (4, 1)), ("pyg", (4,))):
        for num_layers in _fractions(base.num_layers, base.num_layers, *divisors):
            yield base.model_copy(update={"implementation": implementation, "num_layers": num_layers})


def _peers(base: Case) -> Iterator[Case]:
    for implementation in ("zoo", "pyg", "zoo_plain", "pyg_plain"):
        yield base.model_copy(update={"implementation": implementation})


def _depth(base: Case) -> Iterator[Case]:
    for num_layers in _fractions(base.num_layers, 8, 4, 2, 1):
        yield base.model_copy(update={"num_layers": num_layers})


def _edges(base: Case) -> Iterator[Case]:
    for num_edges in _fractions(base.num_edges, 8, 4, 2, 1):
        yield base.model_copy(update={"num_edges": num_edges})


def _true_size(base: Case) -> Iterator[Case]:
    yield base
    yield base.model_copy(update={"implementation": "pyg", "num_steps": 2, "capture": False, "edge_precision": "fp32"})
    wide = {
        "recipe": "rev_wide",
        "num_layers": max(1, base.num_layers * WIDE_LAYERS // TRUE_LAYERS),
        "channels": 2 * max(1, round(base.channels * WIDE_PER_DEEP_CHANNELS / 2)),
    }
    yield base.model_copy(update=wide)
    yield base.model_copy(update={"num_parts": 1, "num_steps": 1})
    yield base.model_copy(update={"num_parts": 1, "num_steps": 1, "work": "evaluate"})


def _fractions(whole: int, *divisors: int) -> list[int]:
    """The different parts of a whole, at least 1 each, from small to large."""
    return sorted({max(1, whole // divisor) for divisor in divisors})


SUITES: dict[str, Suite] = {
    "memory": Suite(
        "peak memory of a training step over depth, without parameters, gradients and optimizer",
        # A hundredth of the nodes of ogbn-proteins, so that also the peers reach the depth of RevGNN-Deep in minutes.
        Case(num_layers=TRUE_LAYERS, num_nodes=TRUE_NODES // 100, num_edges=TRUE_EDGES // 4000, num_steps=1),
        _memory,
        Trend("num_layers", 1, "peak_bytes"),
    ),
    "peers": Suite("a training step here, in PyTorch Geometric, and under plain autograd", Case(num_steps=2), _peers),
    "depth": Suite(
        "time of a training step over depth", Case(num_layers=56), _depth, Trend("num_layers", 1, "median_step_s")
    ),
    "edges": Suite(
        "time of a training step over the number of edges",
        Case(),
        _edges,
        Trend("num_edges", 1_000_000, "median_step_s"),
    ),
    "true_size": Suite(
        "RevGNN-Deep and RevGNN-Wide at the true size of ogbn-proteins",
        Case(num_layers=TRUE_LAYERS, num_nodes=TRUE_NODES, num_edges=TRUE_EDGES, num_parts=10),
        _true_size,
    ),
}


def fit_lines(rows: Sequence[Mapping[str, Any]], trend: Trend) -> list[dict[str, Any]]:
    """The line of least squares through the cases of each implementation.

    Args:
        rows: cases with what was measured; those that failed are left out.
        trend: what follows what.

    Returns:
        One object for each implementation with at least three different values of ``over``: what the line is of, its
        ``slope`` per ``per`` units of ``over``, its ``intercept``, and ``r2``, the share of the variance that it
        explains (1 where there is none).
    """
    fits = []
    for implementation in dict.fromkeys(row["implementation"] for row in rows):
        points = [
            (row[trend.over] / trend.per, row[trend.of])
            for row in rows
            if row["implementation"] == implementation and row.get(trend.of) is not None
        ]
        if len({x for x, _ in points}) < 3:
            continue
        xs, ys = zip(*points, strict=True)
        slope, intercept = statistics.linear_regression(xs, ys)
        mean = statistics.fmean(ys)
        total = sum((y - mean) ** 2 for y in ys)
        rest = sum((y - intercept - slope * x) ** 2 for x, y in points)
        r2 = 1 - rest / total if total else 1.0
        line = {"slope": slope, "intercept": intercept, "r2": r2}
        fits.append({"implementation": implementation, **trend._asdict(), **line})
    return fits
