"""Graph convolutions on CSR: each maps [N, C] node states to [N, C] and is called as ``conv(x, inputs)``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.block import NORMS, NormName, dropout, is_plain, normed_relu
from zoo.layers.inputs import BlockInputs
from zoo.layers.pyg_conv import PYG_CONVS, PygConv
from zoo.ops.csr import CSR, edge_targets, out_degrees, segment_softmax, without_loops
from zoo.ops.gen_aggregate import Aggr, gen_aggregate
from zoo.ops.weighted_sum import weighted_sum


def reads_edge_weight(module: nn.Module) -> bool:
    """True if a convolution, or one inside a module, multiplies messages by ``inputs.edge_weight``."""
    return any(isinstance(child, GCNConv | GCNIILayer | SAGEConv | GATConv) for child in module.modules())


def _refuse_edge_weight(module: nn.Module, inputs: BlockInputs) -> None:
    if inputs.edge_weight is not None:
        name = type(module).__name__
        raise ValueError(f"{name} reads no edge weights: leave edge_weight out, or use GCN, SAGE or GAT")


class GENConv(nn.Module):
    """x_i' = MLP(x_i + a_i), a_i = aggr over the incoming edges (j, i) of relu(x_j + e_ij) + eps.

    With ``scale_by_degree`` a_i is multiplied by degree_i ** sigmoid(degree_logit), with ``message_norm`` it becomes
    scale * ||x_i|| * a_i / ||a_i||.

    Args:
        channels: C.
        aggr: combines the messages.
        temperature: inverse temperature of aggr "softmax".
        power: exponent of aggr "powermean".
        learn_temperature, learn_power: make it a parameter.
        detach_weights: no gradient through the softmax weights.
        scale_by_degree, degree_logit, message_norm: see above.
        learn_degree_logit, learn_message_scale: train it; otherwise it is a parameter without gradient.
        embedding_channels: width of the edge embeddings that this layer projects to its own channels; None: they are
            the e_ij as they come.
        num_mlp_layers: linear layers of the MLP; all but the last are followed by norm and ReLU, twice as wide.
        norm: normalization inside the MLP.

    Source: GENConv, arXiv 2006.07739.
    """

    def __init__(
        self,
        channels: int,
        *,
        aggr: Aggr = "max",
        temperature: float = 1.0,
        learn_temperature: bool = False,
        detach_weights: bool = False,
        power: float = 1.0,
        learn_power: bool = False,
        scale_by_degree: bool = False,
        degree_logit: float = 0.0,
        learn_degree_logit: bool = False,
        embedding_channels: int | None = None,
        num_mlp_layers: int = 2,
        norm: NormName = "layer",
        message_norm: bool = False,
        learn_message_scale: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.aggr: Aggr = aggr
        self.detach_weights = detach_weights
        self.temperature = _scalar(temperature) if learn_temperature else temperature
        self.power = _scalar(power) if learn_power else power
        self.degree_logit = _scalar(degree_logit, learn=learn_degree_logit) if scale_by_degree else None
        self.message_scale = _scalar(1.0, learn=learn_message_scale) if message_norm else None
        self.edge_linear = None if embedding_channels is None else nn.Linear(embedding_channels, channels)
        widths = [channels] + [2 * channels] * (num_mlp_layers - 1) + [channels]
        modules: list[nn.Module] = []
        for num_in, num_out in itertools.pairwise(widths):
            modules += [nn.Linear(num_in, num_out), NORMS[norm](num_out), nn.ReLU()]
        self.mlp = MLP(*modules[:-2])

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"{self.channels}, aggr={self.aggr}"

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] to [N, C]."""
        _refuse_edge_weight(self, inputs)
        edges = inputs.edges
        if edges is not None and self.edge_linear is not None:
            edges = edges.project(self.edge_linear)
        message = gen_aggregate(
            x,
            inputs.csr,
            edges,
            aggr=self.aggr,
            temperature=self.temperature,
            power=self.power,
            detach_weights=self.detach_weights,
        )
        if self.degree_logit is not None:
            degree = inputs.csr.rowptr.diff().to(x.dtype).unsqueeze(1)
            message = message * degree ** torch.sigmoid(self.degree_logit)
        if self.message_scale is not None:
            message = F.normalize(message, dim=1) * x.norm(dim=1, keepdim=True) * self.message_scale
        # The backward pass of max needs only the winning edges, so its output may be overwritten.
        return cast(Tensor, self.mlp(message.add_(x) if self.aggr == "max" else x + message))


class MLP(nn.Sequential):
    """A sequence whose plain layer norms are computed together with the ReLU after them."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in] to [N, C_out]."""
        modules = list(self)
        while modules:
            module = modules.pop(0)
            if modules and type(modules[0]) is nn.ReLU and is_plain(modules[0]):
                modules.pop(0)
                x = normed_relu(module, x)
            else:
                x = module(x)
        return x


