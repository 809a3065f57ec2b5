"""One layer on static buffers: recorded once, replayed for all layers of a stack and for many graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.layers.coupling import STREAM_DTYPE, couple_in_place, uncouple_with_gradients
from zoo.layers.inputs import BlockInputs
from zoo.layers.replay import Slot, held, replaced, slots_of
from zoo.ops.csr import copy_into, empty_csr
from zoo.ops.edges import EdgeInput

Form = tuple[torch.dtype, tuple[int, ...]]
Work = Callable[[], None]

# A recording serves graphs that fill at least this share of its buffers.
MIN_FILL = 0.75
NUM_LEAVES = 4


def leaves_of(inputs: BlockInputs) -> list[Tensor | None]:
    """The inputs that may carry a gradient: edge features [E, D], their weight and bias, the mask [N, C]."""
    return [*(inputs.edges or (None, None, None)), inputs.mask]


def with_leaves(inputs: BlockInputs, leaves: Sequence[Tensor | None]) -> BlockInputs:
    """The same graph with other leaves."""
    attr, weight, bias, mask = leaves
    return inputs._replace(edges=None if attr is None else EdgeInput(attr, weight, bias), mask=mask)


class Layer(NamedTuple):
    """The G blocks of a layer and, for each, the slots that hold which of the layer's K parameters."""

    blocks: Sequence[nn.Module]
    slots: Sequence[Sequence[Slot]]

    @classmethod
    def of(cls, blocks: Sequence[nn.Module]) -> Layer:
        """The layer of these blocks. A parameter that several blocks share counts once for each."""
        slots: list[list[Slot]] = []
        count = 0
        for block in blocks:
            own = slots_of(block.modules(), "_parameters")
            slots.append([slot._replace(which=slot.which + count) for slot in own])
            count += len(held(own))
        return cls(blocks, slots)

    def parameters(self) -> list[Tensor]:
        """The K parameters that stand in these places now."""
        return held(itertools.chain.from_iterable(self.slots))


class Signature(NamedTuple):
    """Everything that recorded work depends on besides values and the size of the graph."""

    dtype: torch.dtype
    device: torch.device
    num_channels: int
    # Without the number of nodes or edges, of col, of the leaves and of a layer's K parameters; None: not given.
    forms: tuple[Form | None, ...]
    autocast: tuple[bool, torch.dtype]
    leaves_need_grad: tuple[bool, ...]
    parameters_need_grad: tuple[bool, ...]  # in some layer
    has_backward: bool

    @classmethod
    def of(cls, x: Tensor, inputs: BlockInputs, layers: Sequence[Sequence[Tensor]]) -> Signature:
        """The signature of a call on states x [N, C], with the parameters of each distinct layer."""
        leaves = leaves_of(inputs)
        attr, weight, bias, mask = leaves
        tensors = [x, *leaves, *(parameter for layer in layers for parameter in layer)]
        has_backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        return cls(
            dtype=x.dtype,
            device=x.device,
            num_channels=x.size(1),
            forms=(
                *(form(t, first=1) for t in (inputs.csr.col, attr, mask)),
                *(form(t) for t in (weight, bias, *layers[0])),
            ),
            autocast=(torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)),
            leaves_need_grad=tuple(has_backward and leaf is not None and leaf.requires_grad for leaf in leaves),
            parameters_need_grad=tuple(
                has_backward and any(layer[k].requires_grad for layer in layers) for k in range(len(layers[0]))
            ),
            has_backward=has_backward,
        )


def form(tensor: Tensor | None, *, first: int = 0) -> Form | None:
    """Precision and shape from dimension ``first`` on."""
    return None if tensor is None else (tensor.dtype, tuple(tensor.shape)[first:])


