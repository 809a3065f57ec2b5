"""The convolutions and their aggregations; each class describes the parameters of its layer."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from zoo.spec.base import Spec
from zoo.spec.plugins import Installed

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
    detach_weights: bool = Field(default=False, description="no gradient is taken through the softmax weights")
    scale_by_degree: bool = False
    degree_logit: float = 0.0
    learn_degree_logit: bool = False

    @property
    def num_parameters(self) -> int:
        """The temperature if it is learned, and the logit of the degree's exponent."""
        # The layer keeps this logit as a parameter even where it is not learned.
        return int(self.learn_temperature) + int(self.scale_by_degree)


class PowermeanAggr(AggrSpec):
    """Generalized mean (mean of m ** power) ** (1 / power) of messages clamped to [1e-7, 10].

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
    """The base of every convolution of C channels; it describes the parameters of its layer.

    Attributes:
        allows_weight_norm: True if ``linear_maps`` lists all linear maps, which weight normalization reparametrizes.
        reads_edge_weight: True if the layer multiplies messages by the weights of edges.
    """

    allows_weight_norm: ClassVar[bool] = True
    reads_edge_weight: ClassVar[bool] = False

    @property
    def reads_edges(self) -> bool:
        """True if the convolution reads edge features."""
        return False

    @property
    def slices_edges(self) -> bool:
        """True if the groups of a reversible layer share one edge embedding, of which each reads its slice."""
        return False

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """The linear maps of a layer of C channels; none if ``num_other_parameters`` counts all."""
        return []

    def layer_arguments(self, embedding_channels: int, norm: Norm) -> dict[str, Any]:
        """The keyword arguments of the layer beside C: by default the keys of the spec."""
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

    reads_edge_weight: ClassVar[bool] = True
    type: Literal["gcn"]

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """One map of the states."""
        return [Linear(channels, channels)]


class SAGEConvSpec(ConvSpec):
    """GraphSAGE: the mean of the neighbors and the node itself, each through a linear map (arXiv 1706.02216)."""

    reads_edge_weight: ClassVar[bool] = True
    type: Literal["sage"]

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """A map of the mean of the neighbors, and one of the node itself."""
        return [Linear(channels, channels), Linear(channels, channels, has_bias=False)]


class GATConvSpec(ConvSpec):
    """Graph attention, heads averaged (arXiv 1710.10903)."""

    reads_edge_weight: ClassVar[bool] = True
    type: Literal["gat"]
    num_heads: int = Field(default=1, ge=1, le=1024)

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """One map for all heads."""
        return [Linear(channels, self.num_heads * channels, has_bias=False)]

    def num_other_parameters(self, channels: int) -> int:
        """Two attention vectors for each head, and the bias."""
        # Heads are averaged before the bias is added, so it has C entries and not heads x C.
        return 2 * self.num_heads * channels + channels


PygName = Literal["gin", "gine", "res_gated", "graph", "film", "le"]
PygAttentionName = Literal["gatv2", "transformer", "general"]


class PygConvSpec(ConvSpec):
    """Convolutions of PyTorch Geometric, run by its own layers.

    GIN (arXiv 1810.00826), GINE, which reads edge features (1905.12265), residual gated graph convolution (1711.07553),
    GraphConv of k-GNNs (1810.02244), GNN-FiLM (1906.12192), LEConv of ASAP (1911.07979).
    """

    # Weight normalization finds nn.Linear alone; PyTorch Geometric's layers have a linear map of their own.
    allows_weight_norm: ClassVar[bool] = False
    type: PygName

    @property
    def reads_edges(self) -> bool:
        """True for GINE, whose messages are relu(x_j + e_ij)."""
        return self.type == "gine"

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        """The projection of edge embeddings; the maps inside PyTorch Geometric's layers are counted as a whole."""
        return [Linear(embedding_channels, channels)] if self.reads_edges else []

    def num_other_parameters(self, channels: int) -> int:
        """Entries of all matrices, vectors and scalars."""
        matrices, vectors, scalars = _PYG_SIZES[self.type]
        return matrices * channels**2 + vectors * channels + scalars

    def layer_arguments(self, embedding_channels: int, norm: Norm) -> dict[str, Any]:
        """The width of the edge embeddings where they are read."""
        return {"embedding_channels": embedding_channels} if self.reads_edges else {}


# The number of C x C matrices, vectors of C entries, and scalars.
_PYG_SIZES: dict[PygName, tuple[int, int, int]] = {
    "gin": (4, 3, 1),
    "gine": (4, 3, 1),
    "res_gated": (4, 4, 0),
    "graph": (2, 1, 0),
    "film": (6, 2, 0),
    "le": (3, 2, 0),
}


class PygAttentionSpec(ConvSpec):
    """Attention of PyTorch Geometric, heads averaged: GATv2 (arXiv 2105.14491), the graph transformer (2009.03509).

    ``general`` is the additive attention of the design space of GNNs (2011.08843).
    """

    allows_weight_norm: ClassVar[bool] = False
    type: PygAttentionName
    num_heads: int = Field(default=1, ge=1, le=1024)

    def num_other_parameters(self, channels: int) -> int:
        """The matrices and vectors of each head, and those that all heads share."""
        matrices, vectors, shared_matrices, shared_vectors = _PYG_ATTENTION_SIZES[self.type]
        head = matrices * channels**2 + vectors * channels
        return self.num_heads * head + shared_matrices * channels**2 + shared_vectors * channels


# The number of C x C matrices and vectors of C entries, of each head and of all together.
_PYG_ATTENTION_SIZES: dict[PygAttentionName, tuple[int, int, int, int]] = {
    "gatv2": (2, 3, 0, 1),
    "transformer": (3, 3, 1, 1),
    "general": (1, 2, 0, 0),
}


class PygHopsSpec(ConvSpec):
    """Polynomials of the normalized adjacency, by PyTorch Geometric: ChebConv (arXiv 1606.09375), TAGConv (1710.10370).

    A convolution reaches ``num_hops`` steps far.
    """

    allows_weight_norm: ClassVar[bool] = False
    type: Literal["cheb", "tag"]
    num_hops: int = Field(default=2, ge=1, le=64)

    def num_other_parameters(self, channels: int) -> int:
        """A matrix for each power, the zeroth included, and the bias."""
        return (self.num_hops + 1) * channels**2 + channels


class PNAConvSpec(ConvSpec):
    """Principal neighborhood aggregation (arXiv 2004.05718), by PyTorch Geometric.

    Mean, minimum, maximum and standard deviation, each as it is, times s and divided by s, where s is
    log(degree + 1) / log(mean_degree + 1).
    """

    allows_weight_norm: ClassVar[bool] = False
    type: Literal["pna"]
    mean_degree: int = Field(ge=1, le=1_000_000, description="the usual number of incoming edges of a node")

    def num_other_parameters(self, channels: int) -> int:
        """Maps of 2 C to C for messages, of 13 C to C for x and the 12 aggregates, of C to C, each with a bias."""
        # The last but one reads x beside four aggregates, each scaled in three ways.
        return 16 * channels**2 + 3 * channels


Conv = Annotated[
    GenConvSpec | GCNConvSpec | SAGEConvSpec | GATConvSpec | PygConvSpec | PygAttentionSpec | PygHopsSpec | PNAConvSpec,
    Field(discriminator="type"),
    Installed("convs"),
]