def _scalar(value: float, *, learn: bool = True) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value]), requires_grad=learn)


class GCNConv(nn.Module):
    """X' = D^-1/2 (A + I) D^-1/2 X W + b, where D holds the degrees of A + I.

    Every node has a single self-loop: those that A already has are left out. With edge weights A holds them, a node's
    degree is the sum of those of its incoming edges, and a self-loop that A has keeps its weight in place of 1.

    >>> edge_index, edge_weight = torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.5, 2.0])
    >>> inputs = BlockInputs.from_edges(edge_index, edge_weight=edge_weight, num_nodes=3)
    >>> GCNConv(4)(torch.rand(3, 4), inputs).shape
    torch.Size([3, 4])

    Source: arXiv 1609.02907.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels, bias=False)
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] to [N, C]."""
        return propagate(self.linear(x), inputs) + self.bias


def propagate(x: Tensor, inputs: BlockInputs) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 X, with the self-loops and the weights of :class:`GCNConv`."""
    # Self-loops that the graph already has are the one self-loop, not a second.
    edge_weight, weight, loop = inputs.edge_weight, None, None
    if edge_weight is None and torch.compiler.is_compiling():
        edge_weight = x.new_ones(inputs.csr.num_edges)
    if edge_weight is None:
        others = without_loops(inputs.csr)
        degree = (others.rowptr.diff() + 1).to(x.dtype).unsqueeze(1)
    else:
        others, weight, loop = _split_loops(inputs.csr, edge_weight.to(x.dtype))
        degree = weighted_sum(torch.ones_like(loop), others, weight) + loop
    # A node whose weights do not sum to a positive number gets zero; the 1 in its place keeps gradients finite.
    isolated = degree <= 0
    scale = degree.masked_fill(isolated, 1).rsqrt().masked_fill(isolated, 0)
    h = x * scale
    own = h if loop is None else h * loop
    return (weighted_sum(h, others, weight) + own) * scale


def _split_loops(csr: CSR, weight: Tensor) -> tuple[CSR, Tensor, Tensor]:
    """The edges between different nodes, their [E'] weights, and [N, 1] those of self-loops, 1 where there is none."""
    targets = edge_targets(csr)
    loops = csr.col == targets
    if torch.compiler.is_compiling():
        # The number of loops is not known yet, so they stay among the edges with weight 0; an unused row takes what
        # other edges write.
        own = weight.new_ones(csr.num_nodes + 1).index_put((targets.masked_fill(~loops, csr.num_nodes),), weight)
        return csr, weight.masked_fill(loops, 0), own[:-1].unsqueeze(1)
    own = weight.new_ones(csr.num_nodes).index_put((targets[loops],), weight[loops])
    return without_loops(csr), weight[~loops], own.unsqueeze(1)


class GCNIILayer(nn.Module):
    """X' = relu((1 - beta) S + beta S W), S = (1 - alpha) P dropout(X) + alpha X_0, P as in :class:`GCNConv`.

    X_0, the ``initial`` of the inputs, keeps deep stacks from smoothing all nodes into one; the identity beside W keeps
    its effect small where beta is.

    Source: arXiv 2007.02133, equation 5.
    """

    def __init__(self, channels: int, *, alpha: float, beta: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.alpha, self.beta, self.dropout = alpha, beta, dropout
        self.linear = nn.Linear(channels, channels, bias=False)

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"alpha={self.alpha}, beta={self.beta:.4f}"

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] to [N, C]."""
        assert inputs.initial is not None  # the stack sets it
        h = propagate(dropout(x, self.dropout, training=self.training), inputs)
        h = (1 - self.alpha) * h + self.alpha * inputs.initial
        return cast(Tensor, (1 - self.beta) * h + self.beta * self.linear(h)).relu()


class SAGEConv(nn.Module):
    """x_i' = W_l mean_j w_ij x_j + b + W_r x_i, the mean over the incoming edges (j, i) of weights w_ij, or 1.

    Source: arXiv 1706.02216.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.neighbour = nn.Linear(channels, channels)
        self.root = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] to [N, C]."""
        csr = inputs.csr
        degree = csr.rowptr.diff().clamp(min=1).to(x.dtype).unsqueeze(1)
        return cast(Tensor, self.neighbour(weighted_sum(x, csr, inputs.edge_weight) / degree) + self.root(x))


class GATConv(nn.Module):
    """x_i' = mean over heads of sum_j alpha_ij h_j + b, with h = W x and alpha_ij = softmax_j(s_ij).

    The scores are s_ij = leaky_relu(a_s . h_j + a_t . h_i, 0.2); a node attends to its incoming edges (j, i), and no
    self-loop is added. With edge weights h_j counts w_ij alpha_ij.

    Source: arXiv 1710.10903.
    """

    def __init__(self, channels: int, *, num_heads: int = 1) -> None:
        super().__init__()
        self.channels, self.num_heads = channels, num_heads
        self.linear = nn.Linear(channels, num_heads * channels, bias=False)
        self.attend_source = nn.Parameter(torch.empty(num_heads, channels))
        self.attend_target = nn.Parameter(torch.empty(num_heads, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        for weight in (self.linear.weight, self.attend_source, self.attend_target):
            nn.init.xavier_uniform_(weight)

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"{self.channels}, num_heads={self.num_heads}"

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] to [N, C]."""
        csr = inputs.csr
        h = self.linear(x).view(x.size(0), self.num_heads, -1)  # [N, H, C]
        source_score = (h * self.attend_source).sum(-1).index_select(0, csr.col)
        target_score = (h * self.attend_target).sum(-1).index_select(0, edge_targets(csr))
        weight = segment_softmax(F.leaky_relu(source_score + target_score, 0.2), csr)
        if inputs.edge_weight is not None:
            weight = weight * inputs.edge_weight.to(weight.dtype).unsqueeze(1)
        return weighted_sum(h, csr, weight).mean(1) + self.bias


