"""The model families as a discriminated union, and the solvers of equilibrium models.

Each family counts the parameters of its model by arithmetic.

What depends on the data (channels in and out) is not here: it is ``GraphShape``, read from the graph.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from zoo.spec.base import Spec
from zoo.spec.conv import Conv, Linear, Norm
from zoo.spec.plugins import Installed
from zoo.spec.shape import GraphShape

# A model of more parameters is refused before anything is built.
MAX_PARAMETERS = 20_000_000_000
# Of digits that damping drops and that an integer of 63 bits keeps for the way back.
_MAX_DROPPED_BITS = 53
Probability = Annotated[float, Field(ge=0, lt=1)]
NumLayers = Annotated[int, Field(ge=1, le=100_000)]
Channels = Annotated[int, Field(ge=1, le=65_536)]


class _EncodedSpec(Spec):
    """The shape of every family but RevGAT: node and edge encoders, a stack of layers, a linear head."""

    type: str
    hidden_channels: Channels
    dropout: Probability = 0.0

    @property
    def reads_edges(self) -> bool:
        """True if the model reads edge features where the graph has any."""
        return False

    @property
    def reads_edge_weight(self) -> bool:
        """True if the model reads edge weights where the graph has any."""
        return True

    def num_parameters(self, shape: GraphShape) -> int:
        """The number of parameters of the model for graphs of ``shape``."""
        # The encoders and the head depend on the graph, the stack between them does not.
        channels, categories = self.hidden_channels, shape.num_node_categories
        ends = [Linear(shape.num_node_features, channels), Linear(channels, shape.num_tasks)]
        if categories:
            ends.append(Linear(categories, categories))
        if self.reads_edges:
            ends.append(Linear(shape.num_edge_features, channels))
        return sum(linear.num_parameters for linear in ends) + self.num_stack_parameters()

    def num_stack_parameters(self) -> int:
        """The number of parameters between the encoders and the head."""
        raise NotImplementedError


class _GnnSpec(_EncodedSpec):
    conv: Conv

    @property
    def reads_edges(self) -> bool:
        """True if the convolution reads edge features."""
        return self.conv.reads_edges

    @property
    def reads_edge_weight(self) -> bool:
        """True if the convolution reads edge weights."""
        return self.conv.reads_edge_weight


class _LayeredSpec(_GnnSpec):
    num_layers: NumLayers
    num_distinct_layers: NumLayers | None = Field(
        default=None,
        description="how many layers have weights of their own; num_layers steps cycle through them; left out: all",
    )
    norm: Norm = "layer"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.num_built_layers > self.num_layers:
            raise ValueError(
                f"num_distinct_layers ({self.num_distinct_layers}) must be at most num_layers ({self.num_layers})"
            )
        return self

    @property
    def num_built_layers(self) -> int:
        """The number of layers that have weights of their own."""
        return self.num_layers if self.num_distinct_layers is None else self.num_distinct_layers

    @property
    def min_tensors(self) -> int:
        """The fewest tensors that the layers can have: the two of each norm."""
        return 2 * self.num_built_layers


class ResSpec(_LayeredSpec):
    """ResGNN, the deep residual network "res+" of arXiv 2006.07739: every layer has a dropout mask of its own."""

    type: Literal["res"]
    checkpoint: bool = Field(
        default=False, description="keep only the states between layers and compute the rest again in backward"
    )
    norm_position: Literal["pre", "post"] = Field(
        default="pre", description="post: h' = relu(norm(conv(h) + W h + b)), the layer of arXiv 2406.08993"
    )

    def num_stack_parameters(self) -> int:
        """Blocks of a norm and a convolution, with a linear residual if the norm comes last.

        With the norm first, the first step has none; the one that it would have stands before the head.
        """
        channels = self.hidden_channels
        residual = Linear(channels, channels).num_parameters if self.norm_position == "post" else 0
        # Layers that share weights count once, however many steps are taken.
        return self.num_built_layers * (2 * channels + self.conv.num_parameters(channels, channels) + residual)


class GCNIISpec(_EncodedSpec):
    """GCNII (arXiv 2007.02133): graph convolutions with initial residual and identity map.

    The linear map of layer l counts beta_l = log(1 + theta / l), the encoded features count ``alpha`` in every layer.
    """

    type: Literal["gcnii"]
    num_layers: NumLayers
    input_dropout: Probability = 0.0
    alpha: float = Field(default=0.1, ge=0, le=1)
    theta: float = Field(default=0.5, gt=0, le=1, description="lambda in the paper")

    @property
    def min_tensors(self) -> int:
        """A tensor for every layer."""
        return self.num_layers

    def num_stack_parameters(self) -> int:
        """A matrix for every layer."""
        return self.num_layers * self.hidden_channels**2


class RevSpec(_LayeredSpec):
    """RevGNN (arXiv 2106.07476): grouped reversible residual layers; training memory does not grow with depth."""

    type: Literal["rev"]
    num_groups: int = Field(default=2, ge=2, le=4096)
    reversible: bool = Field(default=True, description="false: the same model under plain autograd, for comparison")
    scale_by_depth: bool = Field(
        default=False,
        description="what a layer adds is multiplied by num_layers ** -0.5, so that many layers do not drown the input",
    )

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if self.hidden_channels % self.num_groups:
            raise ValueError(
                f"hidden_channels ({self.hidden_channels}) must be divisible by num_groups ({self.num_groups})"
            )
        return self

    @property
    def group_channels(self) -> int:
        """The channels of a group, C / G."""
        return self.hidden_channels // self.num_groups

    @property
    def min_tensors(self) -> int:
        """The fewest tensors that the layers can have: the two of each group's norm."""
        return super().min_tensors * self.num_groups

    def num_stack_parameters(self) -> int:
        """A norm and a convolution for every group of every layer, and the last norm."""
        # A group's convolution works on its own channels but reads edge embeddings of the whole width.
        block = 2 * self.group_channels + self.conv.num_parameters(self.group_channels, self.hidden_channels)
        return self.num_built_layers * self.num_groups * block + 2 * self.hidden_channels


