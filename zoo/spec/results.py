"""Results: measured, published, and the log records of a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from math import inf
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, FailFast, Field, ValidationInfo, field_validator
from typing_extensions import Self

from zoo.spec.base import Spec
from zoo.spec.train import METRIC_FACTS, Metric, MetricFacts, lower_is_better


class Measured(Spec):
    """One measured figure and how it was measured: logits averaged over views of so many parts."""

    split: Literal["train", "valid", "test"]
    metric: Metric
    value: float
    num_views: int = Field(ge=1)
    num_parts: int = Field(ge=1)
    num_clusters: int | None = Field(default=None, ge=1)

    @field_validator("value")
    @classmethod
    def _range(cls, value: float, info: ValidationInfo) -> float:
        # Bundles may come from anywhere, and an impossible figure must not reach a table or a card.
        facts = METRIC_FACTS.get(info.data.get("metric", ""), MetricFacts((), -inf, inf))
        if not facts.low <= value <= facts.high:
            raise ValueError(f"must be from {facts.low:g} to {facts.high:g}")
        return value

    @property
    def protocol(self) -> str:
        """In words, how it was measured."""
        return protocol_in_words(self.num_views, self.num_parts, self.num_clusters or 0)


class ReportedResult(Spec):
    """A published figure: its quantity, its protocol, and its source.

    A number of views or parts that the source does not state is left out, and nothing is compared with the figure.
    """

    split: Literal["train", "valid", "test"]
    metric: Metric
    mean: float
    std: Annotated[float, Field(ge=0)] | None = None
    num_views: int | None = Field(default=None, ge=1, description="logits are averaged over so many views")
    num_parts: int | None = Field(default=None, ge=1, description="parts of a view; 1: the whole graph")
    num_runs: int | None = Field(default=None, ge=1, description="the mean is over so many runs")
    model: str = Field(default="", description="the model, if it is none of this package")
    source: str

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        words = protocol_in_words(self.num_views, self.num_parts)
        return words if self.num_runs is None else f"{words}, {self.num_runs} runs"


class SourceSpec(Spec):
    """The origin of the model."""

    paper: str
    code: str = ""
    num_parameters: int = Field(default=0, ge=0, description="published parameter count; 0: none was published")
    reported: Annotated[tuple[ReportedResult, ...], FailFast()] = ()


class Environment(Spec):
    """The facts that may change a result; what else there is may differ from version to version."""

    model_config = ConfigDict(extra="allow")
    # Versions of this package record different facts and have to read each other's files.
    __pydantic_extra__: dict[str, str | int]

    zoo: str
    torch: str
    device: str

    @property
    def machine(self) -> str:
        """The device and the number of CPU threads, in words."""
        num_threads = (self.__pydantic_extra__ or {}).get("num_threads", 1)
        return f"{self.device}, {num_threads} thread{'' if num_threads == 1 else 's'}"


class RunResults(Spec):
    """The content of a run's ``results.json``."""

    name: str  # of the recipe
    results: tuple[Measured, ...]  # of the best weights
    best_epoch: int = Field(ge=1)  # whose weights these are
    num_epochs: int = Field(ge=1)  # that were trained; fewer than the recipe's if it ran out of patience
    num_steps: int = Field(ge=0)
    num_parameters: int = Field(ge=1)
    train_s: float  # of training and validation
    peak_memory_bytes: int  # of the process on the CPU, of PyTorch's tensors on a GPU
    # How exactly the reversible stack restored its input in the worst step, relative to the largest entry, if checked.
    max_inversion_error: float | None = None
    data_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # of everything that the run read of its graph
    data_is_synthetic: bool = False  # the graph stands in for the data set that the recipe names
    environment: Environment
    baseline: dict[str, float] | None = None  # score by split of the model of the node features alone, if fitted
    teacher: RunResults | None = None  # under self-distillation
    rank_memory_bytes: tuple[int, ...] | None = None  # the peak of each process, if several shared the run
    # Seconds in which each of them, since they were last started, did not wait for others.
    rank_busy_s: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The results as plain JSON data, without what there is not."""
        return self.model_dump(mode="json", exclude_none=True)


def ranks_in_words(rank_memory_bytes: Sequence[float], rank_busy_s: Sequence[float]) -> dict[str, str]:
    """Memory of every process of a run, and the one that the others waited for."""
    memory, busy_s = "+".join(f"{size / 2**30:.2f}" for size in rank_memory_bytes), max(rank_busy_s)
    return {"memory": f"{memory}GiB", "slowest": f"rank {rank_busy_s.index(busy_s)}, busy {busy_s:.2f}s"}


class Mean(Spec):
    """Mean and sample standard deviation over runs; one run has no deviation."""

    mean: float
    std: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Mean and deviation of at least one value."""
        return cls(mean=statistics.fmean(values), std=statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.std is None else f" ± {self.std:.4f}")


class RunScores(Spec):
    """Scores of one run; how a bundle was trained is not known here, and a baseline has neither seed nor epochs."""

    split: int
    # Files written before hold null where there is nothing, so None is also read.
    seed: int | None = None
    valid: float
    test: float
    num_epochs: int | None = None
    best_epoch: int | None = None
    train_s: float | None = None


class EpochRecord(Spec):
    """A line of a run's ``metrics.jsonl``; every other figure has a name of its own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    epoch: int = Field(ge=1)
    train_loss: float


def metric_in_words(metric: str) -> str:
    """The name of a metric, and that the lowest value is the best where it is."""
    return f"{metric} (lower is better)" if lower_is_better(metric) else metric


def baseline_in_words(metric: str) -> str:
    """The model of the node features alone that stands beside figures of a metric."""
    facts = METRIC_FACTS.get(metric)
    return "ridge regression" if facts is not None and "regression" in facts.tasks else "logistic regression"


def protocol_in_words(num_views: int | None, num_parts: int | None, num_clusters: int = 0) -> str:
    """A protocol in words: the whole graph, or an average over views of it in parts; None for what is not known."""
    if num_parts == 1:
        return "whole graph"
    if num_views is None:
        return "protocol not stated"
    views = "1 view" if num_views == 1 else f"{num_views} views"
    if num_parts is None:
        return "single view" if num_views == 1 else views
    return f"{views} of {num_parts} parts" + (f" of {num_clusters} clusters" if num_clusters else "")
