"""Weighted sums on the GPU: Triton kernels, one program per segment of a row, head and tile of channels.

Numbers of any precision are read; sums are kept in the precision of ``out``. Nothing is added atomically: results
repeat bit for bit.
"""

# Triton carries no types, and its functions are not Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.ops.csr import CSR
from zoo.ops.dispatch import compute_dtype, unit_stride
from zoo.ops.triton_launch import BLOCK_EDGES, launch, merge, merge_sum, segments_of, tile


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """See ``chunked``."""
    N, H, C = x.shape
    dtype = compute_dtype(x)
    if not x.numel():
        return torch.zeros(x.shape, dtype=dtype, device=x.device)
    # [N, H * C]; rows may lie apart.
    segments, rows = segments_of(csr), unit_stride(x.flatten(1))
    size, num_warps = tile(C)
    # Any tensor may be passed for an argument that a kernel does not read.
    weights = rows if weight is None else weight.contiguous()
    num_segments = segments.start.numel()
    out = torch.empty(num_segments, H, C, dtype=dtype, device=x.device)
    launch(
        weighted_sum_kernel,
        (num_segments, H * triton.cdiv(C, size)),
        x.device,
        *(segments.start, segments.end, csr.col, rows, rows.stride(0), weights, H, C, out),
        WEIGHTED=weight is not None,
        BE=BLOCK_EDGES,
        BC=size,
        num_warps=num_warps,
    )
    merge(merge_sum, segments, out)
    # A fresh tensor, not a view of one: autograd would forbid to change a view in offsets.
    return out if num_segments == N else out[:N].clone()


def edge_products(grad: Tensor, x: Tensor, csr: CSR) -> Tensor:
    """See ``chunked``."""
    N, H, C = x.shape
    out = torch.zeros(csr.num_edges, H, dtype=grad.dtype, device=x.device)
    if not x.numel():
        return out
    # [N, H * C]; rows may lie apart.
    segments, rows = segments_of(csr), unit_stride(x.flatten(1))
    size, num_warps = tile(C)
    launch(
        edge_products_kernel,
        (segments.start.numel(), H),
        x.device,
        *(segments.start, segments.end, segments.row, N, csr.col, rows, rows.stride(0), grad.contiguous()),
        *(H, C, out),
        BE=BLOCK_EDGES,
        BC=size,
        num_warps=num_warps,
    )
    return out


@triton.jit
def weighted_sum_kernel(
    start, end, col, x, x_stride, weight, H, C, out, WEIGHTED: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """The sum of weight * x over each segment; out is [segments, H, C]."""
    segment = tl.program_id(0).to(tl.int64)
    num_tiles = tl.cdiv(C, BC)
    head = tl.program_id(1) // num_tiles
    channels = (tl.program_id(1) % num_tiles) * BC + tl.arange(0, BC)
    inside = channels < C
    offsets = head * C + channels
    first, stop = tl.load(start + segment), tl.load(end + segment)
    # Every lane of a block keeps its own sum; lanes are combined once, after the loop.
    total = tl.zeros((BE, BC), out.dtype.element_ty)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        mask = live[:, None] & inside[None, :]
        value = tl.load(x + sources[:, None] * x_stride + offsets[None, :], mask=mask, other=0.0).to(total.dtype)
        if WEIGHTED:
            value *= tl.load(weight + edges * H + head, mask=live, other=0.0)[:, None]
        total += value
    tl.store(out + segment * H * C + offsets, tl.sum(total, axis=0), mask=inside)


@triton.jit
def edge_products_kernel(
    start, end, target, num_rows, col, x, x_stride, grad, H, C, out, BE: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """For every edge of each segment, and one head, the inner product of x at its source and grad at its row."""
    segment = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = segment
    if segment >= num_rows:
        row = tl.load(target + segment - num_rows)
    first, stop = tl.load(start + segment), tl.load(end + segment)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        products = tl.zeros((BE, BC), out.dtype.element_ty)
        for low in range(0, C, BC):
            channels = low + tl.arange(0, BC)
            inside = channels < C
            offsets = head * C + channels
            mask = live[:, None] & inside[None, :]
            g = tl.load(grad + row * H * C + offsets, mask=inside, other=0.0)
            value = tl.load(x + sources[:, None] * x_stride + offsets[None, :], mask=mask, other=0.0)
            products += value.to(products.dtype) * g[None, :]
        tl.store(out + edges * H + head, tl.sum(products, axis=1), mask=live)
