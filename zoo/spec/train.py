"""How a model is trained and evaluated: partitions, optimizers, schedules, precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from zoo.spec.base import Spec

LearningRate = Annotated[float, Field(gt=0, le=1e3)]
WeightDecay = Annotated[float, Field(ge=0, le=1e3)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

MetricName = Literal["rocauc", "accuracy", "micro_f1"]


class FullPartition(Spec):
    """The whole graph as one part."""

    type: Literal["full"]


class RandomPartition(Spec):
    """Every node falls into one of ``num_parts`` parts at random; a part is the induced subgraph of its nodes."""

    type: Literal["random"]
    num_parts: int = Field(ge=1, le=1_000_000)


Partition = Annotated[FullPartition | RandomPartition, Field(discriminator="type")]


class AdamSpec(Spec):
    """Adam (arXiv 1412.6980)."""

    type: Literal["adam"]
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


class RMSpropSpec(Spec):
    """RMSprop."""

    type: Literal["rmsprop"]
    lr: LearningRate = 1e-3
    weight_decay: WeightDecay = 0.0


Optimizer = Annotated[AdamSpec | AdamWSpec | SGDSpec | RMSpropSpec, Field(discriminator="type")]


class ConstantSchedule(Spec):
    """The learning rate rises linearly over ``num_warmup_epochs`` and then stays."""

    type: Literal["constant"]
    num_warmup_epochs: int = Field(default=0, ge=0)


class CosineSchedule(Spec):
    """The learning rate rises linearly over ``num_warmup_epochs`` and then falls to zero along a cosine."""

    type: Literal["cosine"]
    num_warmup_epochs: int = Field(default=0, ge=0)


Schedule = Annotated[ConstantSchedule | CosineSchedule, Field(discriminator="type")]


class TrainSpec(Spec):
    """One training run: one optimizer step per part of a fresh partition each epoch."""

    num_epochs: int = Field(ge=1, le=1_000_000)
    loss: Literal["bce_with_logits", "cross_entropy"]
    optimizer: Optimizer
    schedule: Schedule = ConstantSchedule(type="constant")
    partition: Partition = FullPartition(type="full")
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal["fp32", "bf16"] = "fp32"
    max_grad_norm: float = Field(default=0.0, ge=0, description="gradients are clipped to this norm; 0: not clipped")
    patience: int = Field(
        default=0, ge=0, description="stop after this many evaluations without a better validation metric; 0: never"
    )


class EvalSpec(Spec):
    """Validation during training; selects the best state."""

    metric: MetricName
    every: int = Field(default=1, ge=1, description="epochs between two evaluations")
    num_views: int = Field(default=1, ge=1, le=1000)
    partition: Partition = FullPartition(type="full")


class TestSpec(Spec):
    """The final evaluation of the best state: logits averaged over ``num_views`` partitions."""

    num_views: int = Field(default=1, ge=1, le=1000)
    partition: Partition = FullPartition(type="full")
