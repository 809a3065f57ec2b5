"""Sums and softmax over the incoming edges of every node, for messages that exist as a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.ops.csr import CSR


def edge_targets(csr: CSR) -> Tensor:
    """[E] int64, the target node of every edge."""
    nodes = torch.arange(csr.num_nodes, device=csr.rowptr.device)
    return torch.repeat_interleave(nodes, csr.rowptr.diff(), output_size=csr.num_edges)


def segment_sum(values: Tensor, csr: CSR) -> Tensor:
    """Sum the values of each node's incoming edges: [E, ...] to [N, ...]; a node without edges gets zeros."""
    out = values.new_zeros((csr.num_nodes, *values.shape[1:]))
    return out.index_add(0, edge_targets(csr), values)


def segment_softmax(scores: Tensor, csr: CSR) -> Tensor:
    """Softmax over each node's incoming edges.

    Args:
        scores: [E, H]; an edge whose score is -inf gets weight zero.
        csr: incoming edges of each node.

    Returns:
        [E, H]; the weights of a node with any finite score sum to one.
    """
    target = edge_targets(csr)
    top = scores.new_full((csr.num_nodes, scores.size(1)), -torch.inf)
    top = top.scatter_reduce(0, target.unsqueeze(1).expand_as(scores), scores.detach(), "amax")
    weights = (scores - top.masked_fill(top.isneginf(), 0)[target]).exp()
    total = segment_sum(weights, csr)
    return weights / total.masked_fill(total == 0, 1)[target]
