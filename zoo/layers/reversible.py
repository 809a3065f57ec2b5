"""The reversible stack: any number of layers in the memory of one.

The whole stack is ONE autograd.Function. Forward runs without a tape and keeps only the last state. Backward goes from
the last layer to the first and evaluates each block once with the tape on: its value restores the block's input
(x = y - f) and its tape gives the gradients. ``docs/mathematics.md`` has the formulas.

Nothing of the caller is changed: inputs are copied into a stream the Function owns, gradients of parameters are
returned and not written, so that every feature of autograd around the stack works as with a plain module: skip
connections, frozen and shared parameters, hooks, ``torch.autograd.grad``, several backward passes, DDP, EMA.

Source: arXiv 2106.07476, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves, tree_map

from zoo.layers.coupling import (
    STREAM_DTYPE,
    couple,
    couple_in_place,
    join_groups,
    split_groups,
    uncouple,
    uncouple_with_gradients,
)
from zoo.layers.inputs import BlockInputs, full_precision
from zoo.layers.replay import GradientSums, Guard, RngTape, exclusive
from zoo.ops.dispatch import uncompiled_training


class Executor(Protocol):
    """Another way to run the layers of a stack."""

    def __call__(self, stack: ReversibleStack, x: Tensor, inputs: BlockInputs) -> Tensor | None:
        """[N, C] to what ``stack(x, inputs)`` is, gradients included; None leaves it to the stack."""


class ReversibleStack(nn.Module):
    """Grouped reversible layers; training memory does not depend on their number.

    Args:
        layers: the distinct layers, each a sequence of G blocks called as ``block(x, inputs)`` on [N, C/G].
        num_steps: how many layers are applied; the distinct layers are cycled through. None: each once.
        slice_edges: whether a block reads its group's slice of the edge channels, or all of them.
        reversible: False runs the same arithmetic under plain autograd, storing every activation.

    Blocks may hold dropout (the random numbers are replayed) and batch norm (statistics are counted once). A block must
    be a function of its arguments, its parameters, its buffers and the global random number generators: what else it
    holds, such as a generator of its own or a plain tensor attribute that changes, backward cannot bring back.

    Attributes:
        executor: asked first to run the layers, if set; copies of the stack start without.
        inversion_error: set it to 0, and each backward pass keeps a copy of its input, [N, C], and leaves here the
            largest difference of the restored input from it, relative to the input's largest entry.

    Raises:
        ValueError: if there are no layers, or their numbers of groups differ or are less than two.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[nn.Module]],
        *,
        num_steps: int | None = None,
        slice_edges: bool = False,
        reversible: bool = True,
    ) -> None:
        super().__init__()
        sizes = {len(blocks) for blocks in layers}
        if len(sizes) != 1 or min(sizes) < 2:
            raise ValueError(f"every layer needs the same number of blocks, at least 2; got {sorted(sizes)}")
        self.layers = nn.ModuleList(nn.ModuleList(blocks) for blocks in layers)
        self.num_groups = sizes.pop()
        self.num_steps = len(layers) if num_steps is None else num_steps
        self.slice_edges = slice_edges
        self.reversible = reversible
        self.executor: Executor | None = None
        self.inversion_error: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        # CUDA graphs, which an executor may keep, can neither be copied nor pickled.
        return {**self.__dict__, "executor": None}

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"num_steps={self.num_steps}, num_groups={self.num_groups}, reversible={self.reversible}"

    @uncompiled_training
    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] node states to [N, C].

        Raises:
            ValueError: if C is not divisible by the number of groups, or x is of half precision outside autocast: the
                residual stream of a deep network drowns in its rounding.
        """
        x = self._checked(x)
        # A compiler follows neither a lock nor an autograd.Function of this kind; it reads the arithmetic alone.
        if torch.compiler.is_compiling():
            return self._run_plain(x, inputs)
        with exclusive(self):
            return self._forward(x, inputs)

    def inverse(self, y: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] output of the stack to the [N, C] input that gave it, under plain autograd.

        Raises:
            ValueError: as in forward.
        """
        y = self._checked(y)
        stream = split_groups(y, self.num_groups)
        for blocks, block_inputs in reversed(self._steps(self._group_inputs(inputs))):
            stream = uncouple(blocks, stream, block_inputs, y.dtype)
        return join_groups(stream, y.dtype)

    def _checked(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.size(1) % self.num_groups:
            raise ValueError(
                f"states: expected [N, C], C divisible by num_groups ({self.num_groups}), got {list(x.shape)}"
            )
        return full_precision(x, "a reversible stack")

    def _forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        out = None if self.executor is None else self.executor(self, x, inputs)
        if out is not None:
            return out
        if not torch.is_grad_enabled():
            return join_groups(self._run_in_place(x, inputs, None), x.dtype)
        # Transforms such as torch.func.grad do not see through an autograd.Function: they get the plain path.
        if not self.reversible or torch._C._are_functorch_transforms_active():
            return self._run_plain(x, inputs)
        guard, tensors = Guard.take(self, list(self._blocks()), inputs, x.device)
        return cast(Tensor, _Reverse.apply(self, guard, x, *tensors))  # type: ignore[no-untyped-call]

    def _blocks(self) -> Iterator[nn.Module]:
        for layer in self.layers:
            yield from cast(nn.ModuleList, layer)

    def _steps(self, inputs: Sequence[BlockInputs]) -> list[tuple[Sequence[nn.Module], list[BlockInputs]]]:
        """The blocks and the inputs of every step."""
        layers = [list(cast(nn.ModuleList, layer)) for layer in self.layers]
        return [(layers[step % len(layers)], [group.layer(step) for group in inputs]) for step in range(self.num_steps)]

    def _group_inputs(self, inputs: BlockInputs) -> list[BlockInputs]:
        return [inputs.group(index, self.num_groups, slice_edges=self.slice_edges) for index in range(self.num_groups)]

    def _run_plain(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        stream = split_groups(x, self.num_groups)
        for blocks, block_inputs in self._steps(self._group_inputs(inputs)):
            stream = couple(blocks, stream, block_inputs, x.dtype)
        return join_groups(stream, x.dtype)

    def _run_in_place(self, x: Tensor, inputs: BlockInputs, rng: RngTape | None) -> list[Tensor]:
        """The stream after the last layer, computed in place in a copy of x."""
        stream = split_groups(x, self.num_groups)
        for blocks, block_inputs in self._steps(self._group_inputs(inputs)):
            couple_in_place(blocks, stream, block_inputs, x.dtype, after_block=None if rng is None else rng.record)
        return stream


class _Reverse(torch.autograd.Function):
    """Forward without a tape, keeping the final stream; backward by inversion, one evaluation of each block."""

    @staticmethod
    def forward(ctx: Any, stack: ReversibleStack, guard: Guard, x: Tensor, *tensors: Any) -> Tensor:
        with guard.recorded(tensors) as inputs:
            stream = stack._run_in_place(x, inputs, guard.rng)
        ctx.stack, ctx.guard, ctx.dtype = stack, guard, x.dtype
        ctx.x = None if stack.inversion_error is None else x.clone()
        ctx.save_for_backward(*stream, *tensors)
        return join_groups(stream, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stack: ReversibleStack = ctx.stack
        saved: list[Any] = list(ctx.saved_tensors)  # raises if anything was changed in place
        stream, tensors = saved[: stack.num_groups], saved[stack.num_groups :]
        # The reverse pass overwrites the stream, unless another backward pass will ask for it again.
        if torch._C._autograd._get_current_graph_task_keep_graph():
            stream = [state.clone() for state in stream]
        grad_stream = [group.to(ctx.dtype, copy=True) for group in grad.chunk(stack.num_groups, dim=1)]
        del saved
        with ctx.guard.restored(tensors, ctx.needs_input_grad[3:]) as (inputs, aliases):
            grads = _reverse_pass(stack, stream, grad_stream, inputs, aliases, ctx.guard.rng)
        if ctx.x is not None:
            missed = (join_groups(stream, STREAM_DTYPE) - ctx.x).abs().max() / ctx.x.abs().max().clamp_min(1e-30)
            stack.inversion_error = missed.item()
        grad_x = torch.cat(grad_stream, dim=1) if ctx.needs_input_grad[2] else None
        return (None, None, grad_x, *grads)


def _reverse_pass(
    stack: ReversibleStack,
    stream: Sequence[Tensor],
    grad_stream: Sequence[Tensor],
    inputs: BlockInputs,
    tensors: Sequence[Tensor | None],
    rng: RngTape,
) -> list[Tensor | None]:
    """From the last layer to the first: restore the states in place, and carry their gradient along in place.

    Args:
        stack: its parameters are among the tensors.
        stream: the G groups after the last layer, [N, C/G] each, float64.
        grad_stream: their gradients, in the precision of the blocks.
        inputs: what the blocks read, made of the tensors.
        tensors: those whose gradients are returned, where they require one.
        rng: rewound before each evaluation of a block.

    Returns:
        The gradient of each tensor, summed over the layers.
    """
    # Inputs are cut into slices for the groups once, and the tape of each layer ends at these slices. Their gradients
    # are summed over the layers first and go through the cut, back to the inputs, only once.
    slices = stack._group_inputs(inputs)
    groups = [_ends_of_tape(group) for group in slices]
    read = [_differentiable(group) for group in groups]
    own = {id(block): [p for p in block.parameters() if p.requires_grad] for block in stack._blocks()}
    sums = GradientSums([*tensors, *(tensor for group in read for tensor in group)])
    for blocks, block_inputs in reversed(stack._steps(groups)):
        for index in range(len(blocks) - 1, -1, -1):
            block = blocks[index]
            sources = [*read[index], *own[id(block)]]
            rng.rewind()
            sums.add(sources, uncouple_with_gradients(block, index, stream, grad_stream, block_inputs[index], sources))
    carried = [
        (cut, total)
        for group, ends in zip(slices, groups, strict=True)
        for cut, end in zip(_differentiable(group), _differentiable(ends), strict=True)
        if cut is not end and (total := sums.of(end)) is not None
    ]
    if carried:
        cuts, totals = zip(*carried, strict=True)
        sources = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
        sums.add(sources, torch.autograd.grad(cuts, sources, totals, allow_unused=True))
    return [None if tensor is None else sums.of(tensor) for tensor in tensors]


def _differentiable(inputs: BlockInputs) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if leaf is not None and leaf.requires_grad]


def _ends_of_tape(inputs: BlockInputs) -> BlockInputs:
    """The same inputs without the tape that made them."""
    return cast(BlockInputs, tree_map(lambda t: t if t is None or t.is_leaf else t.detach().requires_grad_(), inputs))
