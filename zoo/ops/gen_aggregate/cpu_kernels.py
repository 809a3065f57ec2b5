"""Numba kernels of max, sums and softmax.

Kernels go over the segments of rows in blocks of few edges. Within a block they go over the channels eight at a time
and, innermost, over the edges: the D weights of eight channels then stay in registers, and the rows of x that a block
reads stay in the nearest cache. Arguments are addresses, counts and scalars, so one compiled form serves all tensors of
a precision. Channels come in multiples of eight; results of segments are [S, C] without gaps.
"""

# Numba carries no types.
# mypy: disable-error-code="untyped-decorator, operator"

from __future__ import annotations

import math
from functools import cache

from numba import int32, int64, njit

from zoo.ops.numba_launch import BLOCK, Kernel, compiled, scalar_type
from zoo.ops.vector_math import exp, log
from zoo.ops.vectors import (
    accumulate,
    add_item,
    add_scaled,
    either,
    is_nan,
    item,
    lane,
    load,
    load_rows,
    next_ids,
    pointer,
    prefetch,
    project,
    scratch,
    splat,
    store,
    store_rows,
    where,
)

# Numbers in the messages of a block, for eight channels.
TILE = 8 * BLOCK


@njit(forceinline=True, error_model="numpy")
def _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C):  # type: ignore[no-untyped-def]
    """Ask for the rows of x that the block ``ahead`` edges later will read."""
    if ahead > 0:
        for e in range(edge, block_end):
            row = int64(item(cols, min(e + ahead, last))) * x_stride
            for c in range(0, C, 16):
                prefetch(xs, row + c)


@njit(forceinline=True, error_model="numpy")
def _preactivations(tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, bias, c, embedded):  # type: ignore[no-untyped-def]
    """Write the numbers before the ReLU of each edge of a block, eight channels from c on."""
    for e in range(edge, block_end):
        value = load(xs, int64(item(cols, e)) * x_stride + c) + bias
        value = project(value, rows, attrs, e * a_stride)
        if embedded:
            value = value + load(attrs, e * a_stride + c)
        store(tile, (e - edge) * 8, value)


@cache
def max_forward(D: int, embedded: bool, with_winner: bool, dtype: str) -> Kernel:
    """The largest message of each segment, and the edge that sent it."""
    scalar = scalar_type(dtype)

    @compiled(1, dtype)
    def kernel(start, end, first, stop, col, last, ahead, x, x_stride, a, a_stride, w, b, C, out, win, eps):  # type: ignore[no-untyped-def]
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, attrs, weights, biases = pointer(x, dtype), pointer(a, dtype), pointer(w, dtype), pointer(b, dtype)
        outs, wins = pointer(out, dtype), pointer(win, "i32")
        zero, lowest, nan = splat(scalar(0)), splat(scalar(-math.inf)), splat(scalar(math.nan))
        epsilon, no_edge = splat(scalar(eps)), splat(int32(-1))
        for k in range(first, stop):
            row = k * C
            edge, edge_end = item(starts, k), item(ends, k)
            if edge == edge_end:
                for c in range(0, C, 8):
                    store(outs, row + c, zero)
                    if with_winner:
                        store(wins, row + c, no_edge)
                continue
            for c in range(0, C, 8):
                store(outs, row + c, lowest)
                if with_winner:
                    store(wins, row + c, no_edge)
            while edge < edge_end:
                block_end = min(edge_end, edge + BLOCK)
                _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C)
                for c in range(0, C, 8):
                    rows = load_rows(weights, c, C, D)
                    best = load(outs, row + c)
                    has_nan = is_nan(best)
                    if with_winner:
                        winner = load(wins, row + c)
                        ids = splat(int32(edge))
                    for e in range(edge, block_end):
                        value = project(load(xs, int64(item(cols, e)) * x_stride + c), rows, attrs, e * a_stride)
                        if embedded:
                            value = value + load(attrs, e * a_stride + c)
                        # The comparison passes over a NaN, so it is noted apart.
                        has_nan = either(has_nan, is_nan(value))
                        better = value > best
                        if with_winner:
                            winner = where(better, ids, winner)
                            ids = next_ids(ids)
                        best = where(better, value, best)
                    store(outs, row + c, where(has_nan, nan, best))
                    if with_winner:
                        store(wins, row + c, winner)
                edge = block_end
            # The largest message is that of the largest preactivation: ReLU, bias and eps do not change the order.
            for c in range(0, C, 8):
                value = load(outs, row + c) + load(biases, c)
                if with_winner:
                    store(wins, row + c, where(value > zero, load(wins, row + c), no_edge))
                store(outs, row + c, where(value <= zero, zero, value) + epsilon)

    return kernel


