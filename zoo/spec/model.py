"""The model families as a discriminated union.

What depends on the data (channels in and out) is not here: it is ``GraphShape``, read from the graph.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from zoo.spec.base import Spec

Norm = Literal["layer", "batch"]
Probability = Annotated[float, Field(ge=0, lt=1)]
NumLayers = Annotated[int, Field(ge=1, le=100_000)]
Channels = Annotated[int, Field(ge=1, le=65_536)]
PositiveFloat = Annotated[float, Field(gt=0)]


class MaxAggr(Spec):
    """Channel-wise maximum over the incoming messages."""

    type: Literal["max"]


class MeanAggr(Spec):
    """Mean of the incoming messages."""

    type: Literal["mean"]


class SumAggr(Spec):
    """Sum of the incoming messages."""

    type: Literal["sum"]


class SoftmaxAggr(Spec):
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


class PowermeanAggr(Spec):
    """Generalised mean (mean of m ** power) ** (1 / power) of messages clamped to [1e-7, 10].

    With ``scale_by_degree`` the result is multiplied by degree ** sigmoid(degree_logit).
    """

    type: Literal["powermean"]
    power: PositiveFloat = 1.0
    learn_power: bool = False
    scale_by_degree: bool = False
    degree_logit: float = 0.0
    learn_degree_logit: bool = False


Aggr = Annotated[MaxAggr | MeanAggr | SumAggr | SoftmaxAggr | PowermeanAggr, Field(discriminator="type")]


class GenConvSpec(Spec):
    """GENConv (arXiv 2006.07739): messages relu(x_j + e_ij) + eps, joined by ``aggr``, then an MLP on x_i + m_i."""

    type: Literal["gen"]
    aggr: Aggr = MaxAggr(type="max")
    num_mlp_layers: int = Field(default=2, ge=1, le=16)
    edge_encoder: Literal["none", "shared", "per_layer"] = Field(
        default="none",
        description="edge features: ignored, encoded once for all layers, or also projected by each layer",
    )
    message_norm: bool = False
    learn_message_scale: bool = False


class GCNConvSpec(Spec):
    """Graph convolution with symmetric normalisation and self-loops (arXiv 1609.02907)."""

    type: Literal["gcn"]


class SAGEConvSpec(Spec):
    """GraphSAGE: the mean of the neighbours and the node itself, each through a linear map (arXiv 1706.02216)."""

    type: Literal["sage"]


class GATConvSpec(Spec):
    """Graph attention, heads averaged (arXiv 1710.10903)."""

    type: Literal["gat"]
    num_heads: int = Field(default=1, ge=1, le=1024)


Conv = Annotated[GenConvSpec | GCNConvSpec | SAGEConvSpec | GATConvSpec, Field(discriminator="type")]


def _divisible(channels: int, num_groups: int, key: str) -> None:
    if channels % num_groups:
        raise ValueError(f"{key} ({channels}) must be divisible by num_groups ({num_groups})")


class RevSpec(Spec):
    """RevGNN (arXiv 2106.07476): grouped reversible residual layers; training memory does not grow with depth."""

    type: Literal["rev"]
    num_layers: NumLayers
    hidden_channels: Channels
    conv: Conv
    num_groups: int = Field(default=2, ge=2, le=4096)
    dropout: Probability = 0.0
    norm: Norm = "layer"
    reversible: bool = Field(default=True, description="false: the same model under plain autograd, for comparison")

    @model_validator(mode="after")
    def _groups(self) -> Self:
        _divisible(self.hidden_channels, self.num_groups, "hidden_channels")
        return self


class RevGATSpec(Spec):
    """RevGAT (arXiv 2106.07476, section 4.3): attention layers, all but the first and last reversible."""

    type: Literal["rev_gat"]
    num_layers: int = Field(ge=3, le=100_000)
    hidden_channels: Channels = Field(description="channels of each head")
    num_heads: int = Field(default=1, ge=1, le=1024)
    num_groups: int = Field(default=2, ge=2, le=4096)
    dropout: Probability = 0.0
    input_dropout: Probability = 0.0
    edge_dropout: Probability = 0.0
    attend_target: bool = Field(default=False, description="attention logits also read the target node")
    symmetric_norm: bool = True
    norm: Norm = "batch"
    reversible: bool = True

    @model_validator(mode="after")
    def _groups(self) -> Self:
        _divisible(self.hidden_channels, self.num_groups, "hidden_channels")
        return self


Model = Annotated[RevSpec | RevGATSpec, Field(discriminator="type")]
