"""The Numba kernels: one thread's share of the rows, one function per aggregation and direction.

All of them walk over *pieces* (a row, or a stretch of a very long row) in blocks of few edges. Within a block they go
over the channels eight at a time and, innermost, over the edges: the D weights of eight channels then stay in
registers, and the rows of x that a block touches stay in the nearest cache.

Every argument is an address, a count or a number, so one compiled form serves every tensor: a factory is called with
what shapes the code (number of edge channels, number type, what is wanted) and its result is kept on disk by Numba.
Channels come in multiples of eight; ``out``, ``arg`` and the like are [pieces, C] without gaps.
"""

# Numba carries no types.
# mypy: disable-error-code="untyped-decorator, operator"

from __future__ import annotations

import math
from functools import cache

from numba import float32, float64, int32, int64, njit

from zoo.ops.gen_aggregate import reference
from zoo.ops.gen_aggregate.reference import POWER_MAX, POWER_MIN
from zoo.ops.numba_kernels import BLOCK, Kernel, compiled
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
def _arguments(tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, bias, c, embedded):  # type: ignore[no-untyped-def]
    """Write what the ReLU of each edge of a block is applied to, eight channels from c on."""
    for e in range(edge, block_end):
        value = load(xs, int64(item(cols, e)) * x_stride + c) + bias
        value = project(value, rows, attrs, e * a_stride)
        if embedded:
            value = value + load(attrs, e * a_stride + c)
        store(tile, (e - edge) * 8, value)


@cache
def max_forward(D: int, embedded: bool, with_arg: bool, kind: str) -> Kernel:
    """The largest message of each piece, and which edge sent it."""
    number = float32 if kind == "f32" else float64

    @compiled(1, kind)
    def kernel(start, end, first, stop, col, last, ahead, x, x_stride, a, a_stride, w, b, C, out, arg, eps):  # type: ignore[no-untyped-def]
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, attrs, weights, biases = pointer(x, kind), pointer(a, kind), pointer(w, kind), pointer(b, kind)
        outs, args = pointer(out, kind), pointer(arg, "i32")
        zero, lowest, nan = splat(number(0)), splat(number(-math.inf)), splat(number(math.nan))
        epsilon, nobody = splat(number(eps)), splat(int32(-1))
        for k in range(first, stop):
            row = k * C
            edge, edge_end = item(starts, k), item(ends, k)
            if edge == edge_end:
                for c in range(0, C, 8):
                    store(outs, row + c, zero)
                    if with_arg:
                        store(args, row + c, nobody)
                continue
            for c in range(0, C, 8):
                store(outs, row + c, lowest)
                if with_arg:
                    store(args, row + c, nobody)
            while edge < edge_end:
                block_end = min(edge_end, edge + BLOCK)
                _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C)
                for c in range(0, C, 8):
                    rows = load_rows(weights, c, C, D)
                    best = load(outs, row + c)
                    spoilt = is_nan(best)
                    if with_arg:
                        winner = load(args, row + c)
                        ids = splat(int32(edge))
                    for e in range(edge, block_end):
                        value = project(load(xs, int64(item(cols, e)) * x_stride + c), rows, attrs, e * a_stride)
                        if embedded:
                            value = value + load(attrs, e * a_stride + c)
                        # The comparison passes over a NaN, so it is remembered apart.
                        spoilt = either(spoilt, is_nan(value))
                        better = value > best
                        if with_arg:
                            winner = where(better, ids, winner)
                            ids = next_ids(ids)
                        best = where(better, value, best)
                    store(outs, row + c, where(spoilt, nan, best))
                    if with_arg:
                        store(args, row + c, winner)
                edge = block_end
            # The largest message is that of the largest argument: ReLU, bias and eps do not change the order.
            for c in range(0, C, 8):
                value = load(outs, row + c) + load(biases, c)
                if with_arg:
                    store(args, row + c, where(value > zero, load(args, row + c), nobody))
                store(outs, row + c, where(value <= zero, zero, value) + epsilon)

    return kernel


