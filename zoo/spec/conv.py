"""The convolutions and their aggregations; each class describes the parameters of its layer."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from zoo.spec.base import Spec

Norm = Literal["layer", "batch"]
PositiveFloat = Annotated[float, Field(gt=0)]


class AggrSpec(Spec):
    """The base of every aggregation."""

    @property
    def num_parameters(self) -> int:
        """The number of learned parameters."""
        return 0


class PlainAggr(AggrSpec):
    """Channel-wise maximum, mean or sum of the incoming messages."""

    type: Literal["max", "mean", "sum"]


class SoftmaxAggr(AggrSpec):
    """Sum of the messages weighted by a channel-wise softmax over each node's incoming messages.

    With ``scale_by_degree`` the result is multiplied by degree ** sigmoid(degree_logit).
    """

    type: Literal["softmax"]
    temperature: float = 1.0
    learn_temperature: bool = False
    detach_weights: bool = Field(default=False, description="no gradient flows through the softmax weights")
    scale_by_degree: bool = False
    degree_logit: float = 0.0
    learn_degree_logit: bool = False

    @property
    def num_parameters(self) -> int:
        """The temperature if it is learned, and the logit of the degree's exponent."""
        # The layer keeps this logit as a parameter even where it is not learned.
        return int(self.learn_temperature) + int(self.scale_by_degree)


class PowermeanAggr(AggrSpec):
    """Generalised mean (mean of m ** power) ** (1 / power) of messages clamped to [1e-7, 10].

    With ``scale_by_degree`` the result is multiplied by degree ** sigmoid(degree_logit).
    """

    type: Literal["powermean"]
    power: PositiveFloat = 1.0
    learn_power: bool = False
    scale_by_degree: bool = False
    degree_logit: float = 0.0
    learn_degree_logit: bool = False

    @property
    def num_parameters(self) -> int:
        """The power if it is learned, and the logit of the degree's exponent."""
        # As in SoftmaxAggr, the logit is a parameter even where it is not learned.
        return int(self.learn_power) + int(self.scale_by_degree)


Aggr = Annotated[PlainAggr | SoftmaxAggr | PowermeanAggr, Field(discriminator="type")]


class Linear(NamedTuple):
    """The sizes of a linear map."""

    # Convolutions list their maps, because weight normalization adds a parameter for each output of each map.
    num_in: int
    num_out: int
    has_bias: bool = True

    @property
    def num_parameters(self) -> int:
        """Entries of the matrix and the bias."""
        return self.num_in * self.num_out + self.num_out * self.has_bias


class ConvSpec(Spec):
    """The base of every convolution of C channels; it describes the parameters of its layer."""

    @property
    def reads_edges(self) -> bool:
        """True if the convolution reads edge features."""
        return False

    @property
    def slices_edges(self) -> bool:
        """True if the groups of a reversible layer share one edge embedding, of which each reads its slice."""
        return False

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """The linear maps of the layer.

        Args:
            channels: C, in and out.
            embedding_channels: width of the edge embeddings.
        """
        raise NotImplementedError

    def layer_arguments(self, embedding_channels: int, norm: Norm) -> dict[str, Any]:
        """The keyword arguments of the layer beside C: by default the keys of the spec.

        Args:
            embedding_channels: width of the edge embeddings.
            norm: normalization of the model.
        """
        return self.model_dump(exclude={"type"})

    def num_other_parameters(self, channels: int) -> int:
        """The number of parameters beside those of the linear maps, for C ``channels``."""
        return 0

    def num_parameters(self, channels: int, embedding_channels: int) -> int:
        """The number of parameters of the layer; the arguments are those of ``linear_maps``."""
        maps = self.linear_maps(channels, embedding_channels)
        return sum(linear.num_parameters for linear in maps) + self.num_other_parameters(channels)


class GenConvSpec(ConvSpec):
    """GENConv (arXiv 2006.07739): messages relu(x_j + e_ij) + eps, joined by ``aggr``, then an MLP on x_i + m_i."""

    type: Literal["gen"]
    aggr: Aggr = PlainAggr(type="max")
    num_mlp_layers: int = Field(default=2, ge=1, le=16)
    edge_encoder: Literal["none", "shared", "per_layer"] = Field(
        default="none",
        description="edge features: ignored, encoded once for all layers, or also projected by each layer",
    )
    message_norm: bool = False
    learn_message_scale: bool = False

    @property
    def reads_edges(self) -> bool:
        """True unless edge features are ignored."""
        return self.edge_encoder != "none"

    @property
    def slices_edges(self) -> bool:
        """True for an embedding that is encoded once for all layers and not projected."""
        return self.edge_encoder == "shared"

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """The MLP, which is twice as wide inside, and the projection of edge embeddings."""
        edge = [Linear(embedding_channels, channels)] if self.edge_encoder == "per_layer" else []
        return [*(Linear(*pair) for pair in itertools.pairwise(self._widths(channels))), *edge]

    def num_other_parameters(self, channels: int) -> int:
        """The norms between the maps of the MLP, the scale of message norm, and the aggregation."""
        norms = sum(2 * width for width in self._widths(channels)[1:-1])
        # The scale is stored even where it is not learned.
        return norms + int(self.message_norm) + self.aggr.num_parameters

    def layer_arguments(self, embedding_channels: int, norm: Norm) -> dict[str, Any]:
        """The keys of the spec, those of the aggregation flat beside them, and what the MLP and the projection need."""
        arguments = self.model_dump(exclude={"type", "aggr", "edge_encoder"})
        # Layers know no specs: the keys of the aggregation become arguments of the layer itself.
        aggr = self.aggr.model_dump()
        width = embedding_channels if self.edge_encoder == "per_layer" else None
        return {**arguments, "aggr": aggr.pop("type"), **aggr, "embedding_channels": width, "norm": norm}

    def _widths(self, channels: int) -> list[int]:
        return [channels, *[2 * channels] * (self.num_mlp_layers - 1), channels]


class GCNConvSpec(ConvSpec):
    """Graph convolution with symmetric normalization and self-loops (arXiv 1609.02907)."""

    type: Literal["gcn"]

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """One map of the states."""
        return [Linear(channels, channels)]


class SAGEConvSpec(ConvSpec):
    """GraphSAGE: the mean of the neighbors and the node itself, each through a linear map (arXiv 1706.02216)."""

    type: Literal["sage"]

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """A map of the mean of the neighbors, and one of the node itself."""
        return [Linear(channels, channels), Linear(channels, channels, has_bias=False)]


class GATConvSpec(ConvSpec):
    """Graph attention, heads averaged (arXiv 1710.10903)."""

    type: Literal["gat"]
    num_heads: int = Field(default=1, ge=1, le=1024)

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """One map for all heads."""
        return [Linear(channels, self.num_heads * channels, has_bias=False)]

    def num_other_parameters(self, channels: int) -> int:
        """Two attention vectors for each head, and the bias."""
        # Heads are averaged before the bias is added, so it has C entries and not heads x C.
        return 2 * self.num_heads * channels + channels


Conv = Annotated[GenConvSpec | GCNConvSpec | SAGEConvSpec | GATConvSpec, Field(discriminator="type")]
