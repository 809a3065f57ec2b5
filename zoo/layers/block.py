"""Blocks around graph convolutions, the encoder of node features before them, and dropout.

A block has norm, ReLU and dropout before its convolution, or norm and ReLU after it; that of an equilibrium has two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrizations, parametrize

from zoo.layers.inputs import BlockInputs
from zoo.layers.replay import modes
from zoo.ops.norm_relu import norm_relu

NormName = Literal["layer", "batch"]
WeightNorm = Literal["none", "weight", "spectral"]

NORMS: dict[NormName, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class Block(nn.Module):
    """f(x) = scale * conv(dropout(mask * relu(norm(x)))), the function that one residual step adds.

    Args:
        channels: C of the block's input and output.
        conv: a graph convolution, called as ``conv(x, inputs)``.
        norm: the normalization.
        dropout: probability of zeroing, by a mask of its own in every application; that of the inputs is shared.
        scale: of what is added.

    Source: the block of arXiv 2106.07476, equations 7 and 8; "res+" of arXiv 2006.07739.
    """

    def __init__(
        self, channels: int, conv: nn.Module, *, norm: NormName = "layer", dropout: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.channels, self.dropout, self.scale = channels, dropout, scale
        self.norm = NORMS[norm](channels)
        self.conv = conv

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"{self.channels}, dropout={self.dropout}" if self.dropout else f"{self.channels}"

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] node states to the [N, C] that is added to them."""
        h = F.dropout(normed_relu(self.norm, x, inputs.mask), self.dropout, self.training)
        out: Tensor = self.conv(h, inputs)
        return out if self.scale == 1 else out * self.scale


class PostNormBlock(nn.Module):
    """h' = relu(norm(conv(x) + W x + b)) with x = dropout(h), a whole step with a linear residual of its own.

    The arguments are those of :class:`Block`, without a scale.

    Source: the tuned GCN, GraphSAGE and GAT of arXiv 2406.08993.
    """

    def __init__(self, channels: int, conv: nn.Module, *, norm: NormName = "layer", dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv = conv
        self.residual = nn.Linear(channels, channels)
        self.norm = NORMS[norm](channels)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] node states to those of the next step."""
        h = dropout(x, self.dropout, training=self.training)
        return normed_relu(self.norm, self.conv(h, inputs) + self.residual(h))


class EquilibriumBlock(nn.Module):
    """f(z, x) = norm(relu(conv(dropout(relu(norm(z' + x)))) + z')) with z' = conv(z).

    Dropout uses the one mask of the inputs, so that all evaluations of a solve see the same equation.

    Args:
        channels: C.
        convs: the two graph convolutions, called as ``conv(x, inputs)``.
        weight_norm: reparametrization of every linear map: ``weight`` learns the lengths and directions of its rows
            apart, ``spectral`` divides it by its largest singular value.

    Source: arXiv 2106.07476, equations 12 to 15.
    """

    def __init__(self, channels: int, convs: Sequence[nn.Module], *, weight_norm: WeightNorm = "none") -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        norms = [nn.LayerNorm(channels) for _ in convs]
        # While states are small, the injected input outweighs them: solves of a fresh block converge.
        nn.init.constant_(norms[1].weight, 0.25)
        self.norms = nn.ModuleList(norms)
        for module in list(self.modules()):
            if isinstance(module, nn.Linear) and weight_norm != "none":
                WEIGHT_NORMS[weight_norm](module)

    def forward(self, z: Tensor, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] states and [N, C] injected input to [N, C] states."""
        first: Tensor = self.convs[0](z, inputs)
        h = normed_relu(self.norms[0], first + x, inputs.mask)
        out: Tensor = self.norms[1]((self.convs[1](h, inputs) + first).relu())
        return out


WEIGHT_NORMS: dict[WeightNorm, Callable[[nn.Module], nn.Module]] = {
    "weight": parametrizations.weight_norm,
    "spectral": parametrizations.spectral_norm,
}


@contextmanager
def frozen_parametrizations(block: nn.Module) -> Iterator[None]:
    """Hold weights fixed, also those whose power iteration goes one step further each time they are computed.

    In training that step is taken here, once for a whole solve.
    """
    parametrized = [module for module in block.modules() if parametrize.is_parametrized(module, "weight")]
    if block.training:
        with torch.no_grad():
            for module in parametrized:
                _ = module.weight
    inner = [child for module in parametrized for child in cast(nn.ModuleDict, module.parametrizations).modules()]
    with modes(inner, [False] * len(inner)):
        yield


def normed_relu(norm: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """[N, C] relu(norm(x)) * mask, in one pass if the norm is a plain layer norm without hooks."""
    if type(norm) is nn.LayerNorm and norm.elementwise_affine and norm.bias is not None and is_plain(norm):
        return norm_relu(x, norm.weight, norm.bias, mask, eps=norm.eps)
    h: Tensor = norm(x).relu()
    return h if mask is None else h * mask


def is_plain(module: nn.Module) -> bool:
    """True if calling the module is just its class's ``forward``: no hooks, no ``forward`` of its own."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return not (any(hooks) or "forward" in vars(module) or _has_any_global_hook())  # type: ignore[no-untyped-call]


class NodeEncoder(nn.Module):
    """A linear map of the node features; a one-hot code among them passes a map of its own first.

    Args:
        in_channels: F, columns of x.
        num_categories: K, how many of the last columns of x are a one-hot code; 0: none.
        out_channels: C.

    Source: the node encoder of the ogbn-proteins models, arXiv 2006.07739 and 2106.07476.
    """

    def __init__(self, in_channels: int, num_categories: int, out_channels: int) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.category = nn.Linear(num_categories, num_categories) if num_categories else None
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, F] to [N, C]."""
        if self.category is not None:
            features, code = x[:, : -self.num_categories], x[:, -self.num_categories :]
            x = torch.cat([features, self.category(code)], dim=1)
        return cast(Tensor, self.linear(x))


def shared_mask(x: Tensor, p: float, *, training: bool) -> Tensor | None:
    """Sample one dropout mask for a whole stack of input x [N, C], so that depth costs no memory for masks.

    Returns:
        [N, C] with values 0 and 1 / (1 - p), or None outside training and for p = 0.

    Source: the shared dropout pattern of arXiv 2106.07476.
    """
    if not training or p == 0:
        return None
    with torch.no_grad():
        return torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)


def dropout(x: Tensor, p: float, *, training: bool) -> Tensor:
    """Zero every element with probability p and scale the others by 1 / (1 - p); outside training x stays as it is.

    Uniform numbers are compared with p: on a CPU that is three times as fast as sampling of Bernoulli's distribution.
    """
    if not training or p == 0:
        return x
    return x * (torch.rand_like(x) >= p) / (1 - p)
