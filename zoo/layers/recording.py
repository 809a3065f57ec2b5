"""One layer on tensors that stay where they are: recorded once, repeated for all layers of a stack and many graphs."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from zoo.layers.coupling import STREAM_DTYPE, couple_in_place, uncouple_with_gradients
from zoo.layers.inputs import BlockInputs, EdgeInput
from zoo.layers.recorder import Recorder
from zoo.layers.replay import Slot, replaced
from zoo.ops.csr import empty_csr, overwrite

TensorT = TypeVar("TensorT", Tensor, "Tensor | None")

# Parts are about as large as the room of a recording if neither is less than this share of the other.
SHARE = 0.75


class Template(NamedTuple):
    """The layer that stands for all layers.

    Attributes:
        blocks: its G blocks.
        slots: for each block where it keeps which of the layer's K parameters.
        slice_edges: as of the stack.
    """

    blocks: Sequence[nn.Module]
    slots: Sequence[Sequence[Slot]]
    slice_edges: bool


class Kind(NamedTuple):
    """What the work depends on besides the numbers and the size of the graph.

    Attributes:
        states: precision and place of the states, and how many channels.
        leaves: precision and shape, but for nodes and edges, of what the blocks read; None: not given.
        col: precision of the sources.
        parameters: precision and shape of each of the layer's K parameters.
        autocast: whether, and to what.
        wanted_leaves: which leaves get a gradient.
        wanted: which parameters get a gradient in some layer.
        with_tape: whether there is a backward pass.
    """

    states: tuple[torch.dtype, torch.device, int]
    leaves: tuple[tuple[torch.dtype, tuple[int, ...]] | None, ...]
    col: torch.dtype
    parameters: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    autocast: tuple[bool, torch.dtype]
    wanted_leaves: tuple[bool, ...]
    wanted: tuple[bool, ...]
    with_tape: bool


def leaves_of(inputs: BlockInputs) -> list[Tensor | None]:
    """What of the blocks' inputs may carry a gradient: edge features, their weight and bias, the mask."""
    return [*(inputs.edges or (None, None, None)), inputs.mask]


def with_leaves(inputs: BlockInputs, leaves: Sequence[Tensor | None]) -> BlockInputs:
    """The same graph with other leaves."""
    attr, weight, bias, mask = leaves
    return inputs._replace(edges=None if attr is None else EdgeInput(attr, weight, bias), mask=mask)


