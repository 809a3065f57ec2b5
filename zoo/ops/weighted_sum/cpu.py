"""Weighted sums on the CPU: Numba kernels, and the layout of tensors for them.

As in ``gen_aggregate.cpu``, kernels go over segments of rows in blocks of few edges, so that the rows of x that a block
reads stay in the nearest cache. Channels come in multiples of eight. Results do not depend on the number of threads.
"""

# Numba carries no types.
# mypy: disable-error-code="untyped-decorator, operator"

from __future__ import annotations

from functools import cache

import torch
from numba import int64
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.csr import CSR
from zoo.ops.dispatch import address, unit_stride
from zoo.ops.vectors import (
    BLOCK,
    LANES,
    SCALARS,
    Kernel,
    add_scaled_rows,
    compiled,
    dtype_code,
    item,
    load,
    load_rows,
    pointer,
    put_item,
    splat,
    store,
    store_rows,
    total,
)
from zoo.ops.work_items import WorkItems

# Sums that stay in registers at once; other counts of channels end with one at a time.
WIDE = 4


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """See ``chunked``."""
    (N, H, channels), work = x.shape, WorkItems.of(csr)
    rows, C = _rows(x)
    weights = None if weight is None else weight.contiguous()
    out = torch.empty(work.segments.start.numel(), H, C, dtype=x.dtype)
    source = (address(work.int32_col(csr)), address(rows), rows.stride(0), 0 if weights is None else address(weights))
    work.run(_weighted_sum(weight is not None, dtype_code(x)), *source, H, C, address(out))
    for first, more in work.merge_steps:
        out[first] += out[more]
    # A fresh tensor, not a view of one: autograd would forbid to change a view in place.
    return out if out.shape == x.shape else out[:N, :, :channels].clone()


def edge_products(grad: Tensor, x: Tensor, csr: CSR) -> Tensor:
    """See ``chunked``."""
    work = WorkItems.of(csr)
    rows, C = _rows(x)
    grads, _ = _rows(grad)
    out = torch.empty(csr.num_edges, x.shape[1], dtype=x.dtype)
    edges = (address(work.int32_col(csr)), address(work.segments.row), csr.num_nodes)
    nodes = (address(rows), rows.stride(0), address(grads), grads.stride(0))
    work.run(_edge_products(dtype_code(x)), *edges, *nodes, x.shape[1], C, address(out))
    return out


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """[N, H * C] and C, with zeros up to a multiple of eight channels per head; rows may lie apart."""
    missing = -x.shape[2] % LANES
    padded = F.pad(x, (0, missing)) if missing else x
    return unit_stride(padded.flatten(1)), padded.shape[2]


@cache
def _weighted_sum(weighted: bool, dtype: str) -> Kernel:
    """The sum of weight * x over each segment, for every head; out is [segments, H, C] without gaps."""
    scalar = SCALARS[dtype]

    @compiled(0, dtype)
    def kernel(start, end, first, stop, col, x, x_stride, weight, H, C, out):  # type: ignore[no-untyped-def]
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, weights, outs = pointer(x, dtype), pointer(weight, dtype), pointer(out, dtype)
        factor = scalar(1)
        for k in range(first, stop):
            row = k * H * C
            edge, edge_end = item(starts, k), item(ends, k)
            for c in range(0, H * C, 8):
                store(outs, row + c, splat(scalar(0)))
            while edge < edge_end:
                block_end = min(edge_end, edge + BLOCK)
                for h in range(H):
                    c, c_end = h * C, (h + 1) * C
                    while c + WIDE * 8 <= c_end:
                        sums = load_rows(outs, row + c, 8, WIDE)
                        for e in range(edge, block_end):
                            if weighted:
                                factor = item(weights, e * H + h)
                            sums = add_scaled_rows(sums, factor, xs, int64(item(cols, e)) * x_stride + c, 8)
                        store_rows(outs, row + c, 8, sums)
                        c += WIDE * 8
                    while c < c_end:
                        sums = load_rows(outs, row + c, 8, 1)
                        for e in range(edge, block_end):
                            if weighted:
                                factor = item(weights, e * H + h)
                            sums = add_scaled_rows(sums, factor, xs, int64(item(cols, e)) * x_stride + c, 8)
                        store_rows(outs, row + c, 8, sums)
                        c += 8
                edge = block_end

    return kernel


@cache
def _edge_products(dtype: str) -> Kernel:
    """For every edge of each segment, and every head, the inner product of x at its source and grad at its row."""
    scalar = SCALARS[dtype]

    @compiled(0, dtype)
    def kernel(start, end, first, stop, col, target, num_rows, x, x_stride, grad, grad_stride, H, C, out):  # type: ignore[no-untyped-def]
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        targets, xs, grads, outs = pointer(target, "i64"), pointer(x, dtype), pointer(grad, dtype), pointer(out, dtype)
        for k in range(first, stop):
            row = (k if k < num_rows else item(targets, k - num_rows)) * grad_stride
            for e in range(item(starts, k), item(ends, k)):
                source = int64(item(cols, e)) * x_stride
                for h in range(H):
                    products = splat(scalar(0))
                    for c in range(h * C, (h + 1) * C, 8):
                        products = products + load(xs, source + c) * load(grads, row + c)
                    put_item(outs, e * H + h, total(products))

    return kernel
