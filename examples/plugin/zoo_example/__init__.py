"""The parts of this package, as recipes see them; nothing here imports torch."""

from typing import Literal

from pydantic import Field

from zoo.spec.conv import ConvSpec, Linear
from zoo.spec.plugins import Plugin
from zoo.spec.shape import Widths


class MultiHopSpec(ConvSpec):
    """The sum of a linear map of each mean over the neighbors, taken 0 to ``num_hops`` times."""

    type: Literal["multi_hop"]
    num_hops: int = Field(default=2, ge=1, le=8)

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """One map for each number of hops."""
        return [Linear(channels, channels)] * (self.num_hops + 1)


MULTI_HOP = Plugin("zoo_example.parts:MultiHopConv", spec=MultiHopSpec)
FOCAL = Plugin("zoo_example.parts:focal_loss", tasks=("multiclass",))
BALANCED_ACCURACY = Plugin("zoo_example.parts:balanced_accuracy", tasks=("multiclass",))
RINGS = Plugin("zoo_example.parts:RINGS", widths=Widths(node=4, edge=0, categories=0, tasks=3))
