"""Blocks around a graph convolution: with norm, ReLU and dropout before it, or with norm and ReLU after it."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from zoo.layers.dropout import dropout
from zoo.layers.inputs import BlockInputs
from zoo.ops.norm_relu import norm_relu

NormName = Literal["layer", "batch"]

NORMS: dict[NormName, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class Block(nn.Module):
    """f(x) = conv(dropout(mask * relu(norm(x)))), the function that one residual step adds.

    Args:
        channels: C of the block's input and output.
        conv: a graph convolution, called as ``conv(x, inputs)``.
        norm: the normalization.
        dropout: probability of zeroing, by a mask of its own in every application; that of the inputs is shared.

    Source: the block of arXiv 2106.07476, equations 7 and 8; "res+" of arXiv 2006.07739.
    """

    def __init__(self, channels: int, conv: nn.Module, *, norm: NormName = "layer", dropout: float = 0.0) -> None:
        super().__init__()
        self.channels, self.dropout = channels, dropout
        self.norm = NORMS[norm](channels)
        self.conv = conv

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"{self.channels}, dropout={self.dropout}" if self.dropout else f"{self.channels}"

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] node states to the [N, C] that is added to them."""
        h = F.dropout(normed_relu(self.norm, x, inputs.mask), self.dropout, self.training)
        out: Tensor = self.conv(h, inputs)
        return out


class PostNormBlock(nn.Module):
    """h' = relu(norm(conv(x) + W x + b)) with x = dropout(h), a whole step with a linear residual of its own.

    The arguments are those of :class:`Block`.

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


def normed_relu(norm: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """relu(norm(x)) * mask, in one pass if the norm is a plain layer norm without hooks.

    Args:
        norm: maps [N, C] to [N, C].
        x: [N, C].
        mask: [N, C]; None: nothing is masked.
    """
    if type(norm) is nn.LayerNorm and norm.elementwise_affine and norm.bias is not None and is_plain(norm):
        return norm_relu(x, norm.weight, norm.bias, mask, eps=norm.eps)
    h: Tensor = norm(x).relu()
    return h if mask is None else h * mask


def is_plain(module: nn.Module) -> bool:
    """True if calling the module is just its class's ``forward``: no hooks, no ``forward`` of its own."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return not (any(hooks) or "forward" in vars(module) or _has_any_global_hook())  # type: ignore[no-untyped-call]
