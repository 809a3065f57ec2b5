"""Buffers that recorded work reads and writes: they stay where they are while their contents change."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zoo.layers.inputs import BlockInputs
from zoo.ops.csr import copy_into, empty_csr
from zoo.ops.edges import EdgeInput

NUM_LEAVES = 4


def leaves_of(inputs: BlockInputs) -> list[Tensor | None]:
    """The inputs that may carry a gradient: edge features [E, D], their weight and bias, the mask [N, C]."""
    return [*(inputs.edges or (None, None, None)), inputs.mask]


def with_leaves(inputs: BlockInputs, leaves: Sequence[Tensor | None]) -> BlockInputs:
    """The same graph with other leaves."""
    attr, weight, bias, mask = leaves
    return inputs._replace(edges=None if attr is None else EdgeInput(attr, weight, bias), mask=mask)


class StaticInputs:
    """The inputs of a layer's blocks in buffers that stay where they are.

    Args:
        inputs: those of the first call.
        num_nodes: rows of the buffers, more than the nodes of any graph copied there.
        num_edges: likewise for edges, or as many.
    """

    def __init__(self, inputs: BlockInputs, num_nodes: int, num_edges: int) -> None:
        self.leaves = [
            None if leaf is None else leaf.new_zeros(leaf.shape if rows is None else (rows, leaf.size(1)))
            for leaf, rows in zip(leaves_of(inputs), (num_edges, None, None, num_nodes), strict=True)
        ]
        csr = empty_csr(num_nodes, num_edges, inputs.csr)
        self.inputs = with_leaves(inputs._replace(csr=csr), self.leaves)
        self._graph: list[tuple[weakref.ref[Tensor], int]] = []

    def copy_from(self, inputs: BlockInputs) -> None:
        """Copy the inputs of a call into the buffers; the graph only if it is not there already."""
        attr, *others = leaves_of(inputs)
        graph = [*inputs.csr] if attr is None else [*inputs.csr, attr]
        if not self._holds(graph):
            # If this fails midway, the next call begins anew.
            self._graph = []
            copy_into(self.inputs.csr, inputs.csr)
            copy_rows(self.leaves[:1], [attr])
            # Tensors made in inference mode do not count their changes.
            if not any(tensor.is_inference() for tensor in graph):
                self._graph = [(weakref.ref(tensor), tensor._version) for tensor in graph]
        copy_rows(self.leaves[1:], others)

    def _holds(self, graph: Sequence[Tensor]) -> bool:
        """True if these are the tensors that were copied last, unchanged."""
        return len(self._graph) == len(graph) and all(
            copied() is tensor and version == tensor._version
            for (copied, version), tensor in zip(self._graph, graph, strict=True)
        )


class GradientBuffers:
    """Gradients of one layer, and their sums over the layers.

    Args:
        stream: the G groups of the residual stream, [N, C/G] each.
        dtype: precision of the blocks.
        leaves: of the blocks' inputs; None where no gradient is needed.
        parameters: the K parameters of the layer.

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
