"""The incoming edges of every node as compressed sparse rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CSR(NamedTuple):
    """Incoming edges grouped by target node.

    The edges of target node i are the positions ``rowptr[i]`` to ``rowptr[i + 1]``; edge features that go with a CSR
    are stored in the same order.

    Attributes:
        rowptr: [N + 1] int64, where each row starts.
        col: [E] int32 or int64, the source node of each edge.
    """

    rowptr: Tensor
    col: Tensor

    @property
    def num_nodes(self) -> int:
        """Number of target nodes N."""
        return self.rowptr.numel() - 1

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return self.col.numel()

    def to(self, device: torch.device | str) -> CSR:
        """The same rows on another device."""
        return CSR(self.rowptr.to(device), self.col.to(device))


def csr_from_edge_index(edge_index: Tensor, num_nodes: int) -> tuple[CSR, Tensor]:
    """Group edges by target node, keeping the given order within each row.

    Args:
        edge_index: [2, E] integers, sources first, targets second, each in 0 .. num_nodes - 1.
        num_nodes: N.

    Returns:
        The rows, and [E] int64 ``perm``: row position k holds the edge ``perm[k]`` of ``edge_index``, so that
        ``edge_attr[perm]`` are the edge features in row order.
    """
    source, target = edge_index[0], edge_index[1]
    target, perm = torch.sort(target.long(), stable=True)
    rowptr = torch.searchsorted(target, torch.arange(num_nodes + 1, device=target.device))
    return CSR(rowptr, source[perm].contiguous()), perm
