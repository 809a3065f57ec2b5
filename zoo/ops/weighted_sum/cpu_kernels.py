"""The Numba kernels of the weighted sum: one thread's share of the rows.

As in ``gen_aggregate.cpu_kernels`` they walk over pieces of rows in blocks of few edges, so that the rows of x which a
block touches stay in the nearest cache while its channels are gone through. Channels come in multiples of eight.
"""

# Numba carries no types.
# mypy: disable-error-code="untyped-decorator, operator"

from __future__ import annotations

from functools import cache

from numba import float32, float64, int64

from zoo.ops.numba_kernels import BLOCK, Kernel, compiled
from zoo.ops.vectors import (
    add_scaled_rows,
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

# Sums that stay in registers at once; other counts of channels end with one at a time.
WIDE = 4


@cache
def weighted_sum(weighted: bool, kind: str) -> Kernel:
    """The sum of weight * x over each piece, for every head; out is [pieces, H, C] without gaps."""
    number = float32 if kind == "f32" else float64

    @compiled(0, kind)
    def kernel(start, end, first, stop, col, x, x_stride, weight, H, C, out):  # type: ignore[no-untyped-def]
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, weights, outs = pointer(x, kind), pointer(weight, kind), pointer(out, kind)
        factor = number(1)
        for k in range(first, stop):
            row = k * H * C
            edge, edge_end = item(starts, k), item(ends, k)
            for c in range(0, H * C, 8):
                store(outs, row + c, splat(number(0)))
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
def edge_products(kind: str) -> Kernel:
    """For every edge of each piece, and every head, the inner product of x at its source and grad at its row."""
    number = float32 if kind == "f32" else float64

    @compiled(0, kind)
    def kernel(start, end, first, stop, col, target, num_rows, x, x_stride, grad, grad_stride, H, C, out):  # type: ignore[no-untyped-def]
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        targets, xs, grads, outs = pointer(target, "i64"), pointer(x, kind), pointer(grad, kind), pointer(out, kind)
        for k in range(first, stop):
            row = (k if k < num_rows else item(targets, k - num_rows)) * grad_stride
            for e in range(item(starts, k), item(ends, k)):
                source = int64(item(cols, e)) * x_stride
                for h in range(H):
                    products = splat(number(0))
                    for c in range(h * C, (h + 1) * C, 8):
                        products = products + load(xs, source + c) * load(grads, row + c)
                    put_item(outs, e * H + h, total(products))

    return kernel
