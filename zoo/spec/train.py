"""Training and evaluation of a model: partitions, optimizers, schedules, precision."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator
from typing_extensions import Self

from zoo.spec.base import Spec
from zoo.spec.plugins import Installed, Table

LearningRate = Annotated[float, Field(gt=0, le=1e3)]
WeightDecay = Annotated[float, Field(ge=0, le=1e3)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

MetricName = Literal["rocauc", "average_precision", "accuracy", "micro_f1", "macro_f1", "mcc", "mae", "rmse", "r2"]
Loss = Literal["bce_with_logits", "cross_entropy", "log_cross_entropy", "mse", "mae", "huber"]

# What a recipe may name: those of this package and of others that are installed.
Metric = Annotated[MetricName, Installed("metrics")]


class MetricFacts(NamedTuple):
    """The tasks that a metric can score, its least and largest value, and True if the lowest value is the best."""

    tasks: tuple[str, ...]
    low: float = 0
    high: float = 1
    lower_is_better: bool = False


METRIC_FACTS: Mapping[str, MetricFacts] = Table(
    {
        "rocauc": MetricFacts(("multilabel", "binary")),
        "average_precision": MetricFacts(("multilabel", "binary")),
        "accuracy": MetricFacts(("multiclass", "binary")),
        "micro_f1": MetricFacts(("multilabel", "multiclass")),
        "macro_f1": MetricFacts(("multilabel", "multiclass", "binary")),
        "mcc": MetricFacts(("multiclass", "binary"), low=-1),
        "mae": MetricFacts(("regression",), high=inf, lower_is_better=True),
        "rmse": MetricFacts(("regression",), high=inf, lower_is_better=True),
        "r2": MetricFacts(("regression",), low=-inf),
    },
    "metrics",
    lambda plugin, _: MetricFacts(plugin.tasks, -inf, inf, plugin.lower_is_better),
)


def lower_is_better(metric: str) -> bool:
    """True if the lowest value of a metric is the best."""
    facts = METRIC_FACTS.get(metric)
    return facts is not None and facts.lower_is_better


class FullPartition(Spec):
    """The whole graph as one part."""

    num_parts: ClassVar[int] = 1
    num_clusters: ClassVar[int] = 0
    type: Literal["full"]


class RandomPartition(Spec):
    """Every node falls into one of ``num_parts`` parts at random; a part is the induced subgraph of its nodes."""

    num_clusters: ClassVar[int] = 0
    type: Literal["random"]
    num_parts: int = Field(ge=1, le=1_000_000)


class MetisPartition(Spec):
    """METIS finds clusters with few edges between them, once; a part is induced by clusters that join at random.

    Source: Cluster-GCN, arXiv 1905.07953.
    """

    type: Literal["metis"]
    num_parts: int = Field(ge=1, le=1_000_000)
    num_clusters: int = Field(ge=1, le=1_000_000, description="a few for each part, so that parts differ by epoch")

    @model_validator(mode="after")
    def _fill_parts(self) -> Self:
        if self.num_clusters < self.num_parts:
            raise ValueError(f"num_clusters: {self.num_clusters} do not fill the {self.num_parts} of num_parts")
        return self


Partition = Annotated[FullPartition | RandomPartition | MetisPartition, Field(discriminator="type")]


class AdamSpec(Spec):
    """Adam (arXiv 1412.6980) or RMSprop."""

    type: Literal["adam", "rmsprop"]
    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 0.0


class AdamWSpec(Spec):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    type: Literal["adamw"]
    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 0.01


class SGDSpec(Spec):
    """Stochastic gradient descent with momentum."""

    type: Literal["sgd"]
    lr: LearningRate
    momentum: Momentum = 0.0
    weight_decay: WeightDecay = 0.0


Optimizer = Annotated[AdamSpec | AdamWSpec | SGDSpec, Field(discriminator="type")]


class Schedule(Spec):
    """The learning rate rises linearly over ``num_warmup_epochs``; then it stays, or falls to zero along a cosine."""

    type: Literal["constant", "cosine"]
    num_warmup_epochs: int = Field(default=0, ge=0, le=1_000_000)


class LabelReuseSpec(Spec):
    """Labels as node features (arXiv 2103.13355): a one-hot code of the known ones, predictions where none is known.

    The model reads as many more node features as there are classes. In every training step some train nodes give
    their labels away and the others are predicted; in evaluation all train nodes give them.
    """

    mask_rate: float = Field(
        default=0.5, gt=0, lt=1, description="chance of a train node to have its label read instead of predicted"
    )
    num_iters: int = Field(
        default=1,
        ge=0,
        le=100,
        description="passes without gradient, the predictions of each being read by the next as labels; 0: zeros stay",
    )


class DistillationSpec(Spec):
    """Self-distillation: the recipe is trained without this key first, and its predictions then teach a second model.

    The loss is (1 - alpha) times that of the labels plus alpha times the divergence from the teacher at a temperature.
    """

    alpha: float = Field(gt=0, le=1, description="weight of the teacher's predictions against the labels")
    temperature: float = Field(gt=0, le=1e3, description="logits of both models are divided by it")


class TrainSpec(Spec):
    """One training run: one optimizer step for every few parts of a fresh partition each epoch."""

    num_epochs: int = Field(ge=1, le=1_000_000)
    loss: Annotated[Loss, Installed("losses")] | None = Field(
        default=None,
        description="of classes: cross_entropy, or log_cross_entropy, the mean of log(eps + cross entropy) - log(eps), "
        "eps = 1 - ln 2; of zeros and ones: bce_with_logits; of numbers: mse, mae or huber; left out: the first that "
        "fits the labels",
    )
    label_reuse: LabelReuseSpec | None = Field(default=None, description="labels as node features; left out: none")
    distillation: DistillationSpec | None = Field(default=None, description="learn from a first run; left out: none")
    optimizer: Optimizer
    schedule: Schedule = Schedule(type="constant")
    partition: Partition = FullPartition(type="full")
    parts_per_step: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="parts whose train nodes make one optimizer step; the most processes that can share a run",
    )
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal["fp32", "bf16"] = "fp32"
    max_grad_norm: float = Field(default=0.0, ge=0, description="gradients are clipped to this norm; 0: not clipped")
    patience: int = Field(
        default=0, ge=0, description="stop after this many evaluations without a better one; 0: never"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="what a loss or gradient that is NaN or infinite does: ends the run, or its step"
    )
    solve_patience: int = Field(
        default=0, ge=0, description="stop after this many epochs in a row in which no solve converged; 0: never"
    )

    @model_validator(mode="after")
    def _has_parts(self) -> Self:
        if self.parts_per_step > (most := self.partition.num_parts):
            raise ValueError(f"parts_per_step: {self.parts_per_step} is more than the {most} of the partition")
        return self

    @model_validator(mode="after")
    def _classes(self) -> Self:
        for key, value in (("label_reuse", self.label_reuse), ("distillation", self.distillation)):
            if value is not None and self.loss not in (None, "cross_entropy", "log_cross_entropy"):
                raise ValueError(
                    f"{key} goes with a loss of classes, 'cross_entropy' or 'log_cross_entropy', not with {self.loss!r}"
                )
        return self


class EvalSpec(Spec):
    """Validation during training; selects the best state."""

    metric: Metric | None = Field(default=None, description="left out: the usual one of the labels")
    select: Literal["metric", "loss"] = Field(
        default="metric", description="the best epoch: that of the best metric or of the lowest loss"
    )
    every: int = Field(default=1, ge=1, description="epochs between two evaluations")
    num_views: int = Field(default=1, ge=1, le=1000)
    partition: Partition = FullPartition(type="full")

    @property
    def lower_is_better(self) -> bool:
        """True if the best epoch is that of the lowest value."""
        return self.select == "loss" or (self.metric is not None and lower_is_better(self.metric))


class TestSpec(Spec):
    """The final evaluation of the best state: logits averaged over ``num_views`` partitions."""

    num_views: int = Field(default=1, ge=1, le=1000)
    partition: Partition = FullPartition(type="full")