@cache
def max_backward(D: int, dtype: str) -> Kernel:
    """Gradients of rows ``first`` to ``stop`` and of channels ``low`` to ``high`` from the winning edges."""

    @compiled(0, dtype)
    def kernel(first, stop, low, high, C, col, grad, win, a, a_stride, dx, dw, db):  # type: ignore[no-untyped-def]
        cols, grads, wins, attrs = pointer(col, "i32"), pointer(grad, dtype), pointer(win, "i32"), pointer(a, dtype)
        dxs, dws, dbs = pointer(dx, dtype), pointer(dw, dtype), pointer(db, dtype)
        for i in range(first, stop):
            for c in range(low, high):
                e = int64(item(wins, i * C + c))
                if e >= 0:
                    g = item(grads, i * C + c)
                    add_item(dxs, int64(item(cols, e)) * C + c, g)
                    add_item(dbs, c, g)
                    add_scaled(dws, c * D, g, attrs, e * a_stride, D)

    return kernel


@cache
def sum_forward(D: int, embedded: bool, softmax: bool, dtype: str) -> Kernel:
    """Sums of the messages of each segment; or softmax-weighted means, and the logs of the sums of exponentials."""
    scalar = scalar_type(dtype)

    @compiled(2, dtype)
    def kernel(  # type: ignore[no-untyped-def]
        start, end, first, stop, col, last, ahead, x, x_stride, a, a_stride, w, b, C, out, lse, peak, eps, temperature
    ):
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, attrs, weights, biases = pointer(x, dtype), pointer(a, dtype), pointer(w, dtype), pointer(b, dtype)
        outs, totals, peaks = pointer(out, dtype), pointer(lse, dtype), pointer(peak, dtype)
        tile = scratch(TILE, dtype)
        zero, lowest = splat(scalar(0)), splat(scalar(-math.inf))
        epsilon, factor = splat(scalar(eps)), splat(scalar(temperature))
        for k in range(first, stop):
            row = k * C
            edge, edge_end = item(starts, k), item(ends, k)
            for c in range(0, C, 8):
                store(outs, row + c, zero)
                if softmax:
                    store(totals, row + c, zero)
                    store(peaks, c, lowest)
            if edge == edge_end:
                continue
            while edge < edge_end:
                block_end = min(edge_end, edge + BLOCK)
                _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C)
                for c in range(0, C, 8):
                    rows, numerator = load_rows(weights, c, C, D), zero
                    _preactivations(
                        tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, load(biases, c), c, embedded
                    )
                    if not softmax:
                        for t in range(0, (block_end - edge) * 8, 8):
                            value = load(tile, t)
                            numerator = numerator + (where(value <= zero, zero, value) + epsilon)
                        # Sums of blocks are summed: rounding grows with the number of blocks, not of edges.
                        store(outs, row + c, load(outs, row + c) + numerator)
                    if softmax:
                        old = load(peaks, c)
                        top = old
                        for t in range(0, (block_end - edge) * 8, 8):
                            value = load(tile, t)
                            value = where(value <= zero, zero, value) + epsilon
                            store(tile, t, value)
                            score = value * factor
                            top = where(score > top, score, top)
                        # Sums so far are relative to the old peak.
                        shrink = exp(old - top)
                        denominator = zero
                        for t in range(0, (block_end - edge) * 8, 8):
                            value = load(tile, t)
                            share = exp(value * factor - top)
                            denominator = denominator + share
                            numerator = numerator + share * value
                        store(peaks, c, top)
                        store(totals, row + c, load(totals, row + c) * shrink + denominator)
                        store(outs, row + c, load(outs, row + c) * shrink + numerator)
                edge = block_end
            if softmax:
                for c in range(0, C, 8):
                    total = load(totals, row + c)
                    store(outs, row + c, load(outs, row + c) / total)
                    store(totals, row + c, load(peaks, c) + log(total))

    return kernel