@cache
def max_backward(D: int, kind: str) -> Kernel:
    """Gradients of rows ``first`` to ``stop`` and of channels ``low`` to ``high`` from the winning edges."""

    @compiled(0, kind)
    def kernel(first, stop, low, high, C, col, grad, arg, a, a_stride, dx, dw, db):  # type: ignore[no-untyped-def]
        cols, grads, args, attrs = pointer(col, "i32"), pointer(grad, kind), pointer(arg, "i32"), pointer(a, kind)
        dxs, dws, dbs = pointer(dx, kind), pointer(dw, kind), pointer(db, kind)
        for i in range(first, stop):
            for c in range(low, high):
                e = int64(item(args, i * C + c))
                if e >= 0:
                    g = item(grads, i * C + c)
                    add_item(dxs, int64(item(cols, e)) * C + c, g)
                    add_item(dbs, c, g)
                    add_scaled(dws, c * D, g, attrs, e * a_stride, D)

    return kernel


@cache
def sum_forward(D: int, embedded: bool, powered: bool, kind: str) -> Kernel:
    """The sum over each piece of the messages, or of their powers."""
    number = float32 if kind == "f32" else float64

    @compiled(2, kind, reference)
    def kernel(start, end, first, stop, col, last, ahead, x, x_stride, a, a_stride, w, b, C, out, eps, power):  # type: ignore[no-untyped-def]
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, attrs, weights, biases = pointer(x, kind), pointer(a, kind), pointer(w, kind), pointer(b, kind)
        outs, tile = pointer(out, kind), scratch(TILE, kind)
        zero, epsilon, exponent = splat(number(0)), splat(number(eps)), splat(number(power))
        low, high = splat(number(POWER_MIN)), splat(number(POWER_MAX))
        for k in range(first, stop):
            row = k * C
            edge, edge_end = item(starts, k), item(ends, k)
            for c in range(0, C, 8):
                store(outs, row + c, zero)
            while edge < edge_end:
                block_end = min(edge_end, edge + BLOCK)
                _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C)
                for c in range(0, C, 8):
                    rows, total = load_rows(weights, c, C, D), zero
                    _arguments(
                        tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, load(biases, c), c, embedded
                    )
                    for t in range(0, (block_end - edge) * 8, 8):
                        value = load(tile, t)
                        value = where(value <= zero, zero, value) + epsilon
                        if powered:
                            value = where(value > high, high, where(low > value, low, value))
                            value = exp(exponent * log(value))
                        total = total + value
                    # Sums of blocks are summed: rounding grows with the number of blocks, not of edges.
                    store(outs, row + c, load(outs, row + c) + total)
                edge = block_end

    return kernel


@cache
def softmax_forward(D: int, embedded: bool, kind: str) -> Kernel:
    """The softmax-weighted mean of the messages of each piece, and the log of the sum of exponentials."""
    number = float32 if kind == "f32" else float64

    @compiled(2, kind)
    def kernel(  # type: ignore[no-untyped-def]
        start, end, first, stop, col, last, ahead, x, x_stride, a, a_stride, w, b, C, out, lse, peak, eps, temperature
    ):
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, attrs, weights, biases = pointer(x, kind), pointer(a, kind), pointer(w, kind), pointer(b, kind)
        outs, denominators, peaks, tile = (
            pointer(out, kind),
            pointer(lse, kind),
            pointer(peak, kind),
            scratch(TILE, kind),
        )
        zero, epsilon, factor = splat(number(0)), splat(number(eps)), splat(number(temperature))
        lowest = splat(number(-math.inf))
        for k in range(first, stop):
            row = k * C
            edge, edge_end = item(starts, k), item(ends, k)
            for c in range(0, C, 8):
                store(outs, row + c, zero)
                store(denominators, row + c, zero)
                store(peaks, c, lowest)
            if edge == edge_end:
                continue
            while edge < edge_end:
                block_end = min(edge_end, edge + BLOCK)
                _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C)
                for c in range(0, C, 8):
                    rows, old = load_rows(weights, c, C, D), load(peaks, c)
                    _arguments(
                        tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, load(biases, c), c, embedded
                    )
                    top = old
                    for t in range(0, (block_end - edge) * 8, 8):
                        value = load(tile, t)
                        value = where(value <= zero, zero, value) + epsilon
                        store(tile, t, value)
                        score = value * factor
                        top = where(score > top, score, top)
                    # What was summed so far is relative to the old peak.
                    shrink = exp(old - top)
                    denominator, numerator = zero, zero
                    for t in range(0, (block_end - edge) * 8, 8):
                        value = load(tile, t)
                        share = exp(value * factor - top)
                        denominator = denominator + share
                        numerator = numerator + share * value
                    store(peaks, c, top)
                    store(denominators, row + c, load(denominators, row + c) * shrink + denominator)
                    store(outs, row + c, load(outs, row + c) * shrink + numerator)
                edge = block_end
            for c in range(0, C, 8):
                denominator = load(denominators, row + c)
                store(outs, row + c, load(outs, row + c) / denominator)
                store(denominators, row + c, load(peaks, c) + log(denominator))

    return kernel