def round_up(count: int) -> int:
    """A count rounded up by at most a sixteenth, so that parts of nearly the same size get buffers of the same size."""
    step = 1 << max(count.bit_length() - 5, 0)
    return -(-count // step) * step


def empty_inputs(inputs: BlockInputs, num_nodes: int, num_edges: int) -> BlockInputs:
    """Buffers for the inputs of graphs of fewer nodes and no more edges, which stay where they are."""
    leaves = [
        None if leaf is None else leaf.new_zeros(leaf.shape if rows is None else (rows, leaf.size(1)))
        for leaf, rows in zip(leaves_of(inputs), (num_edges, None, None, num_nodes), strict=True)
    ]
    return with_leaves(inputs._replace(csr=empty_csr(num_nodes, num_edges, inputs.csr)), leaves)


def copy_inputs(buffers: BlockInputs, inputs: BlockInputs) -> None:
    """Copy the graph of a call, and what else its blocks read, into the buffers."""
    copy_into(buffers.csr, inputs.csr)
    copy_rows(leaves_of(buffers), leaves_of(inputs))


class GradientBuffers:
    """Gradients of one layer, and their sums over the layers.

    Attributes:
        stream: gradients of the G groups, which each layer backward updates.
        leaves: gradients of the leaves, summed over the layers; None where none is needed.
        row: the gradients of the K parameters side by side, of one layer.
        parameters: their views in ``row``.
        used: numbers of the leaves, then of the parameters (from ``NUM_LEAVES`` on), that the blocks do use.
    """

    def __init__(
        self,
        stream: Sequence[Tensor],
        dtype: torch.dtype,
        leaves: Sequence[Tensor | None],
        parameters: Sequence[Tensor],
    ) -> None:
        self.stream = [torch.zeros_like(group, dtype=dtype) for group in stream]
        self.leaves = [None if leaf is None else torch.zeros_like(leaf) for leaf in leaves]
        self.row = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
        parts = torch.split(self.row, [parameter.numel() for parameter in parameters])
        self.parameters = [part.view_as(value) for part, value in zip(parts, parameters, strict=True)]
        self.used: set[int] = set()

    def add(self, sums: Mapping[int, Tensor], grads: Sequence[Tensor | None]) -> None:
        """Add one gradient to each sum, whose key is its number in ``used``."""
        found = {key: grad for key, grad in zip(sums, grads, strict=True) if grad is not None}
        if found:
            torch._foreach_add_([sums[key] for key in found], list(found.values()))
            self.used.update(found)

    def split(self, table: Tensor) -> list[Tensor | None]:
        """[L, all elements] rows of L distinct layers to the gradients of their L x K parameters; None if not used."""
        columns = torch.split(table, [gradient.numel() for gradient in self.parameters], dim=1)
        by_parameter = [
            column.view(-1, *gradient.shape).unbind() if NUM_LEAVES + k in self.used else [None] * len(table)
            for k, (column, gradient) in enumerate(zip(columns, self.parameters, strict=True))
        ]
        return [gradient for layer in zip(*by_parameter, strict=True) for gradient in layer]


def copy_rows(buffers: Sequence[Tensor | None], tensors: Sequence[Tensor | None]) -> None:
    """Copy tensors into the first rows of buffers; the other rows get zeros."""
    for buffer, tensor in zip(buffers, tensors, strict=True):
        if buffer is not None and tensor is not None:
            buffer[: tensor.size(0)].copy_(tensor)
            buffer[tensor.size(0) :].zero_()


class Recording:
    """Static buffers for the states, inputs and parameters of one layer, and the recorded work on them.

    Every call fills the buffers anew, so calls may be mixed in any order.

    Args:
        layer: whose blocks are evaluated, in place of all layers.
        slice_edges: as of the stack.
        signature: of the calls it serves.
        size: nodes and edges of the buffers; one node stays unused.
        inputs: those of the first call.
        parameters: those of some layer.
        record: a function that repeats a piece of work; see ``Recorder``.
    """

    def __init__(
        self,
        layer: Layer,
        slice_edges: bool,
        signature: Signature,
        size: tuple[int, int],
        inputs: BlockInputs,
        parameters: Sequence[Tensor],
        record: Callable[[Work, torch.device], Work],
    ) -> None:
        self.signature = signature
        self.num_nodes, self.num_edges = num_nodes, num_edges = size
        self._layer, self._slice_edges = layer, slice_edges
        num_groups = len(layer.blocks)
        shape = num_nodes, signature.num_channels // num_groups
        self._stream = [torch.zeros(shape, dtype=STREAM_DTYPE, device=signature.device) for _ in range(num_groups)]
        self._parameters = [parameter.detach().clone() for parameter in parameters]
        self._inputs = empty_inputs(inputs, num_nodes, num_edges)
        copy_inputs(self._inputs, inputs)
        self._replay_forward = record(self._layer_forward, signature.device)
        if signature.has_backward:
            pairs = zip(leaves_of(self._inputs), signature.leaves_need_grad, strict=True)
            leaves = [leaf if needed else None for leaf, needed in pairs]
            self._grads = GradientBuffers(self._stream, signature.dtype, leaves, parameters)
            self._replay_backward = record(self._layer_backward, signature.device)

    def serves(self, num_nodes: int, num_edges: int) -> bool:
        """True if a graph fits without leaving much of the buffers unused."""
        return num_nodes < self.num_nodes and num_edges <= self.num_edges and self.is_near(num_nodes, num_edges)

    def is_near(self, num_nodes: int, num_edges: int) -> bool:
        """True if a graph is about as large as the buffers."""
        pairs = ((self.num_nodes, round_up(num_nodes + 1)), (self.num_edges, round_up(num_edges)))
        return all(MIN_FILL * max(pair) <= min(pair) for pair in pairs)

    def forward(
        self, x: Tensor, inputs: BlockInputs, layers: Sequence[Sequence[Tensor]], num_steps: int
    ) -> list[Tensor]:
        """The stream after the last layer, G groups of [N, C/G] in float64, for the states x [N, C].

        ``num_steps`` layers are applied; the distinct ones, whose parameters ``layers`` are, are cycled through.
        """
        with torch.inference_mode(False), torch.no_grad():
            copy_inputs(self._inputs, inputs)
            copy_rows(self._stream, x.chunk(len(self._stream), dim=1))
            for step in range(num_steps):
                torch._foreach_copy_(self._parameters, list(layers[step % len(layers)]))
                self._replay_forward()
            return [group[: x.size(0)].clone() for group in self._stream]

    def backward(
        self,
        stream: Sequence[Tensor],
        grad: Tensor,
        inputs: BlockInputs,
        layers: Sequence[Sequence[Tensor]],
        num_steps: int,
    ) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
        """Gradients, by the reverse pass from the stream of :meth:`forward` and the gradient [N, C] of the output.

        Returns:
            Of x; of the leaves; of the parameters, layer after layer, of the distinct layers that were applied. None
            where none is needed or was found.
        """
        grads, num_nodes = self._grads, grad.size(0)
        with torch.no_grad():
            copy_inputs(self._inputs, inputs)
            copy_rows(self._stream, stream)
            copy_rows(grads.stream, grad.chunk(len(grads.stream), dim=1))
            for total in grads.leaves:
                if total is not None:
                    total.zero_()
            table = grads.row.new_zeros(min(len(layers), num_steps), grads.row.numel())
            for step in reversed(range(num_steps)):
                torch._foreach_copy_(self._parameters, list(layers[step % len(layers)]))
                self._replay_backward()
                table[step % len(layers)].add_(grads.row)
            num_rows = (inputs.csr.num_edges, None, None, num_nodes)
            leaves = [
                total[:rows].clone() if total is not None and k in grads.used else None
                for k, (total, rows) in enumerate(zip(grads.leaves, num_rows, strict=True))
            ]
            return torch.cat([group[:num_nodes] for group in grads.stream], dim=1), leaves, grads.split(table)

    def _layer_forward(self) -> None:
        """The recorded work of one layer forward."""
        blocks, slots = self._layer
        groups = self._groups(leaves_of(self._inputs))
        with replaced([*itertools.chain.from_iterable(slots)], self._parameters), self._autocast(), torch.no_grad():
            couple_in_place(blocks, self._stream, groups, self.signature.dtype)

    def _layer_backward(self) -> None:
        """The recorded work of one layer backward."""
        signature, grads = self.signature, self._grads
        groups = self._groups(leaves_of(self._inputs))
        # Sums of gradients are cut like the leaves they belong to.
        pairs = zip(leaves_of(self._inputs), grads.leaves, strict=True)
        sums = self._groups([leaf if total is None else total for leaf, total in pairs])
        with torch.no_grad():
            grads.row.zero_()
        for index, block in reversed(list(enumerate(self._layer.blocks))):
            slots = self._layer.slots[index]
            leaves = _aliases(leaves_of(groups[index]), signature.leaves_need_grad)
            parameters = _aliases(self._parameters, signature.parameters_need_grad)
            read = [*range(NUM_LEAVES), *(NUM_LEAVES + slot.which for slot in slots)]
            tensors = [*leaves, *parameters]
            sources = {k: t for k in read if (t := tensors[k]) is not None and t.requires_grad}
            with torch.enable_grad(), self._autocast(), replaced(slots, parameters):
                inputs = with_leaves(groups[index], leaves)
                found = uncouple_with_gradients(
                    block, index, self._stream, grads.stream, inputs, list(sources.values())
                )
            targets = [*leaves_of(sums[index]), *grads.parameters]
            with torch.no_grad():
                grads.add({k: targets[k] for k in sources}, found)
            del found

    def _groups(self, leaves: Sequence[Tensor | None]) -> list[BlockInputs]:
        """Leaves, or the gradients of leaves, cut for the groups."""
        inputs, num_groups = with_leaves(self._inputs, leaves), len(self._layer.blocks)
        return [inputs.group(index, num_groups, slice_edges=self._slice_edges) for index in range(num_groups)]

    def _autocast(self) -> torch.autocast:
        enabled, dtype = self.signature.autocast
        # Weights that autocast would cache in here are those of one layer.
        return torch.autocast(self.signature.device.type, dtype=dtype, enabled=enabled, cache_enabled=False)


def _aliases(tensors: Sequence[Tensor | None], needs_grad: Sequence[bool]) -> list[Tensor | None]:
    """The same tensors, as ends of the tape where a gradient is needed."""
    return [
        tensor.detach().requires_grad_() if tensor is not None and needed else tensor
        for tensor, needed in zip(tensors, needs_grad, strict=True)
    ]
