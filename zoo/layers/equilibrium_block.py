"""The block of an equilibrium layer, and normalization of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from zoo.layers.block import normed_relu
from zoo.layers.inputs import BlockInputs
from zoo.layers.replay import modes

WeightNorm = Literal["none", "weight", "spectral"]


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