@cache
def sum_backward(form: str, D: int, embedded: bool, with_edges: bool, kind: str) -> Kernel:
    """Gradients of a sum over the edges; messages are computed anew.

    ``form`` is sum, power or softmax: how the gradient of a message follows from that of its row.
    """
    number = float32 if kind == "f32" else float64
    powered, softmax = form == "power", form == "softmax"

    @compiled(2, kind, reference)
    def kernel(  # type: ignore[no-untyped-def]
        start, end, first, stop, target, num_rows, col, last, ahead, x, x_stride, a, a_stride, w, b, C,
        wt, grad, out, lse, dx, da, dw, db, dp, attached, eps, factor
    ):  # fmt: skip
        starts, ends, targets, cols = (
            pointer(start, "i64"),
            pointer(end, "i64"),
            pointer(target, "i64"),
            pointer(col, "i32"),
        )
        xs, attrs, weights, biases = pointer(x, kind), pointer(a, kind), pointer(w, kind), pointer(b, kind)
        transposed, grads, outs, lses = pointer(wt, kind), pointer(grad, kind), pointer(out, kind), pointer(lse, kind)
        dxs, das, dws, dbs, dps = (
            pointer(dx, kind),
            pointer(da, kind),
            pointer(dw, kind),
            pointer(db, kind),
            pointer(dp, kind),
        )
        tile = scratch(TILE, kind)
        zero, epsilon, factors = splat(number(0)), splat(number(eps)), splat(number(factor))
        low, high = splat(number(POWER_MIN)), splat(number(POWER_MAX))
        pull = splat(number(factor) * number(attached))
        one = splat(number(1))
        for k in range(first, stop):
            row = k * C if k < num_rows else item(targets, k - num_rows) * C
            edge, edge_end = item(starts, k), item(ends, k)
            while edge < edge_end:
                block_end = min(edge_end, edge + BLOCK)
                _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C)
                _fetch(cols, edge, block_end, last, ahead, dxs, C, C)
                for c in range(0, C, 8):
                    rows, g = load_rows(weights, c, C, D), load(grads, row + c)
                    _arguments(
                        tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, load(biases, c), c, embedded
                    )
                    by_factor = zero
                    if softmax:
                        mean, logsum = load(outs, row + c), load(lses, row + c)
                    for e in range(edge, block_end):
                        source, value = int64(item(cols, e)), load(tile, (e - edge) * 8)
                        open_ = value > zero
                        value = where(value <= zero, zero, value) + epsilon
                        slope = g
                        if powered:
                            clamped = where(value > high, high, where(low > value, low, value))
                            logarithm = log(clamped)
                            raised = g * exp(factors * logarithm)
                            by_factor = by_factor + raised * logarithm
                            # The clamp lets a gradient through at its ends, as in PyTorch.
                            slope = where(value > high, zero, where(low > value, zero, factors * raised / clamped))
                        if softmax:
                            share = g * exp(value * factors - logsum)
                            lead = value - mean
                            by_factor = by_factor + share * value * lead
                            slope = share * (one + pull * lead)
                        slope = where(open_, slope, zero)
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
                    if powered or softmax:
                        store(dps, 0, load(dps, 0) + by_factor)
                edge = block_end

    return kernel
