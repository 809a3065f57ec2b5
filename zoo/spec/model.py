"""The model families as a discriminated union.

What depends on the data (channels in and out) is not here: it is ``GraphShape``, read from the graph.
"""

from __future__ import annotations

import math
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


class _ConvSpec(Spec):
    @property
    def reads_edges(self) -> bool:
        """Whether the convolution reads edge features."""
        return False


class GenConvSpec(_ConvSpec):
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

    @property
    def reads_edges(self) -> bool:
        """Whether the convolution reads edge features."""
        return self.edge_encoder != "none"


class GCNConvSpec(_ConvSpec):
    """Graph convolution with symmetric normalisation and self-loops (arXiv 1609.02907)."""

    type: Literal["gcn"]


class SAGEConvSpec(_ConvSpec):
    """GraphSAGE: the mean of the neighbours and the node itself, each through a linear map (arXiv 1706.02216)."""

    type: Literal["sage"]


class GATConvSpec(_ConvSpec):
    """Graph attention, heads averaged (arXiv 1710.10903)."""

    type: Literal["gat"]
    num_heads: int = Field(default=1, ge=1, le=1024)


Conv = Annotated[GenConvSpec | GCNConvSpec | SAGEConvSpec | GATConvSpec, Field(discriminator="type")]


def _divisible(channels: int, num_groups: int, key: str) -> None:
    if channels % num_groups:
        raise ValueError(f"{key} ({channels}) must be divisible by num_groups ({num_groups})")


NumDistinctLayers = Annotated[
    NumLayers | None,
    Field(description="how many layers have weights of their own; num_layers steps cycle through them; left out: all"),
]


def _tied(num_distinct_layers: int | None, num_layers: int) -> None:
    if num_distinct_layers is not None and num_distinct_layers > num_layers:
        raise ValueError(f"num_distinct_layers ({num_distinct_layers}) must be at most num_layers ({num_layers})")


