"""The weighted sum on the GPU: launches the Triton kernels. Results repeat bit for bit."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from zoo.ops.csr import CSR
from zoo.ops.gen_aggregate.cuda import BLOCK_EDGES, _Call, _launch, _tile
from zoo.ops.gen_aggregate.cuda_kernels import join_sum
from zoo.ops.gen_aggregate.interface import Messages
from zoo.ops.weighted_sum import cuda_kernels


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """See ``functions.Backend``."""
    N, H, C = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if not x.numel():
        return torch.zeros(x.shape, dtype=dtype, device=x.device)
    call, rows = _call(x, csr)
    size, num_warps = _tile(C)
    # What a kernel does not read may be any tensor.
    weights = rows if weight is None else weight.contiguous()
    num_pieces = call.plan.start.numel()
    out = torch.empty(num_pieces, H, C, dtype=dtype, device=x.device)
    _launch(
        cuda_kernels.weighted_sum,
        (num_pieces, H * triton.cdiv(C, size)),
        x.device,
        *(call.plan.start, call.plan.end, csr.col, rows, rows.stride(0), weights, H, C, out),
        WEIGHTED=weight is not None,
        BE=BLOCK_EDGES,
        BC=size,
        num_warps=num_warps,
    )
    call.join(join_sum, out)
    # A fresh tensor, not a view of one: autograd would forbid to change a view in place.
    return out if num_pieces == N else out[:N].clone()


def edge_products(grad: Tensor, x: Tensor, csr: CSR) -> Tensor:
    """See ``functions.Backend``."""
    N, H, C = x.shape
    out = torch.zeros(csr.num_edges, H, dtype=grad.dtype, device=x.device)
    if not x.numel():
        return out
    call, rows = _call(x, csr)
    size, num_warps = _tile(C)
    _launch(
        cuda_kernels.edge_products,
        (call.plan.start.numel(), H),
        x.device,
        *(call.plan.start, call.plan.end, call.plan.target, N, csr.col, rows, rows.stride(0), grad.contiguous()),
        *(H, C, out),
        BE=BLOCK_EDGES,
        BC=size,
        num_warps=num_warps,
    )
    return out


def _call(x: Tensor, csr: CSR) -> tuple[_Call, Tensor]:
    """What knows the pieces of the rows and joins them, and x as [N, H * C]; rows may lie apart."""
    rows = x.flatten(1)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    return _Call(Messages(rows, csr, None, None, None, 0.0)), rows
