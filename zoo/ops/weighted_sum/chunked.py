"""The weighted sum in PyTorch alone, a bounded number of edges at a time: for any device, with nothing to compile.

Where several edges meet in one row, PyTorch's own ``index_add_`` decides about the order of the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.ops.csr import CSR
from zoo.ops.edge_chunks import chunks, sum_dtype


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """See ``functions.Backend``."""
    out = torch.zeros(x.shape, dtype=sum_dtype(x), device=x.device)
    for chunk in chunks(csr, x[0:1].numel()):
        message = x.index_select(0, chunk.col).to(out.dtype)
        if weight is not None:
            message *= weight[chunk.edges, :, None]
        out[chunk.rows].index_add_(0, chunk.row, message)
    return out


def edge_products(grad: Tensor, x: Tensor, csr: CSR) -> Tensor:
    """See ``functions.Backend``."""
    out = torch.empty(csr.num_edges, x.shape[1], dtype=grad.dtype, device=x.device)
    for chunk in chunks(csr, x[0:1].numel()):
        message = x.index_select(0, chunk.col).to(out.dtype)
        torch.sum(message.mul_(chunk.gather(grad)), 2, out=out[chunk.edges])
    return out