class OscillatorSpec(_LayeredSpec):
    """Damped oscillators on a graph (GraphCON, arXiv 2202.02296): half of the channels are positions, half velocities.

    v' = (1 - damping step_size) v + step_size (tanh(f(x)) - stiffness x), x' = x + step_size v'. Training memory does
    not grow with ``num_layers``, the number of steps.
    """

    type: Literal["oscillator"]
    step_size: float = Field(default=1.0, gt=0, le=10, description="the time of a step, dt in the paper")
    damping: float = Field(default=0.01, ge=0, description="alpha in the paper; 0: velocities are kept")
    stiffness: float = Field(default=1.0, ge=0, description="gamma in the paper: the pull of positions to 0")

    @model_validator(mode="after")
    def _invertible(self) -> Self:
        if self.hidden_channels % 2:
            raise ValueError(f"hidden_channels ({self.hidden_channels}) must be even: positions and velocities")
        loss = Fraction(self.damping * self.step_size).limit_denominator(1000)
        if self.damping and not 0.001 <= loss <= 0.99:
            raise ValueError(
                f"damping x step_size must be 0 or 0.001 to 0.99, not {self.damping:g} x {self.step_size:g}"
            )
        # Multiplying by 1 - loss drops digits, which are kept in an integer of 63 bits.
        most = int(_MAX_DROPPED_BITS / -math.log2(1 - loss)) if loss else self.num_layers
        if self.num_layers > most:
            raise ValueError(
                f"num_layers ({self.num_layers}) is more than can be undone exactly with a damping x step_size of "
                f"{float(loss):g}: at most {most}, or less damping"
            )
        return self

    def num_stack_parameters(self) -> int:
        """A norm and a convolution of half the channels for every layer, and the last norm."""
        half = self.hidden_channels // 2
        # The convolution reads edge embeddings of the whole width.
        block = 2 * half + self.conv.num_parameters(half, self.hidden_channels)
        return self.num_built_layers * block + 2 * self.hidden_channels


Tolerance = Annotated[float, Field(gt=0, lt=1, description="relative residual at which a solve has converged")]
MaxIters = Annotated[int, Field(ge=1, le=10_000, description="evaluations of the equation a solve may use")]
History = Annotated[int, Field(ge=1, le=1000, description="differences kept: 2 x history x [N, C] of memory")]
_HISTORY = {"anderson": 5, "broyden": 10, "picard": None}


class FixedPointSpec(Spec):
    """A solve of z = f(z) for the whole [N, C] state: plain iteration (picard), or accelerated.

    ``anderson`` is Anderson acceleration, ``broyden`` Broyden's method with limited memory, which starts afresh when
    ``history`` updates are stored.
    """

    type: Literal["anderson", "broyden", "picard"]
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 30
    history: History | None = Field(default=None, description="left out: 5 for anderson, 10 for broyden")

    @model_validator(mode="before")
    @classmethod
    def _fill_history(cls, data: Any) -> Any:
        # The default is filled in here, since it depends on another key and a bundle spells out every default.
        method = _method(data)
        return data if method is None else {"history": _HISTORY[method], **data}

    @model_validator(mode="after")
    def _no_history(self) -> Self:
        if self.type == "picard" and self.history is not None:
            raise ValueError("history goes with anderson and broyden; a plain iteration keeps none")
        return self


class PhantomSpec(Spec):
    """The phantom gradient (arXiv 2111.05177): ``num_steps`` terms of the damped Neumann series, and no solve."""

    type: Literal["phantom"]
    num_steps: int = Field(default=5, ge=1, le=10_000)
    damping: float = Field(default=0.5, gt=0, le=1, description="1: not damped")


def _method(data: Any) -> str | None:
    """The type of a fixed point in data that are not yet checked; None if it is none."""
    method = data.get("type") if isinstance(data, dict) else None
    return method if isinstance(method, str) and method in _HISTORY else None


