"""Stacks under plain autograd: the deep networks that reversible ones are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.layers.block import Block
from zoo.layers.inputs import BlockInputs
from zoo.layers.replay import held, replaced, slots_of


class ResidualStack(nn.Module):
    """h_1 = conv_1(x); h_t = h_{t-1} + conv_t(dropout(relu(norm_t(h_{t-1})))); at the end norm_1 of the last state.

    The first step takes the input as it is, so the norm of the first layer is free to be the last, the one before the
    head: a network of L distinct layers has L norms. With fewer distinct layers, which are cycled through, the last
    norm is that of the layer whose turn it would be.

    Args:
        layers: the distinct layers.
        num_steps: how many layers are applied; the distinct layers are cycled through. None: each once.
        checkpoint: keep only the states between steps and compute the rest again in backward.

    Raises:
        ValueError: if there are no layers.

    Source: DeeperGCN's "res+", arXiv 2006.07739; ResGNN and WT-ResGNN of arXiv 2106.07476.
    """

    def __init__(self, layers: Sequence[Block], *, num_steps: int | None = None, checkpoint: bool = False) -> None:
        super().__init__()
        if not layers:
            raise ValueError("a residual stack needs at least one layer")
        self.layers = nn.ModuleList(layers)
        self.num_steps = len(layers) if num_steps is None else num_steps
        self.checkpoint = checkpoint

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"num_steps={self.num_steps}, checkpoint={self.checkpoint}"

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] node states to [N, C], normalized."""
        blocks = [cast(Block, self.layers[step % len(self.layers)]) for step in range(self.num_steps + 1)]
        # Autocast may halve what a convolution returns; the residual stream stays at full precision.
        h = _apply(blocks[0].conv, x, inputs.layer(0), checkpointed=self.checkpoint).to(x.dtype)
        for step in range(1, self.num_steps):
            h = h + _apply(blocks[step], h, inputs.layer(step), checkpointed=self.checkpoint)
        return cast(Tensor, blocks[-1].norm(h))


class LayerStack(nn.Module):
    """h_t = layer_t(h_{t-1}), where a layer is a whole step and holds what residual it has.

    The arguments are those of :class:`ResidualStack`. With ``hand_on_initial`` h_0 is relu(x), which every layer reads
    as the ``initial`` of its inputs.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        num_steps: int | None = None,
        checkpoint: bool = False,
        hand_on_initial: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.num_steps = len(layers) if num_steps is None else num_steps
        self.checkpoint, self.hand_on_initial = checkpoint, hand_on_initial

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] node states to [N, C]."""
        if self.hand_on_initial:
            x = x.relu()
            inputs = inputs._replace(initial=x)
        for step in range(self.num_steps):
            layer = self.layers[step % len(self.layers)]
            x = _apply(layer, x, inputs.layer(step), checkpointed=self.checkpoint)
        return x


def _apply(module: nn.Module, x: Tensor, inputs: BlockInputs, *, checkpointed: bool) -> Tensor:
    if not (checkpointed and torch.is_grad_enabled()):
        return cast(Tensor, module(x, inputs))

    contexts = (nullcontext(), _untouched_buffers(module))
    return cast(Tensor, checkpoint(module, x, inputs, use_reentrant=False, context_fn=lambda: contexts))


@contextmanager
def _untouched_buffers(module: nn.Module) -> Iterator[None]:
    """Discard what is written to buffers meanwhile, so that running statistics count a pass once."""
    slots = slots_of(module.modules(), "_buffers")
    with replaced(slots, [buffer.clone() for buffer in held(slots)]):
        yield