class RevGATConv(nn.Module):
    """RevGAT's graph attention: x_i' = [sum_j alpha_ij h_j for each head] + V x_i, alpha_ij = softmax_j(s_ij), h = W x.

    The scores are s_ij = leaky_relu(a_s . h_j [+ a_t . h_i], 0.2); the softmax runs over the kept incoming edges of a
    node. With ``symmetric_norm`` h_j is scaled by out_degree_j ** -0.5 and the sum by in_degree_i ** 0.5.

    Args:
        in_channels: C of the input.
        out_channels: C of each head.
        num_heads: H.
        attend_target: add the term of the target node to the scores.
        symmetric_norm: see above.

    Source: RevGAT, arXiv 2106.07476, and the bag of tricks it builds on, arXiv 2103.13355.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, num_heads: int, attend_target: bool, symmetric_norm: bool
    ) -> None:
        super().__init__()
        self.num_heads, self.symmetric_norm = num_heads, symmetric_norm
        self.linear = nn.Linear(in_channels, num_heads * out_channels, bias=False)
        self.residual = nn.Linear(in_channels, num_heads * out_channels, bias=False)
        self.attend_source = nn.Parameter(torch.empty(num_heads, out_channels))
        self.attend_target = nn.Parameter(torch.empty(num_heads, out_channels)) if attend_target else None
        gain = nn.init.calculate_gain("relu")
        nn.init.xavier_normal_(self.linear.weight, gain=gain)
        nn.init.xavier_normal_(self.residual.weight, gain=gain)
        for scores in (self.attend_source, self.attend_target):
            if scores is not None:
                # In the shape of the published code, because the scale of the numbers depends on it.
                nn.init.xavier_normal_(scores.detach()[None], gain=gain)  # [1, H, C]

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        attend_target = self.attend_target is not None
        return f"num_heads={self.num_heads}, {attend_target=}, symmetric_norm={self.symmetric_norm}"

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C_in] to [N, H * C_out]."""
        _refuse_edge_weight(self, inputs)
        csr = inputs.csr
        own = self.linear(x).view(x.size(0), self.num_heads, -1)  # [N, H, C]
        h = own
        if self.symmetric_norm:
            out_degree = out_degrees(csr).clamp(min=1)
            h = own * out_degree.to(x.dtype).rsqrt()[:, None, None]
        score = (h * self.attend_source).sum(-1).index_select(0, csr.col)
        if self.attend_target is not None:
            score = score + (own * self.attend_target).sum(-1).index_select(0, edge_targets(csr))
        score = F.leaky_relu(score, 0.2)
        if inputs.kept is not None:
            score = score.masked_fill(~inputs.kept.unsqueeze(1), -torch.inf)
        out = weighted_sum(h, csr, segment_softmax(score, csr))
        if self.symmetric_norm:
            in_degree = csr.rowptr.diff().clamp(min=1).to(x.dtype)
            out = out * in_degree.sqrt()[:, None, None]
        return cast(Tensor, out.flatten(1) + self.residual(x))


# The convolutions that a model's stack may be built of, by the ``type`` of their specs.
CONVS: dict[str, Callable[..., nn.Module]] = {
    "gen": GENConv,
    "gcn": GCNConv,
    "sage": SAGEConv,
    "gat": GATConv,
    **{name: partial(PygConv, name=name) for name in PYG_CONVS},
}
