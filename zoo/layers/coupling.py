"""Grouped additive coupling of one layer, forward and inverse.

Forward: y_1 = x_1 + f_1(x_2 + ... + x_G); y_i = x_i + f_i(y_{i-1}) for i = 2..G.
Inverse: x_i = y_i - f_i(y_{i-1}) for i = G..2; x_1 = y_1 - f_1(x_2 + ... + x_G).

The residual stream x is kept in float64 while the blocks f compute in their own precision. What a block adds has 24
bits or fewer, a sum in float64 holds 53: additions and their undoing are exact but for rare last bits, so the inverse
gives the blocks the very inputs they had, at any depth, without stored states. (Blocks in float64 leave no spare bits:
there the inverse drifts by float64 rounding, as it would in any implementation.)

Source: arXiv 2106.07476, equations 4 to 6; the float64 stream is this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo.layers.inputs import BlockInputs

BlockFn = Callable[[Tensor, BlockInputs], Tensor]

STREAM_DTYPE = torch.float64


def couple(
    blocks: Sequence[BlockFn], stream: Sequence[Tensor], inputs: Sequence[BlockInputs], dtype: torch.dtype
) -> list[Tensor]:
    """One layer forward.

    Args:
        blocks: the G blocks f_i, each [N, C/G] to [N, C/G].
        stream: the G groups, [N, C/G] each, float64.
        inputs: of each group's block.
        dtype: precision of the blocks' input.

    Returns:
        The G groups after the layer, as new tensors.
    """
    out = list(stream)
    source = sum_groups(stream[1:])
    for index, block in enumerate(blocks):
        out[index] = source = stream[index] + block(source.to(dtype, copy=True), inputs[index])
    return out


def uncouple(
    blocks: Sequence[BlockFn], stream: Sequence[Tensor], inputs: Sequence[BlockInputs], dtype: torch.dtype
) -> list[Tensor]:
    """Undo :func:`couple`: from the groups after the layer to those before it."""
    out = list(stream)
    for index in range(len(blocks) - 1, -1, -1):
        source = out[index - 1] if index else sum_groups(out[1:])
        out[index] = stream[index] - blocks[index](source.to(dtype, copy=True), inputs[index])
    return out


def couple_in_place(
    blocks: Sequence[BlockFn],
    stream: Sequence[Tensor],
    inputs: Sequence[BlockInputs],
    dtype: torch.dtype,
    *,
    after_block: Callable[[], None] | None = None,
) -> None:
    """:func:`couple` without a tape, written over the stream; ``after_block`` is called once for each block."""
    source = sum_groups(stream[1:])
    for index, block in enumerate(blocks):
        value = block(source.to(dtype, copy=True), inputs[index])
        if after_block is not None:
            after_block()
        stream[index].add_(value)
        source = stream[index]
        del value


def uncouple_with_gradients(
    block: BlockFn,
    index: int,
    stream: Sequence[Tensor],
    grad_stream: Sequence[Tensor],
    inputs: BlockInputs,
    sources: Sequence[Tensor],
) -> Sequence[Tensor | None]:
    """Undo one block of a layer in place, and carry the gradient through it, from one evaluation.

    To be called with the tape on, for the groups of a layer from the last to the first.

    Args:
        block: f_i.
        index: i, counted from zero.
        stream: the G groups after block i, [N, C/G] each, float64; then those before it.
        grad_stream: the gradients of the groups, [N, C/G] each, in the precision of the blocks' input; likewise.
        inputs: of the block.
        sources: tensors the block reads, whose gradients are needed.

    Returns:
        The gradient of each source; None of one that the block did not use.
    """
    source = stream[index - 1] if index else sum_groups(stream[1:])
    state = source.detach().to(grad_stream[index].dtype).requires_grad_()
    value = block(state.clone(), inputs)  # a copy, because blocks may write to their input
    stream[index].sub_(value.detach())
    if not value.requires_grad:
        return [None] * len(sources)
    grads = torch.autograd.grad(value, [state, *sources], grad_stream[index].to(value.dtype), allow_unused=True)
    if grads[0] is not None:
        for target in grad_stream[index - 1 : index] if index else grad_stream[1:]:
            target.add_(grads[0])
    return grads[1:]


def sum_groups(groups: Sequence[Tensor]) -> Tensor:
    """The sum of the groups, added in order, so that forward and inverse agree to the last bit."""
    total = groups[0]
    for group in groups[1:]:
        total = total + group
    return total


def split_groups(x: Tensor, num_groups: int) -> list[Tensor]:
    """[N, C] to G float64 tensors of [N, C/G], each contiguous and a copy of its own."""
    groups = x.chunk(num_groups, dim=1)
    return [group.to(STREAM_DTYPE, copy=True, memory_format=torch.contiguous_format) for group in groups]


def join_groups(stream: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """G tensors of [N, C/G] to [N, C]."""
    return torch.cat([group.to(dtype) for group in stream], dim=1)