Backward = Annotated[FixedPointSpec | PhantomSpec, Field(discriminator="type")]


class ImplicitSolver(FixedPointSpec):
    """A fixed point with the implicit gradient: by default a solve of the same type, for the vjp at the solution."""

    # It evaluates the block of two convolutions once.
    num_convs_per_iter: ClassVar[int] = 2
    backward: Backward | None = Field(default=None, description="left out: the type of the forward solve")

    @model_validator(mode="before")
    @classmethod
    def _fill_backward(cls, data: Any) -> Any:
        # Filled in before the checks, so that the backward solve is checked and spelled out like a written one.
        method = _method(data)
        return data if method is None else {"backward": {"type": method}, **data}


class ReversibleSolver(Spec):
    """The reversible equilibrium (arXiv 2509.12917): two coupled damped iterations, differentiated by a reverse pass.

    The gradient is that of the iterations as they were run, converged or not; an iteration evaluates the equation
    twice.
    """

    num_convs_per_iter: ClassVar[int] = 4
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
                f"max_iters ({self.max_iters}) is more than can be reversed exactly with beta {self.beta}: "
                f"at most {most}, or a smaller beta"
            )
        return self


Solver = Annotated[ImplicitSolver | ReversibleSolver, Field(discriminator="type")]


class DeqSpec(_GnnSpec):
    """DEQ-GNN (arXiv 2106.07476): a block of two convolutions solved to its fixed point.

    The states solve z = f(z, x), x being the encoded node features.
    """

    type: Literal["deq"]
    solver: Solver = ImplicitSolver(type="anderson")
    weight_norm: Literal["none", "weight", "spectral"] = Field(
        default="none", description="reparametrize every linear map: length and direction apart, or largest gain 1"
    )
    num_warmup_epochs: int = Field(
        default=0, ge=0, description="train these first epochs on num_warmup_steps plain iterations instead of a solve"
    )
    num_warmup_steps: int = Field(default=3, ge=1, le=10_000)

    @model_validator(mode="after")
    def _weight_norm(self) -> Self:
        if self.weight_norm != "none" and not self.conv.allows_weight_norm:
            raise ValueError(
                f"weight_norm goes with the convolutions of this package, not with {self.conv.type!r}, whose linear "
                "maps are PyTorch Geometric's"
            )
        return self

    @property
    def num_layers(self) -> int:
        """The depth as other families count it: the most convolutions that a forward solve passes."""
        return self.solver.num_convs_per_iter * self.solver.max_iters

    def num_stack_parameters(self) -> int:
        """Two norms and two convolutions."""
        channels = self.hidden_channels
        conv = self.conv.num_parameters(channels, channels)
        if self.weight_norm == "weight":
            # Weight normalization stores a length for each output of a linear map.
            conv += sum(linear.num_out for linear in self.conv.linear_maps(channels, channels))
        return 2 * (2 * channels + conv)


class RevGATSpec(Spec):
    """RevGAT (arXiv 2106.07476, section 4.3): attention layers, all but the first and last reversible."""

    # Its attention looks at nodes alone.
    reads_edges: ClassVar[bool] = False
    reads_edge_weight: ClassVar[bool] = False
    type: Literal["rev_gat"]
    num_layers: int = Field(ge=3, le=100_000)
    hidden_channels: Channels = Field(description="width of the model: num_heads times the channels of a head")
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
        # Groups cut the channels of every head, so that each group is an attention layer with all heads.
        if self.hidden_channels % (self.num_heads * self.num_groups):
            raise ValueError(
                f"hidden_channels ({self.hidden_channels}) must be divisible by num_heads x num_groups "
                f"({self.num_heads} x {self.num_groups})"
            )
        return self

    @property
    def min_tensors(self) -> int:
        """The two of each norm, of which every group of a reversible layer has one."""
        return 2 * self.num_groups * (self.num_layers - 2)

    @property
    def head_channels(self) -> int:
        """The channels of a head."""
        return self.hidden_channels // self.num_heads

    def num_parameters(self, shape: GraphShape) -> int:
        """The number of parameters of the model for graphs of ``shape``."""
        # The first layer, the reversible ones with a norm per group, the last one with a norm before and a bias after.
        width, group = self.hidden_channels, self.hidden_channels // self.num_groups
        count = self._num_layer_parameters(shape.num_node_features, width)
        count += (self.num_layers - 2) * self.num_groups * (2 * group + self._num_layer_parameters(group, group))
        return count + self._num_layer_parameters(width, shape.num_tasks) + 2 * width + shape.num_tasks

    def _num_layer_parameters(self, num_in: int, num_out: int) -> int:
        # The map of the states, the residual map, and one attention vector per head and end of an edge.
        return 2 * num_in * num_out + (2 if self.attend_target else 1) * num_out


Model = Annotated[
    RevSpec | ResSpec | DeqSpec | OscillatorSpec | GCNIISpec | RevGATSpec,
    Field(discriminator="type"),
    Installed("families"),
]
