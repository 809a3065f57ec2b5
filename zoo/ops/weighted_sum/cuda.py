"""The weighted sum on the GPU: launches the Triton kernels. Results repeat bit for bit."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from zoo.ops.csr import CSR
from zoo.ops.tensors import unit_stride
from zoo.ops.triton_kernels import join_sum
from zoo.ops.triton_launch import BLOCK_EDGES, join, launch, plan_of, tile
from zoo.ops.weighted_sum import cuda_kernels


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """See ``functions.Backend``."""
    N, H, C = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if not x.numel():
        return torch.zeros(x.shape, dtype=dtype, device=x.device)
    # [N, H * C]; rows may lie apart.
    plan, rows = plan_of(csr), unit_stride(x.flatten(1))
    size, num_warps = tile(C)
    # What a kernel does not read may be any tensor.
    weights = rows if weight is None else weight.contiguous()
    num_pieces = plan.start.numel()
    out = torch.empty(num_pieces, H, C, dtype=dtype, device=x.device)
    launch(
        cuda_kernels.weighted_sum,
        (num_pieces, H * triton.cdiv(C, size)),
        x.device,
        *(plan.start, plan.end, csr.col, rows, rows.stride(0), weights, H, C, out),
        WEIGHTED=weight is not None,
        BE=BLOCK_EDGES,
        BC=size,
        num_warps=num_warps,
    )
    join(join_sum, plan, out)
    # A fresh tensor, not a view of one: autograd would forbid to change a view in place.
    return out if num_pieces == N else out[:N].clone()


def edge_products(grad: Tensor, x: Tensor, csr: CSR) -> Tensor:
    """See ``functions.Backend``."""
    N, H, C = x.shape
    out = torch.zeros(csr.num_edges, H, dtype=grad.dtype, device=x.device)
    if not x.numel():
        return out
    # [N, H * C]; rows may lie apart.
    plan, rows = plan_of(csr), unit_stride(x.flatten(1))
    size, num_warps = tile(C)
    launch(
        cuda_kernels.edge_products,
        (plan.start.numel(), H),
        x.device,
        *(plan.start, plan.end, plan.target, N, csr.col, rows, rows.stride(0), grad.contiguous()),
        *(H, C, out),
        BE=BLOCK_EDGES,
        BC=size,
        num_warps=num_warps,
    )
    return out
