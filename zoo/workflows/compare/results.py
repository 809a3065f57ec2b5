"""The content of ``compare.json``: a row for each model, and what stands beside them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from typing_extensions import Self

from zoo.spec.base import Spec
from zoo.spec.recipe import ReportedResult
from zoo.spec.results import Environment


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


class CompareEntry(Spec):
    """A model: its sizes, its scores, and what a training step costs, see ``zoo.workflows.step_cost``.

    Attributes:
        name: of its recipe.
        type: the family.
        num_layers: L.
        hidden_channels: C.
        runs: one for each split and seed.
        valid: over the runs.
        test: over the runs.
        num_parameters: of the model.
        peak_bytes: memory of a step beyond parameters, gradients, optimizer state and graph.
        step_s: seconds of a step.
        epoch_s: seconds of an epoch.
        train_s: of all runs together, if all of them are known.
    """

    name: str
    type: str
    num_layers: int
    hidden_channels: int
    runs: tuple[RunScores, ...]
    valid: Mean
    test: Mean
    num_parameters: int
    peak_bytes: int
    step_s: float
    epoch_s: float
    train_s: float | None = None


class BaselineEntry(Spec):
    """A model of the node features alone."""

    name: str = "logistic regression"
    runs: tuple[RunScores, ...]
    valid: Mean
    test: Mean


class ComparedData(Spec):
    """The graph that all models see."""

    dataset: str
    name: str
    num_nodes: int
    num_edges: int
    is_synthetic: bool


class CompareResults(Spec):
    """All that a comparison found out."""

    date: str
    environment: Environment
    data: ComparedData
    metric: str
    protocol: str
    splits: tuple[int, ...]
    models: tuple[CompareEntry, ...]
    baseline: BaselineEntry | None = None
    reported: tuple[ReportedResult, ...] = ()
    notes: tuple[str, ...] = ()