def roomy(count: int) -> int:
    """A count rounded up by at most a sixteenth, so that parts of nearly the same size get the same room."""
    step = 1 << max(count.bit_length() - 5, 0)
    return -(-count // step) * step


class Recording:
    """Room for the states, inputs and parameters of one layer, and the recorded work on them.

    Every call fills the room anew, so calls may be mixed in any order.

    Args:
        template: whose blocks are evaluated.
        kind: what they are evaluated on.
        size: nodes and edges to have room for; one node stays unused.
        x: [N, C] the states of the first call.
        inputs: those of the first call.
        values: the parameters of some layer.
        recorder: how to record.
    """

    def __init__(
        self,
        template: Template,
        kind: Kind,
        size: tuple[int, int],
        x: Tensor,
        inputs: BlockInputs,
        values: Sequence[Tensor],
        recorder: Recorder,
    ) -> None:
        self.kind = kind
        self.num_nodes, self.num_edges = num_nodes, num_edges = size
        self._template = template
        num_groups = len(template.blocks)
        width = x.size(1) // num_groups
        self._stream = [x.new_zeros(num_nodes, width, dtype=STREAM_DTYPE) for _ in range(num_groups)]
        self._values = [value.detach().clone() for value in values]
        leaves = [
            None if leaf is None else leaf.new_zeros(leaf.shape if count is None else (count, leaf.size(1)))
            for leaf, count in zip(leaves_of(inputs), (num_edges, None, None, num_nodes), strict=True)
        ]
        csr = empty_csr(num_nodes, num_edges, inputs.csr)
        self._inputs = with_leaves(inputs._replace(csr=csr), leaves)
        self._groups = self._cut(self._inputs)
        self._seen: list[tuple[weakref.ref[Tensor], int]] = []
        self._fill(inputs)
        self._step_forward = recorder.record(self._forward, x.device)
        if not kind.with_tape:
            return
        self._flow = [x.new_zeros(num_nodes, width) for _ in range(num_groups)]
        # Cut like the leaves they belong to; where no gradient is wanted, any tensor does.
        self._sums = [
            torch.zeros_like(leaf) if leaf is not None and wanted else leaf
            for leaf, wanted in zip(leaves, kind.wanted_leaves, strict=True)
        ]
        self._group_sums = [leaves_of(group) for group in self._cut(with_leaves(self._inputs, self._sums))]
        sizes = [value.numel() for value in values]
        self._row = x.new_zeros(sum(sizes), dtype=values[0].dtype if values else x.dtype)
        self._gradients = [
            part.view_as(value) for part, value in zip(torch.split(self._row, sizes), values, strict=True)
        ]
        self._used, self._used_leaves = set[int](), set[int]()
        self._step_backward = recorder.record(self._backward, x.device)

    def serves(self, num_nodes: int, num_edges: int) -> bool:
        """Whether a graph fits without wasting much of the room."""
        return num_nodes < self.num_nodes and num_edges <= self.num_edges and self.resembles(num_nodes, num_edges)

    def resembles(self, num_nodes: int, num_edges: int) -> bool:
        """Whether a graph is about as large as the room."""
        pairs = ((self.num_nodes, roomy(num_nodes + 1)), (self.num_edges, roomy(num_edges)))
        return all(SHARE * max(pair) <= min(pair) for pair in pairs)

    def advance(
        self, x: Tensor, inputs: BlockInputs, layers: Sequence[Sequence[Tensor]], num_steps: int
    ) -> list[Tensor]:
        """The stream after the last layer.

        Args:
            x: [N, C] states.
            inputs: of the blocks.
            layers: the parameters of each distinct layer.
            num_steps: layers to apply; the distinct ones are cycled through.

        Returns:
            G groups of [N, C/G], float64.
        """
        with torch.inference_mode(False), torch.no_grad():
            self._fill(inputs)
            _load(self._stream, x.chunk(len(self._stream), dim=1))
            for step in range(num_steps):
                self._read(layers, step)
                self._step_forward()
            return [group[: x.size(0)].clone() for group in self._stream]

    def retreat(
        self,
        stream: Sequence[Tensor],
        grad: Tensor,
        inputs: BlockInputs,
        layers: Sequence[Sequence[Tensor]],
        num_steps: int,
    ) -> tuple[Tensor, list[Tensor | None], list[tuple[Tensor | None, ...]]]:
        """Gradients, by walking back from the last layer to the first.

        Args:
            stream: what :meth:`advance` returned.
            grad: [N, C] gradient of the output.
            inputs: as for :meth:`advance`.
            layers: as for :meth:`advance`.
            num_steps: as for :meth:`advance`.

        Returns:
            Of x; of the leaves; and of the parameters of each distinct layer. None where nothing flowed or was wanted.
        """
        n, distinct = grad.size(0), min(len(layers), num_steps)
        with torch.no_grad():
            self._fill(inputs)
            _load(self._stream, stream)
            _load(self._flow, grad.chunk(len(self._flow), dim=1))
            for total, wanted in zip(self._sums, self.kind.wanted_leaves, strict=True):
                if total is not None and wanted:
                    total.zero_()
            table = self._row.new_zeros(distinct, self._row.numel())
            rows = table.unbind()
            for step in reversed(range(num_steps)):
                self._read(layers, step)
                self._step_backward()
                rows[step % len(layers)].add_(self._row)
            counts = (inputs.csr.num_edges, None, None, n)
            leaves = [
                total[:count].clone() if total is not None and index in self._used_leaves else None
                for index, (total, count) in enumerate(zip(self._sums, counts, strict=True))
            ]
            parts = torch.split(table, [value.numel() for value in self._values], dim=1) if self._values else ()
            columns = [
                part.view(distinct, *value.shape).unbind() if k in self._used else [None] * distinct
                for k, (part, value) in enumerate(zip(parts, self._values, strict=True))
            ]
            parameters = list(zip(*columns, strict=True))
            return torch.cat([group[:n] for group in self._flow], dim=1), leaves, parameters

    def _cut(self, inputs: BlockInputs) -> list[BlockInputs]:
        num_groups = len(self._template.blocks)
        return [inputs.group(i, num_groups, slice_edges=self._template.slice_edges) for i in range(num_groups)]

    def _forward(self) -> None:
        """The work of one layer forward."""
        blocks, slots, _ = self._template
        with ExitStack() as state:
            for places in slots:
                state.enter_context(replaced(places, self._values))
            state.enter_context(self._autocast())
            state.enter_context(torch.no_grad())
            couple_in_place(blocks, self._stream, self._groups, self.kind.states[0])

    def _backward(self) -> None:
        """The work of one layer backward."""
        blocks, slots, _ = self._template
        for index in reversed(range(len(blocks))):
            group = self._groups[index]
            read = [_alias(leaf, want) for leaf, want in zip(leaves_of(group), self.kind.wanted_leaves, strict=True)]
            own = {slot.which: _alias(self._values[slot.which], self.kind.wanted[slot.which]) for slot in slots[index]}
            leaves = {which: leaf for which, leaf in enumerate(read) if leaf is not None and leaf.requires_grad}
            learned = {which: value for which, value in own.items() if value.requires_grad}
            with torch.enable_grad(), self._autocast(), replaced(slots[index], own):
                found = uncouple_with_gradients(
                    blocks[index],
                    index,
                    self._stream,
                    self._flow,
                    with_leaves(group, read),
                    [*leaves.values(), *learned.values()],
                )
            with torch.no_grad():
                self._collect(index, list(leaves), found[: len(leaves)], list(learned), found[len(leaves) :])
            del found

    def _collect(
        self,
        index: int,
        leaves: Sequence[int],
        leaf_gradients: Sequence[Tensor | None],
        learned: Sequence[int],
        gradients: Sequence[Tensor | None],
    ) -> None:
        """Add the gradients of what group ``index`` read to the others', and put those of its parameters in the row."""
        for which, gradient in zip(leaves, leaf_gradients, strict=True):
            total = self._group_sums[index][which]
            if gradient is not None and total is not None:
                total.add_(gradient)
                self._used_leaves.add(which)
        used = {which: gradient for which, gradient in zip(learned, gradients, strict=True) if gradient is not None}
        if used:
            torch._foreach_copy_([self._gradients[which] for which in used], list(used.values()))
            self._used.update(used)

    def _autocast(self) -> torch.autocast:
        enabled, dtype = self.kind.autocast
        # Weights that autocast would cache in here are those of one layer.
        return torch.autocast(self.kind.states[1].type, dtype=dtype, enabled=enabled, cache_enabled=False)

    def _read(self, layers: Sequence[Sequence[Tensor]], step: int) -> None:
        if self._values:
            torch._foreach_copy_(self._values, list(layers[step % len(layers)]))

    def _fill(self, inputs: BlockInputs) -> None:
        leaves, room = leaves_of(inputs), leaves_of(self._inputs)
        graph = [*inputs.csr, *(leaf for leaf in leaves[:1] if leaf is not None)]
        if not self._saw(graph):
            # If this fails midway, the next call begins anew.
            self._seen = []
            overwrite(self._inputs.csr, inputs.csr)
            _load(room[:1], leaves[:1])
            # Tensors made in inference mode do not count their changes.
            if not any(tensor.is_inference() for tensor in graph):
                self._seen = [(weakref.ref(tensor), tensor._version) for tensor in graph]
        for old, new in zip(room[1:3], leaves[1:3], strict=True):
            if old is not None and new is not None:
                old.copy_(new)
        _load(room[3:], leaves[3:])

    def _saw(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors of last time, unchanged."""
        return len(self._seen) == len(tensors) and all(
            seen() is tensor and version == tensor._version
            for (seen, version), tensor in zip(self._seen, tensors, strict=True)
        )


def _load(room: Sequence[Tensor | None], tensors: Sequence[Tensor | None]) -> None:
    """Copy tensors into the first rows of larger ones; the others get zeros."""
    for large, small in zip(room, tensors, strict=True):
        if large is not None and small is not None:
            large[: small.size(0)].copy_(small)
            large[small.size(0) :].zero_()


def _alias(tensor: TensorT, requires_grad: bool) -> TensorT:
    return tensor.detach().requires_grad_() if requires_grad and tensor is not None else tensor
