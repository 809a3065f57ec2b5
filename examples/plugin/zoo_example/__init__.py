"""The parts of this package, as recipes see them; nothing here imports torch."""

from typing import Literal

from pydantic import Field

from zoo.spec.base import Spec
from zoo.spec.conv import ConvSpec, Linear
from zoo.spec.plugins import Plugin
from zoo.spec.shape import GraphShape, Widths


class MultiHopSpec(ConvSpec):
    """The sum of a linear map of each mean over the neighbors, taken 0 to ``num_hops`` times."""

    type: Literal["multi_hop"]
    num_hops: int = Field(default=2, ge=1, le=8)

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """One map for each number of hops."""
        return [Linear(channels, channels)] * (self.num_hops + 1)


class SmoothSpec(Spec):
    """A linear map, ``num_layers`` means over the neighbors, and another linear map (as in arXiv 1902.07153)."""

    type: Literal["smooth"]
    num_layers: int = Field(default=2, ge=1, le=1000)
    hidden_channels: int = Field(default=16, ge=1, le=4096)

    @property
    def reads_edges(self) -> bool:
        """False: edges have no features here."""
        return False

    @property
    def reads_edge_weight(self) -> bool:
        """False: all neighbors count alike."""
        return False

    def num_parameters(self, shape: GraphShape) -> int:
        """The two linear maps."""
        channels = self.hidden_channels
        ends = Linear(shape.num_node_features, channels), Linear(channels, shape.num_tasks)
        return sum(linear.num_parameters for linear in ends)


MULTI_HOP = Plugin("zoo_example.parts:MultiHopConv", spec=MultiHopSpec)
SMOOTH = Plugin("zoo_example.parts:build_smooth", spec=SmoothSpec)
FOCAL = Plugin("zoo_example.parts:focal_loss", tasks=("multiclass",))
BALANCED_ACCURACY = Plugin("zoo_example.parts:balanced_accuracy", tasks=("multiclass",))
RINGS = Plugin("zoo_example.parts:RINGS", widths=Widths(node=4, edge=0, categories=0, tasks=3))
