"""The pre-activation block: norm, ReLU, dropout, graph convolution."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zoo.layers.inputs import BlockInputs

NormName = Literal["layer", "batch"]

NORMS: dict[NormName, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class Block(nn.Module):
    """conv(dropout(relu(norm(x)))): what one residual step adds.

    Args:
        channels: C of the block's input and output.
        conv: a graph convolution, called as ``conv(x, inputs)``.
        norm: which normalisation.

    Source: the block of arXiv 2106.07476, equations 7 and 8; "res+" of arXiv 2006.07739.
    """

    def __init__(self, channels: int, conv: nn.Module, *, norm: NormName = "layer") -> None:
        super().__init__()
        self.norm = NORMS[norm](channels)
        self.conv = conv

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] node states to the [N, C] that is added to them."""
        h = self.norm(x).relu_()
        if inputs.mask is not None:
            h = h * inputs.mask
        out: Tensor = self.conv(h, inputs)
        return out
