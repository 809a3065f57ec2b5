"""The reversible stack: any number of layers in the memory of one.

The whole stack is ONE autograd.Function. Forward runs without a tape and keeps only the last state. Backward walks from
the last layer to the first and evaluates each block once with the tape on: its value restores the block's input
(x = y - f) and its tape gives the gradients.

Nothing of the caller is changed: inputs are copied into a stream the Function owns, gradients of parameters are
returned and not written, so that every feature of autograd around the stack works as with a plain module: skip
connections, frozen and shared parameters, hooks, ``torch.autograd.grad``, several backward passes, DDP, EMA.

Source: arXiv 2106.07476, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from zoo.layers.compiling import uncompiled
from zoo.layers.coupling import (
    couple,
    couple_in_place,
    join_groups,
    split_groups,
    uncouple,
    uncouple_with_gradients,
)
from zoo.layers.inputs import BlockInputs
from zoo.layers.replay import Slot, collect, exclusive, modes, replaced
from zoo.layers.rng import RngTape


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

    def __getstate__(self) -> dict[str, Any]:
        # What an executor keeps, such as CUDA graphs, can neither be copied nor pickled.
        return {**self.__dict__, "executor": None}

    @uncompiled
    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] node states to [N, C].

        Raises:
            ValueError: if C is not divisible by the number of groups, or x is of half precision outside autocast: the
                residual stream of a deep network drowns in its rounding.
        """
        x = self._checked(x)
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
        if x.dtype in (torch.float32, torch.float64):
            return x
        if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
            return x.float()
        hint = "; for speed use torch.autocast" if x.is_floating_point() else ""
        raise ValueError(f"a reversible stack needs float32 or float64 states, got {x.dtype}{hint}")

    def _forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        out = None if self.executor is None else self.executor(self, x, inputs)
        if out is not None:
            return out
        if not torch.is_grad_enabled():
            return join_groups(self._advance(x, inputs, None), x.dtype)
        # Transforms such as torch.func.grad do not see through an autograd.Function: they get the plain path.
        if not self.reversible or torch._C._are_functorch_transforms_active():
            return self._run_plain(x, inputs)
        leaves, tree = tree_flatten(inputs)
        parameters, slots = _parameters(self._blocks())
        call = _Call(self, tree, len(leaves), slots)
        return cast(Tensor, _Reverse.apply(call, x, *leaves, *parameters))  # type: ignore[no-untyped-call]

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

    def _advance(self, x: Tensor, inputs: BlockInputs, rng: RngTape | None) -> list[Tensor]:
        """The stream after the last layer, computed in place in a copy of x."""
        stream = split_groups(x, self.num_groups)
        for blocks, block_inputs in self._steps(self._group_inputs(inputs)):
            couple_in_place(blocks, stream, block_inputs, x.dtype, after_block=None if rng is None else rng.record)
        return stream


class _Call(NamedTuple):
    """What the Function needs to know besides tensors.

    Attributes:
        stack: the stack.
        tree: how the leaves make up the blocks' inputs.
        num_leaves: how many tensors, or None, come before the parameters.
        slots: by the id of a block, where it keeps which of the parameters.
    """

    stack: ReversibleStack
    tree: TreeSpec
    num_leaves: int
    slots: dict[int, list[Slot]]


@dataclass
class _Record:
    """What one forward pass leaves for its backward besides the saved tensors."""

    call: _Call
    num_parameters: int
    buffer_slots: list[Slot]
    modules: list[nn.Module]
    training: list[bool]
    rng: RngTape
    autocast: tuple[bool, torch.dtype]
    dtype: torch.dtype


