"""Edges: features with a folded projection, and sparse adjacency matrices."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from zoo.ops.csr import CSR


class EdgeInput(NamedTuple):
    """Edge embeddings ``attr @ weight.T + bias``, kept apart so that no [E, C] tensor is ever made.

    A linear map of the embeddings is again of this form: its matrix is multiplied into ``weight`` and ``bias``, which
    costs nothing beside touching every edge.

    Attributes:
        attr: [E, D] edge features in the order of the CSR.
        weight: [C, D], or None if ``attr`` itself is the embedding (then C = D).
        bias: [C] or None.
    """

    attr: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None

    def project(self, linear: nn.Linear) -> EdgeInput:
        """The embeddings after a linear map."""
        if self.weight is None:
            return EdgeInput(self.attr, linear.weight, linear.bias)
        # The product of two small matrices decides about every edge: full precision, also under autocast.
        with torch.autocast(self.attr.device.type, enabled=False):
            bias = linear.bias if self.bias is None else torch.addmv(linear.bias, linear.weight, self.bias)
            return EdgeInput(self.attr, linear.weight @ self.weight, bias)

    def channels(self, start: int, stop: int) -> EdgeInput:
        """The slice ``start:stop`` of the channels."""
        if self.weight is None:
            return EdgeInput(self.attr[:, start:stop])
        return EdgeInput(self.attr, self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


def is_sparse(edge_index: Any) -> TypeGuard[Any]:
    """Tell a sparse matrix from an edge list, without importing torch_sparse."""
    if isinstance(edge_index, Tensor):
        return edge_index.layout != torch.strided
    return all(hasattr(edge_index, name) for name in ("csr", "sparse_sizes", "coo"))


def sparse_edges(adj_t: Any) -> tuple[CSR, Tensor | None]:
    """The edges of a transposed adjacency matrix: row i holds the sources of the edges to node i, as in PyG.

    Args:
        adj_t: [N, N] torch.sparse_csr, sparse_csc or sparse_coo tensor, or ``torch_sparse.SparseTensor``.

    Returns:
        The incoming edges of each node, in the order of the matrix' rows, and the [E] or [E, D] numbers that the matrix
        holds, in that order; None if all are 1 or there are none.

    Raises:
        ValueError: if the matrix is not square or has another layout.
    """
    if isinstance(adj_t, Tensor):
        if adj_t.layout in (torch.sparse_coo, torch.sparse_csc):
            adj_t = adj_t.to_sparse_csr()
        if adj_t.layout != torch.sparse_csr:
            raise ValueError(f"edge_index: a sparse matrix must be of layout csr, csc or coo, not {adj_t.layout}")
        sizes, rowptr, col, value = adj_t.shape, adj_t.crow_indices(), adj_t.col_indices(), adj_t.values()
    else:
        sizes, (rowptr, col, value) = adj_t.sparse_sizes(), adj_t.csr()
    if len(sizes) != 2 or sizes[0] != sizes[1]:
        raise ValueError(f"edge_index: a sparse adjacency must be square [N, N], not {list(sizes)}")
    is_plain = value is None or bool((value == 1).all())
    return CSR(rowptr.long().contiguous(), col.contiguous()), None if is_plain else value


def unfold_sparse(edges: Any, edge_attr: Any, edge_weight: Any) -> tuple[Any, Any, Any]:
    """A CSR in place of a sparse matrix, and its numbers in place of features or weights that are not given.

    The numbers of a matrix are weights or, if there are several on an edge, features.
    """
    if not is_sparse(edges):
        return edges, edge_attr, edge_weight
    csr, value = sparse_edges(edges)
    weights, features = (value, None) if value is not None and value.dim() == 1 else (None, value)
    return csr, features if edge_attr is None else edge_attr, weights if edge_weight is None else edge_weight
