"""The inputs of every block of a stack besides the node states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.ops.csr import CSR, as_csr
from zoo.ops.edges import EdgeInput


class BlockInputs(NamedTuple):
    """The graph and the randomness that all blocks of a stack share.

    Attributes:
        csr: incoming edges of every node.
        edges: edge embeddings of C channels, or None.
        mask: [N, C] dropout mask shared by all layers, scaled by 1 / (1 - p); None outside training.
        kept: [L, E] bool, the edges each layer attends to; [E] inside a block; None: all.
        edge_weight: [E], a factor for the message of each edge; None: 1.
        initial: [N, C] states before the first layer, for layers that read them; None: they do not.
    """

    csr: CSR
    edges: EdgeInput | None = None
    mask: Tensor | None = None
    kept: Tensor | None = None
    edge_weight: Tensor | None = None
    initial: Tensor | None = None

    @classmethod
    def from_edges(
        cls,
        edge_index: Tensor | CSR,
        edge_attr: Tensor | None = None,
        edge_weight: Tensor | None = None,
        *,
        num_nodes: int,
    ) -> BlockInputs:
        """The inputs of a graph, without dropout.

        Args:
            edge_index: [2, E] sources and targets, or the CSR of the incoming edges.
            edge_attr: [E, D] edge features in the order of ``edge_index``. A ``GENConv`` with D ``embedding_channels``
                projects them; one without adds them to its messages, so D must be its number of channels.
            edge_weight: [E] factors of the messages in the order of ``edge_index``, for convolutions that read them.
            num_nodes: N.

        Raises:
            ValueError: if ``edge_index`` is not of this form, names a node that does not exist, or ``edge_attr`` or
                ``edge_weight`` has not one row for each edge.
        """
        return cls.in_order(edge_index, edge_attr, edge_weight, num_nodes=num_nodes)[0]

    @classmethod
    def in_order(
        cls, edge_index: Tensor | CSR, edge_attr: Tensor | None, edge_weight: Tensor | None, *, num_nodes: int
    ) -> tuple[BlockInputs, Tensor | None]:
        """As ``from_edges``, and [E] the position of each edge of the CSR in ``edge_index``; None: the same order."""
        csr, perm = as_csr(edge_index, num_nodes)
        if edge_attr is not None and (edge_attr.dim() != 2 or edge_attr.size(0) != csr.num_edges):
            raise ValueError(f"edge_attr: expected [{csr.num_edges}, D], got {list(edge_attr.shape)}")
        if edge_weight is not None and list(edge_weight.shape) != [csr.num_edges]:
            raise ValueError(f"edge_weight: expected [{csr.num_edges}], got {list(edge_weight.shape)}")
        # The CSR sorts edges by target; whatever is given for each edge has to be sorted with them.
        if perm is not None:
            edge_attr = None if edge_attr is None else edge_attr[perm]
            edge_weight = None if edge_weight is None else edge_weight[perm]
        return cls(csr, None if edge_attr is None else EdgeInput(edge_attr), edge_weight=edge_weight), perm

    def group(self, index: int, num_groups: int, *, slice_edges: bool) -> BlockInputs:
        """The inputs of a coupling group: its slice of the mask and, with ``slice_edges``, of the edge channels."""
        edges, mask = self.edges, self.mask
        if mask is not None:
            width = mask.size(1) // num_groups
            mask = mask[:, index * width : (index + 1) * width]
        if edges is not None and slice_edges:
            width = (edges.attr if edges.weight is None else edges.weight.t()).size(1) // num_groups
            edges = edges.channels(index * width, (index + 1) * width)
        return self._replace(edges=edges, mask=mask)

    def layer(self, index: int) -> BlockInputs:
        """The inputs of one layer."""
        return self if self.kept is None else self._replace(kept=self.kept[index])


def full_precision(x: Tensor, owner: str) -> Tensor:
    """States in float32 or float64: those of half precision are widened if autocast is on, and refused otherwise.

    Raises:
        ValueError: if x is of another precision: iterated states drown in its rounding.
    """
    if x.dtype in (torch.float32, torch.float64):
        return x
    if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
        return x.float()
    hint = "; for speed use torch.autocast" if x.is_floating_point() else ""
    raise ValueError(f"{owner} needs float32 or float64 states, got {x.dtype}{hint}")