class _Reverse(torch.autograd.Function):
    """Forward without a tape; backward by inversion, one evaluation of each block.

    Saved are the final stream, the stack's inputs and the parameters, the last two by reference: changing them in place
    before backward is an error of autograd's, never a wrong gradient.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, *tensors: Any) -> Tensor:
        stack = call.stack
        buffers, buffer_slots = collect(stack._blocks(), "_buffers")
        # Forward may write to them (running statistics); backward must see them as they are now, and leave no trace.
        buffers = [buffer.clone() for buffer in buffers]
        inputs = cast(BlockInputs, tree_unflatten(list(tensors[: call.num_leaves]), call.tree))
        rng = RngTape(x.device)
        autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        # Weights that autocast would cache in here lack a tape, which whoever shares them outside needs.
        with torch.autocast(x.device.type, dtype=autocast[1], enabled=autocast[0], cache_enabled=False):
            stream = stack._advance(x, inputs, rng)
        rng.finish()
        modules = [module for block in stack._blocks() for module in block.modules()]
        ctx.record = _Record(
            call=call,
            num_parameters=len(tensors) - call.num_leaves,
            buffer_slots=buffer_slots,
            modules=modules,
            training=[module.training for module in modules],
            rng=rng,
            autocast=autocast,
            dtype=x.dtype,
        )
        ctx.save_for_backward(*stream, *tensors, *buffers)
        return join_groups(stream, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with exclusive(ctx.record.call.stack):
            return _backward(ctx, grad)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    record: _Record = ctx.record
    call = record.call
    num_groups = call.stack.num_groups
    saved: list[Any] = list(ctx.saved_tensors)  # raises if anything was changed in place
    # States that nobody will ask for again are walked back in where they lie.
    again = torch._C._autograd._get_current_graph_task_keep_graph()
    stream = [state.clone() if again else state for state in saved[:num_groups]]
    tensors = saved[num_groups : num_groups + call.num_leaves + record.num_parameters]
    buffers = [buffer.clone() for buffer in saved[num_groups + len(tensors) :]]
    leaves = [
        _alias(leaf, want) for leaf, want in zip(tensors[: call.num_leaves], ctx.needs_input_grad[2:], strict=False)
    ]
    parameters = tensors[call.num_leaves :]
    wanted = ctx.needs_input_grad[2 + call.num_leaves :]
    grads = _Grads([*leaves, *(p for p, want in zip(parameters, wanted, strict=True) if want)])
    enabled, dtype = record.autocast
    with ExitStack() as state:
        state.enter_context(replaced(record.buffer_slots, buffers))
        state.enter_context(modes(record.modules, record.training))
        state.enter_context(record.rng.replay())
        state.enter_context(torch.autocast(grad.device.type, dtype=dtype, enabled=enabled, cache_enabled=False))
        state.enter_context(torch.enable_grad())
        # The slices that the groups read are cut once; what flows into them is carried to the leaves at the end.
        inputs = call.stack._group_inputs(cast(BlockInputs, tree_unflatten(leaves, call.tree)))
        grad_x = _walk_back(record, stream, inputs, parameters, wanted, grad, grads)
        grads.carry(inputs, leaves)
    return (None, grad_x if ctx.needs_input_grad[1] else None, *(grads.of(t) for t in (*leaves, *parameters)))


class _Grads:
    """Gradients summed over the layers, keyed by the id of the tensor they belong to.

    Args:
        tensors: those whose gradients will be returned. Room for them is taken before the walk: small gradients that
            were born among the large temporaries of a layer, and stayed, would keep the allocator from reusing these.
    """

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self._room = {id(t): torch.empty_like(t.detach()) for t in tensors if t is not None and t.requires_grad}
        self._total: dict[int, Tensor] = {}

    def of(self, tensor: Tensor | None) -> Tensor | None:
        """The gradient of a tensor, if anything flowed into it."""
        return self._total.get(id(tensor))

    def add(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Add one gradient to each tensor's."""
        for tensor, grad in zip(tensors, grads, strict=True):
            if grad is None:
                continue
            known = self.of(tensor)
            if known is None:
                room = self._room.get(id(tensor))
                self._total[id(tensor)] = grad.clone() if room is None else room.copy_(grad)
            else:
                known.add_(grad)

    def carry(self, inputs: Sequence[BlockInputs], leaves: Sequence[Tensor | None]) -> None:
        """Carry what reached the groups' slices to the tensors they were cut from."""
        slices = {id(t): t for group in inputs for t in _differentiable(group) if t.grad_fn is not None}
        cut = [tensor for tensor in slices.values() if self.of(tensor) is not None]
        sources = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        if cut:
            flow = [self.of(tensor) for tensor in cut]
            self.add(sources, torch.autograd.grad(cut, sources, flow, allow_unused=True))


def _walk_back(
    record: _Record,
    stream: list[Tensor],
    inputs: Sequence[BlockInputs],
    parameters: Sequence[Tensor],
    wanted: Sequence[bool],
    grad: Tensor,
    grads: _Grads,
) -> Tensor:
    """From the last layer to the first: restore the states in place and collect gradients.

    Returns:
        [N, C] gradient of the stack's input; those of everything the blocks read are added to ``grads``.
    """
    call = record.call
    flow = [group.to(record.dtype, copy=True) for group in grad.chunk(call.stack.num_groups, dim=1)]
    cut = [_cut(group) for group in inputs]
    shared = [(_differentiable(there), _differentiable(here)) for there, here in zip(inputs, cut, strict=True)]
    for blocks, block_inputs in reversed(call.stack._steps(cut)):
        for index in range(len(blocks) - 1, -1, -1):
            slots = call.slots[id(blocks[index])]
            # Aliases: the tape ends here, and hooks of the real parameters fire once, not once per layer.
            own = {slot.which: _alias(parameters[slot.which], wanted[slot.which]) for slot in slots}
            originals, aliases = shared[index]
            learned = [which for which in own if wanted[which]]
            sources = [*aliases, *(own[which] for which in learned)]
            record.rng.rewind()
            with replaced(slots, own):
                found = uncouple_with_gradients(blocks[index], index, stream, flow, block_inputs[index], sources)
            grads.add([*originals, *(parameters[which] for which in learned)], found)
            del found
    return torch.cat(flow, dim=1)


def _parameters(blocks: Iterator[nn.Module]) -> tuple[list[Tensor], dict[int, list[Slot]]]:
    """The distinct parameters of all blocks, and where each block, by its id, keeps which of them."""
    parameters: list[Tensor] = []
    slots: dict[int, list[Slot]] = {}
    known: dict[int, int] = {}
    for block in blocks:
        own, places = collect([block], "_parameters")
        for parameter in own:
            if known.setdefault(id(parameter), len(parameters)) == len(parameters):
                parameters.append(parameter)
        slots[id(block)] = [place._replace(which=known[id(own[place.which])]) for place in places]
    return parameters, slots


def _differentiable(inputs: BlockInputs) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(inputs)[0] if leaf is not None and leaf.requires_grad]


def _cut(inputs: BlockInputs) -> BlockInputs:
    """The same inputs, where the tape of a layer ends."""
    leaves, tree = tree_flatten(inputs)
    aliases = [_alias(leaf, leaf is not None and leaf.requires_grad) for leaf in leaves]
    return cast(BlockInputs, tree_unflatten(aliases, tree))


def _alias(tensor: Any, requires_grad: bool) -> Any:
    # What cannot carry a gradient stays the same object, so that what is remembered of a graph is found again.
    if tensor is None or not tensor.requires_grad:
        return tensor
    return tensor.detach().requires_grad_(requires_grad)