class ResSpec(Spec):
    """ResGNN, the deep residual network "res+" of arXiv 2006.07739: every layer has a dropout mask of its own."""

    type: Literal["res"]
    num_layers: NumLayers
    num_distinct_layers: NumDistinctLayers = None
    hidden_channels: Channels
    conv: Conv
    dropout: Probability = 0.0
    norm: Norm = "layer"
    checkpoint: bool = Field(
        default=False, description="keep only the states between layers and compute the rest again in backward"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _tied(self.num_distinct_layers, self.num_layers)
        return self

    @property
    def reads_edges(self) -> bool:
        """Whether the model reads edge features, if the graph has any."""
        return self.conv.reads_edges


class RevSpec(Spec):
    """RevGNN (arXiv 2106.07476): grouped reversible residual layers; training memory does not grow with depth."""

    type: Literal["rev"]
    num_layers: NumLayers
    num_distinct_layers: NumDistinctLayers = None
    hidden_channels: Channels
    conv: Conv
    num_groups: int = Field(default=2, ge=2, le=4096)
    dropout: Probability = 0.0
    norm: Norm = "layer"
    reversible: bool = Field(default=True, description="false: the same model under plain autograd, for comparison")

    @model_validator(mode="after")
    def _groups(self) -> Self:
        _divisible(self.hidden_channels, self.num_groups, "hidden_channels")
        _tied(self.num_distinct_layers, self.num_layers)
        return self

    @property
    def reads_edges(self) -> bool:
        """Whether the model reads edge features, if the graph has any."""
        return self.conv.reads_edges


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

    @property
    def reads_edges(self) -> bool:
        """Whether the model reads edge features, if the graph has any."""
        return False


Tolerance = Annotated[float, Field(gt=0, lt=1, description="relative residual at which a solve has converged")]
MaxIters = Annotated[int, Field(ge=1, le=10_000, description="evaluations of the equation a solve may use")]
History = Annotated[int, Field(ge=1, le=1000, description="differences remembered: 2 x history x [N, C] of memory")]


class AndersonBackward(Spec):
    """The implicit gradient, its linear equation solved by Anderson acceleration."""

    type: Literal["anderson"]
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 30
    history: History = 5


class BroydenBackward(Spec):
    """The implicit gradient, its linear equation solved by Broyden's method."""

    type: Literal["broyden"]
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 30
    history: History = 10


class PicardBackward(Spec):
    """The implicit gradient, its linear equation solved by plain iteration: the Neumann series."""

    type: Literal["picard"]
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 30


class PhantomBackward(Spec):
    """The phantom gradient (arXiv 2111.05177): ``num_steps`` terms of the damped Neumann series, and no solve."""

    type: Literal["phantom"]
    num_steps: int = Field(default=5, ge=1, le=10_000)
    damping: float = Field(default=0.5, gt=0, le=1, description="1: not damped")


Backward = Annotated[AndersonBackward | BroydenBackward | PicardBackward | PhantomBackward, Field(discriminator="type")]


class AndersonSolver(Spec):
    """Anderson acceleration of the whole [N, C] state."""

    type: Literal["anderson"]
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 30
    history: History = 5
    backward: Backward = AndersonBackward(type="anderson")


class BroydenSolver(Spec):
    """Broyden's method with limited memory; when ``history`` updates are stored it starts afresh from where it is."""

    type: Literal["broyden"]
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 30
    history: History = 10
    backward: Backward = BroydenBackward(type="broyden")


class PicardSolver(Spec):
    """Plain iteration z = f(z)."""

    type: Literal["picard"]
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 30
    backward: Backward = PicardBackward(type="picard")


_MAX_DROPPED_BITS = 53


class ReversibleSolver(Spec):
    """The reversible equilibrium (arXiv 2509.12917): two coupled damped iterations, differentiated by running back.

    The gradient is that of the iterations as they were run, converged or not; an iteration evaluates the equation
    twice.
    """

    type: Literal["reversible"]
    beta: float = Field(
        default=0.8, ge=0.01, le=0.99, description="how far an iteration goes; 1 would be plain iteration"
    )
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 12

    @model_validator(mode="after")
    def _invertible(self) -> Self:
        # Multiplying by 1 - beta drops digits, which are kept in an integer of 63 bits.
        most = int(_MAX_DROPPED_BITS / -math.log2(1 - self.beta))
        if self.max_iters > most:
            raise ValueError(
                f"max_iters ({self.max_iters}) is more than can be run back exactly with beta {self.beta}: "
                f"at most {most}, or a smaller beta"
            )
        return self


Solver = Annotated[AndersonSolver | BroydenSolver | PicardSolver | ReversibleSolver, Field(discriminator="type")]


class DeqSpec(Spec):
    """DEQ-GNN (arXiv 2106.07476): one block of two convolutions, and the node states that it leaves as they are.

    The states solve z = f(z, x), x being the encoded node features.
    """

    type: Literal["deq"]
    hidden_channels: Channels
    conv: Conv
    dropout: Probability = 0.0
    solver: Solver = AndersonSolver(type="anderson")
    weight_norm: Literal["none", "weight", "spectral"] = Field(
        default="none", description="reparametrise every linear map: length and direction apart, or largest gain 1"
    )
    num_warmup_epochs: int = Field(
        default=0, ge=0, description="train these first epochs on num_warmup_steps plain iterations instead of a solve"
    )
    num_warmup_steps: int = Field(default=3, ge=1, le=10_000)

    @property
    def num_layers(self) -> int:
        """The convolutions that a forward solve passes at most: two in each evaluation of the equation."""
        evaluations = 2 if isinstance(self.solver, ReversibleSolver) else 1
        return 2 * evaluations * self.solver.max_iters

    @property
    def reads_edges(self) -> bool:
        """Whether the model reads edge features, if the graph has any."""
        return self.conv.reads_edges


Model = Annotated[RevSpec | ResSpec | DeqSpec | RevGATSpec, Field(discriminator="type")]