@cache
def sum_backward(D: int, embedded: bool, softmax: bool, with_edges: bool, dtype: str) -> Kernel:
    """Gradients of sums, or of softmax-weighted means; messages are computed again."""
    scalar = scalar_type(dtype)

    @compiled(2, dtype)
    def kernel(  # type: ignore[no-untyped-def]
        start, end, first, stop, col, last, ahead, x, x_stride, a, a_stride, w, b, C,
        target, num_rows, wt, grad, out, lse, dx, da, dw, db, dt, attached, eps, temperature
    ):  # fmt: skip
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, attrs, weights, biases = pointer(x, dtype), pointer(a, dtype), pointer(w, dtype), pointer(b, dtype)
        transposed, grads, outs, lses = (
            pointer(wt, dtype),
            pointer(grad, dtype),
            pointer(out, dtype),
            pointer(lse, dtype),
        )
        dxs, das, dws, dbs = pointer(dx, dtype), pointer(da, dtype), pointer(dw, dtype), pointer(db, dtype)
        targets, dts, tile = pointer(target, "i64"), pointer(dt, dtype), scratch(TILE, dtype)
        zero, one, epsilon, factor = splat(scalar(0)), splat(scalar(1)), splat(scalar(eps)), splat(scalar(temperature))
        # Zero if the softmax weights count as constants.
        attached_factor = splat(scalar(temperature) * scalar(attached))
        for k in range(first, stop):
            row = k * C if k < num_rows else item(targets, k - num_rows) * C
            edge, edge_end = item(starts, k), item(ends, k)
            while edge < edge_end:
                block_end = min(edge_end, edge + BLOCK)
                _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C)
                _fetch(cols, edge, block_end, last, ahead, dxs, C, C)
                for c in range(0, C, 8):
                    rows, g = load_rows(weights, c, C, D), load(grads, row + c)
                    _preactivations(
                        tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, load(biases, c), c, embedded
                    )
                    d_factor = zero
                    if softmax:
                        mean, logsum = load(outs, row + c), load(lses, row + c)
                    for e in range(edge, block_end):
                        source, pre, slope = int64(item(cols, e)), load(tile, (e - edge) * 8), g
                        if softmax:
                            value = where(pre <= zero, zero, pre) + epsilon
                            share = g * exp(value * factor - logsum)
                            centered = value - mean
                            d_factor = d_factor + share * value * centered
                            slope = share * (one + attached_factor * centered)
                        slope = where(pre > zero, slope, zero)
                        store(tile, (e - edge) * 8, slope)
                        store(dxs, source * C + c, load(dxs, source * C + c) + slope)
                        if with_edges:
                            if embedded:
                                store(das, e * C + c, slope)
                            for i in range(8):
                                add_scaled(das, e * D, lane(slope, i), transposed, (c + i) * D, D)
                    sums, total = load_rows(dws, c, C, D), load(dbs, c)
                    for e in range(edge, block_end):
                        slope = load(tile, (e - edge) * 8)
                        sums = accumulate(sums, slope, attrs, e * a_stride)
                        total = total + slope
                    store_rows(dws, c, C, sums)
                    store(dbs, c, total)
                    if softmax:
                        store(dts, 0, load(dts, 0) + d_factor)
                edge = block_end

    return kernel
