"""The Triton kernels of the weighted sum: one program per piece of a row, head and tile of channels.

Numbers of any precision are read; sums are kept in the precision of ``out``. Nothing is added atomically.
"""

# Triton carries no types, and its functions are not Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def weighted_sum(
    start, end, col, x, x_stride, weight, H, C, out, WEIGHTED: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """The sum of weight * x over each piece; out is [pieces, H, C]."""
    piece = tl.program_id(0).to(tl.int64)
    num_tiles = tl.cdiv(C, BC)
    head = tl.program_id(1) // num_tiles
    channels = (tl.program_id(1) % num_tiles) * BC + tl.arange(0, BC)
    inside = channels < C
    place = head * C + channels
    first, stop = tl.load(start + piece), tl.load(end + piece)
    # Every lane of a block keeps its own sum; lanes meet once, after the loop.
    total = tl.zeros((BE, BC), out.dtype.element_ty)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        mask = live[:, None] & inside[None, :]
        value = tl.load(x + sources[:, None] * x_stride + place[None, :], mask=mask, other=0.0).to(total.dtype)
        if WEIGHTED:
            value *= tl.load(weight + edges * H + head, mask=live, other=0.0)[:, None]
        total += value
    tl.store(out + piece * H * C + place, tl.sum(total, axis=0), mask=inside)


@triton.jit
def edge_products(
    start, end, target, num_rows, col, x, x_stride, grad, H, C, out, BE: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """For every edge of each piece, and one head, the inner product of x at its source and grad at its row."""
    piece = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = piece
    if piece >= num_rows:
        row = tl.load(target + piece - num_rows)
    first, stop = tl.load(start + piece), tl.load(end + piece)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        products = tl.zeros((BE, BC), out.dtype.element_ty)
        for low in range(0, C, BC):
            channels = low + tl.arange(0, BC)
            inside = channels < C
            place = head * C + channels
            mask = live[:, None] & inside[None, :]
            g = tl.load(grad + row * H * C + place, mask=inside, other=0.0)
            value = tl.load(x + sources[:, None] * x_stride + place[None, :], mask=mask, other=0.0)
            products += value.to(products.dtype) * g[None, :]
        tl.store(out + edges * H + head, tl.sum(products, axis=1), mask=live)
