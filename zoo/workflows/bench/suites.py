"""The suites: which cases are measured side by side, and what is read off them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from zoo.workflows.bench.case import Case

# Source: the pages of OGB on ogbn-proteins.
TRUE_NODES, TRUE_EDGES = 132_534, 79_122_504
TRUE_LAYERS, WIDE_LAYERS, WIDE_PER_DEEP_CHANNELS = 1001, 448, 224 / 80


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
        measures: memory on the CPU costs time, so where it is watched, seconds compare with nothing but each other.
        trend: what should be a straight line.
    """

    summary: str
    base: Case
    cases: Callable[[Case], Iterator[Case]]
    measures: Literal["time", "memory", "time and memory"]
    trend: Trend | None = None


def _step(base: Case) -> Iterator[Case]:
    yield base


def _memory(base: Case) -> Iterator[Case]:
    for num_layers in _fractions(base.num_layers, 16, 8, 4, 2, 1):
        yield base.model_copy(update={"num_layers": num_layers})
    for num_layers in _fractions(base.num_layers, 16, 8, 4):
        yield base.model_copy(update={"implementation": "zoo_plain", "num_layers": num_layers})


def _peers(base: Case) -> Iterator[Case]:
    for implementation in ("zoo", "pyg", "zoo_plain", "pyg_plain"):
        yield base.model_copy(update={"implementation": implementation})


def _depth(base: Case) -> Iterator[Case]:
    for num_layers in _fractions(base.num_layers, 8, 4, 2, 1):
        yield base.model_copy(update={"num_layers": num_layers})


def _edges(base: Case) -> Iterator[Case]:
    for num_edges in _fractions(base.num_edges or 0, 8, 4, 2, 1):
        yield base.model_copy(update={"num_edges": num_edges})


def _true_size(base: Case) -> Iterator[Case]:
    yield base.model_copy(update={"num_steps": base.num_parts})
    yield base.model_copy(update={"implementation": "pyg", "num_steps": 2})
    wide = {
        "recipe": "rev_wide",
        "num_layers": max(1, base.num_layers * WIDE_LAYERS // TRUE_LAYERS),
        "channels": 2 * max(1, round(base.channels * WIDE_PER_DEEP_CHANNELS / 2)),
    }
    yield base.model_copy(update={**wide, "num_steps": 3})
    yield base.model_copy(update={"num_parts": 1, "num_steps": 1})
    yield base.model_copy(update={"num_parts": 1, "num_steps": 1, "work": "evaluate"})


def _fractions(whole: int, *divisors: int) -> list[int]:
    """The different parts of a whole, at least 1 each, from small to large."""
    return sorted({max(1, whole // divisor) for divisor in divisors})


SUITES: dict[str, Suite] = {
    "step": Suite("a training step: time and memory", Case(), _step, "time and memory"),
    "memory": Suite(
        "peak memory of a training step over depth, reversible and plain autograd",
        Case(num_layers=112),
        _memory,
        "memory",
        Trend("num_layers", 1, "peak_bytes"),
    ),
    "peers": Suite(
        "a training step here, in PyTorch Geometric, and under plain autograd: time", Case(), _peers, "time"
    ),
    "peer_memory": Suite(
        "a training step here, in PyTorch Geometric, and under plain autograd: peak memory", Case(), _peers, "memory"
    ),
    "depth": Suite(
        "time of a training step over depth",
        Case(num_layers=56),
        _depth,
        "time",
        Trend("num_layers", 1, "median_step_s"),
    ),
    "edges": Suite(
        "time of a training step over the number of edges",
        Case(),
        _edges,
        "time",
        Trend("num_edges", 1_000_000, "median_step_s"),
    ),
    "true_size": Suite(
        "RevGNN-Deep and RevGNN-Wide at the true size of ogbn-proteins",
        Case(num_layers=TRUE_LAYERS, num_nodes=TRUE_NODES, num_edges=TRUE_EDGES, num_parts=10),
        _true_size,
        "time and memory",
    ),
}
