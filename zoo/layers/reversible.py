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
from torch.utils._pytree import tree_leaves

from zoo.layers.coupling import (
    couple,
    couple_in_place,
    join_groups,
    split_groups,
    uncouple,
    uncouple_with_gradients,
)
from zoo.layers.inputs import BlockInputs, full_precision
from zoo.layers.replay import GradientSums, Guard, RngTape, exclusive
from zoo.ops.dispatch import transforming, uncompiled_training


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
        groups = self._group_inputs(inputs)
        # A compiler follows neither a lock nor an autograd.Function of this kind; it reads the arithmetic alone.
        if torch.compiler.is_compiling():
            return self._run_plain(x, groups)
        with exclusive(self):
            out = None if self.executor is None else self.executor(self, x, inputs)
            if out is not None:
                return out
            if not torch.is_grad_enabled():
                return self._join(self._run(x, groups, None), x.dtype)
            # Transforms such as torch.func.grad do not see through an autograd.Function: they get the plain path.
            if not self.reversible or transforming():
                return self._run_plain(x, groups)
            return apply_reversibly(self, list(self._blocks()), x, groups)

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

    def _blocks(self) -> Iterator[nn.Module]:
        for layer in self.layers:
            yield from cast(nn.ModuleList, layer)

    def _steps(self, inputs: Sequence[BlockInputs]) -> list[tuple[Sequence[nn.Module], list[BlockInputs]]]:
        """The blocks and the inputs of every step."""
        layers = [list(cast(nn.ModuleList, layer)) for layer in self.layers]
        return [(layers[step % len(layers)], [group.layer(step) for group in inputs]) for step in range(self.num_steps)]

    def _group_inputs(self, inputs: BlockInputs) -> list[BlockInputs]:
        return [inputs.group(index, self.num_groups, slice_edges=self.slice_edges) for index in range(self.num_groups)]

    def _run_plain(self, x: Tensor, groups: Sequence[BlockInputs]) -> Tensor:
        stream = split_groups(x, self.num_groups)
        for blocks, block_inputs in self._steps(groups):
            stream = couple(blocks, stream, block_inputs, x.dtype)
        return join_groups(stream, x.dtype)

    def _run(self, x: Tensor, groups: Sequence[BlockInputs], rng: RngTape | None) -> list[Tensor]:
        """The stream after the last layer, computed in place in a copy of x."""
        stream = split_groups(x, self.num_groups)
        for blocks, block_inputs in self._steps(groups):
            couple_in_place(blocks, stream, block_inputs, x.dtype, after_block=None if rng is None else rng.record)
        return stream

    def _join(self, states: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return join_groups(states, dtype)

    def _reverse(
        self,
        states: Sequence[Tensor],
        grad_states: Sequence[Tensor],
        groups: Sequence[BlockInputs],
        sums: GradientSums,
        rng: RngTape,
    ) -> None:
        read = [differentiable(group) for group in groups]
        own = {id(block): [p for p in block.parameters() if p.requires_grad] for block in self._blocks()}
        for blocks, block_inputs in reversed(self._steps(groups)):
            for index in range(len(blocks) - 1, -1, -1):
                block = blocks[index]
                sources = [*read[index], *own[id(block)]]
                rng.rewind()
                grads = uncouple_with_gradients(block, index, states, grad_states, block_inputs[index], sources)
                sums.add(sources, grads)


class Invertible(Protocol):
    """A stack that restores its input from its states after the last layer.

    ``_run`` gives these states and records the random state after each evaluation of a block; ``_join`` makes them the
    output, [N, C]. ``_reverse`` restores in place the states before the first layer and carries their gradient along,
    one tensor for each of ``num_groups`` groups of channels, in the precision of the blocks; it rewinds the random
    state before each evaluation and adds the gradients of parameters and inputs to ``sums``.
    """

    num_groups: int
    inversion_error: float | None

    def _run(self, x: Tensor, inputs: Any, rng: RngTape) -> list[Tensor]: ...

    def _join(self, states: Sequence[Tensor], dtype: torch.dtype) -> Tensor: ...

    def _reverse(
        self, states: Sequence[Tensor], grad_states: Sequence[Tensor], inputs: Any, sums: GradientSums, rng: RngTape
    ) -> None: ...


def apply_reversibly(stack: Invertible, blocks: Sequence[nn.Module], x: Tensor, inputs: Any) -> Tensor:
    """The output of a stack for x [N, C], whose backward pass restores states instead of reading stored ones."""
    guard = Guard(cast(nn.Module, stack), blocks, inputs, x.device)
    return cast(Tensor, _Reverse.apply(stack, guard, x, *guard.tensors(inputs)))  # type: ignore[no-untyped-call]


class _Reverse(torch.autograd.Function):
    """Forward without a tape, keeping the last states; backward by inversion, one evaluation of each block."""

    @staticmethod
    def forward(ctx: Any, stack: Invertible, guard: Guard, x: Tensor, *tensors: Any) -> Tensor:
        with guard.recorded(tensors) as inputs:
            states = stack._run(x, inputs, guard.rng)
        ctx.stack, ctx.guard, ctx.dtype, ctx.num_states = stack, guard, x.dtype, len(states)
        ctx.x = None if stack.inversion_error is None else x.clone()
        ctx.save_for_backward(*states, *tensors)
        return stack._join(states, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stack: Invertible = ctx.stack
        saved: list[Any] = list(ctx.saved_tensors)  # raises if anything was changed in place
        states, tensors = saved[: ctx.num_states], saved[ctx.num_states :]
        # The reverse pass overwrites the states, unless another backward pass will ask for them again.
        if torch._C._autograd._get_current_graph_task_keep_graph():
            states = [state.clone() for state in states]
        grad_states = [group.to(ctx.dtype, copy=True) for group in grad.chunk(stack.num_groups, dim=1)]
        del saved
        with ctx.guard.restored(tensors, ctx.needs_input_grad[3:]) as (inputs, aliases):
            sums = GradientSums(aliases)
            stack._reverse(states, grad_states, inputs, sums, ctx.guard.rng)
        if ctx.x is not None:
            missed = (stack._join(states, torch.float64) - ctx.x).abs().max() / ctx.x.abs().max().clamp_min(1e-30)
            stack.inversion_error = missed.item()
        grad_x = torch.cat(grad_states, dim=1) if ctx.needs_input_grad[2] else None
        return (None, None, grad_x, *sums.take(aliases))


def differentiable(inputs: BlockInputs) -> list[Tensor]:
    """The tensors of inputs whose gradient is needed."""
    return [leaf for leaf in tree_leaves(inputs) if leaf is not None and leaf.requires_grad]
