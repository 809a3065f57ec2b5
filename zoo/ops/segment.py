"""Properties of a graph that convolutions need, and the softmax over the edges of a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.csr import CSR, cached

Value = TypeVar("Value")


def edge_targets(csr: CSR) -> Tensor:
    """[E] int64, the target node of every edge."""
    nodes = torch.arange(csr.num_nodes, device=csr.rowptr.device)
    return torch.repeat_interleave(nodes, csr.rowptr.diff(), output_size=csr.num_edges)


def out_degrees(csr: CSR) -> Tensor:
    """[N] int64, the number of edges that leave every node."""
    return _cached(csr, "out-degrees", lambda csr: torch.bincount(csr.col, minlength=csr.num_nodes))


def without_loops(csr: CSR) -> CSR:
    """The edges between different nodes."""
    without = _cached(csr, "without loops", _without_loops)
    return csr if without is None else without


def _without_loops(csr: CSR) -> CSR | None:
    kept = csr.col != edge_targets(csr)
    if bool(kept.all()):
        return None
    num_kept_before = F.pad(kept.cumsum(0), (1, 0))  # [E + 1]
    return CSR(num_kept_before[csr.rowptr], csr.col[kept])


def _cached(csr: CSR, key: str, build: Callable[[CSR], Value]) -> Value:
    if torch.compiler.is_compiling():
        return build(csr)
    # A tensor made in inference mode would be of no use to a later training pass.
    with torch.inference_mode(False):
        return cached(csr, key, build)


def segment_softmax(scores: Tensor, csr: CSR) -> Tensor:
    """Softmax over each node's incoming edges.

    Args:
        scores: [E, H]; an edge whose score is -inf gets weight zero.
        csr: incoming edges of each node.

    Returns:
        [E, H]; the weights of a node with any finite score sum to one.
    """
    target = edge_targets(csr)
    top = torch.segment_reduce(scores.detach(), "max", offsets=csr.rowptr, unsafe=True, initial=-torch.inf)
    weights = (scores - top.masked_fill(top.isneginf(), 0).index_select(0, target)).exp()
    total = torch.segment_reduce(weights, "sum", offsets=csr.rowptr, unsafe=True, initial=0)
    return weights / total.masked_fill(total == 0, 1).index_select(0, target)
