"""A measured figure, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from zoo.spec.base import Spec
from zoo.spec.train import MetricName


class Measured(Spec):
    """One measured figure and how it was measured: logits averaged over views of so many parts."""

    split: Literal["train", "valid", "test"]
    metric: MetricName
    value: float
    num_views: int = Field(ge=1)
    num_parts: int = Field(ge=1)

    @property
    def protocol(self) -> str:
        """In words, how it was measured."""
        return protocol_in_words(self.num_views, self.num_parts)


def protocol_in_words(num_views: int, num_parts: int) -> str:
    """How predictions are made: on the whole graph, or averaged over views of it in parts."""
    if num_parts == 1:
        return "whole graph"
    return f"{num_views} view{'' if num_views == 1 else 's'} of {num_parts} parts"
