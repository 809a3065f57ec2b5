"""What a run measured and recorded, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from zoo.spec.base import Spec
from zoo.spec.train import MetricName


class Measured(Spec):
    """One measured figure and how it was measured: logits averaged over views of so many parts."""

    split: Literal["train", "valid", "test"]
    metric: MetricName
    value: float = Field(ge=0, le=1)
    num_views: int = Field(ge=1)
    num_parts: int = Field(ge=1)

    @property
    def protocol(self) -> str:
        """In words, how it was measured."""
        return protocol_in_words(self.num_views, self.num_parts)


class Environment(Spec):
    """The facts that may change a result; what else there is may differ from version to version."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | int]

    zoo: str
    torch: str
    device: str


class RunResults(Spec):
    """The content of a run's ``results.json``."""

    name: str
    results: tuple[Measured, ...]
    best_epoch: int = Field(ge=1)
    num_epochs: int = Field(ge=1)
    num_steps: int = Field(ge=0)
    num_parameters: int = Field(ge=1)
    train_s: float
    peak_memory_bytes: int
    data_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    data_is_synthetic: bool = False
    environment: Environment
    baseline: dict[str, float] | None = None
    teacher: RunResults | None = None


class EpochRecord(Spec):
    """A line of a run's ``metrics.jsonl``; every other figure has a name of its own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    epoch: int = Field(ge=1)
    train_loss: float


def protocol_in_words(num_views: int, num_parts: int) -> str:
    """How predictions are made: on the whole graph, or averaged over views of it in parts."""
    if num_parts == 1:
        return "whole graph"
    return f"{num_views} view{'' if num_views == 1 else 's'} of {num_parts} parts"
