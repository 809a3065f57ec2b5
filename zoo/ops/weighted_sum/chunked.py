"""The weighted sum in PyTorch alone, a bounded number of edges at a time: for any device, with nothing to compile.

Every backend has functions of these names and arguments, or leaves them to this one.

Where several edges meet in one row, PyTorch's own ``index_add_`` decides about the order of the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.ops.csr import CSR
from zoo.ops.dispatch import compute_dtype
from zoo.ops.work_items import chunks


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """[N, H, C] sums of weight[e, h] * x[col[e], h] over the edges of each row; None, with H = 1: weights of 1."""
    out = torch.zeros(x.shape, dtype=compute_dtype(x), device=x.device)
    for chunk in chunks(csr, x[0:1].numel()):
        message = x.index_select(0, chunk.col).to(out.dtype)
        if weight is not None:
            message *= weight[chunk.edges, :, None]
        out[chunk.rows].index_add_(0, chunk.row, message)
    return out


def edge_products(grad: Tensor, x: Tensor, csr: CSR) -> Tensor:
    """[E, H] inner products over the channels of grad[i, h] and x[col[e], h] for the edges e of each row i."""
    out = torch.empty(csr.num_edges, x.shape[1], dtype=grad.dtype, device=x.device)
    for chunk in chunks(csr, x[0:1].numel()):
        message = x.index_select(0, chunk.col).to(out.dtype)
        torch.sum(message.mul_(chunk.gather(grad)), 2, out=out[chunk.edges])
    return out
