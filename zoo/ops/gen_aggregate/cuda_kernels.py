"""The Triton kernels: one program per piece of a row and tile of channels.

A program walks over its edges in blocks and keeps what it joins in registers. Edge features are multiplied by the
weight as small matrix products on tensor cores, in three TF32 products that together are as exact as float32. Numbers
of any precision are read; sums are kept in float32.

Gradients of nodes that several programs reach are added atomically, in no fixed order.
"""

# Triton carries no types, and its functions are not Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, misc"

from __future__ import annotations

import triton
import triton.language as tl

from zoo.ops.gen_aggregate import reference
from zoo.ops.triton_kernels import cut_row

_POWER_MIN = tl.constexpr(reference.POWER_MIN)
_POWER_MAX = tl.constexpr(reference.POWER_MAX)
_NO_EDGE = tl.constexpr(2**31 - 1)


@triton.jit
def _weight_tile(weight, channels, inside, D: tl.constexpr, DP: tl.constexpr):
    """[DP, BC] of the [C, D] weight, with zeros beyond D."""
    d = tl.arange(0, DP)
    mask = (d < D)[:, None] & inside[None, :]
    return tl.load(weight + channels[None, :] * D + d[:, None], mask=mask, other=0.0)


@triton.jit
def _attr_tile(attr, attr_stride, edges, live, D: tl.constexpr, DP: tl.constexpr):
    """[BE, DP] edge features, with zeros beyond D."""
    d = tl.arange(0, DP)
    mask = live[:, None] & (d < D)[None, :]
    return tl.load(attr + edges[:, None] * attr_stride + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _arguments(
    edges, live, sources, channels, inside, x, x_stride, attr, attr_stride, tile,
    D: tl.constexpr, DP: tl.constexpr, EMBEDDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[BE, BC], what the ReLU is applied to, but for the bias."""
    mask = live[:, None] & inside[None, :]
    value = tl.load(x + sources[:, None] * x_stride + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    if D > 0:
        features = _attr_tile(attr, attr_stride, edges, live, D, DP)
        value = tl.dot(features, tile, value, input_precision=PRECISION)
    if EMBEDDED:
        embedding = tl.load(attr + edges[:, None] * attr_stride + channels[None, :], mask=mask, other=0.0)
        value += embedding.to(tl.float32)
    return value


@triton.jit
def max_forward(
    start, end, col, x, x_stride, attr, attr_stride, weight, bias, C, eps, out, arg,
    D: tl.constexpr, DP: tl.constexpr, EMBEDDED: tl.constexpr, BIASED: tl.constexpr, WITH_ARG: tl.constexpr,
    PRECISION: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The largest message of each piece and which edge sent it; zero and -1 for a piece without edges."""
    piece = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channels < C
    first, stop = tl.load(start + piece), tl.load(end + piece)
    tile = _weight_tile(weight, channels, inside, D, DP) if D > 0 else 0.0
    # Every lane of a block keeps its own best edge, the earliest of equals; lanes meet once, after the loop.
    best = tl.full((BE, BC), float("-inf"), tl.float32)
    winner = tl.full((BE, BC), -1, tl.int32)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        value = _arguments(
            edges, live, sources, channels, inside, x, x_stride, attr, attr_stride, tile, D, DP, EMBEDDED, PRECISION
        )
        # Not "value > best", so that a NaN comes in and stays.
        better = (~(value <= best)) & (best == best) & live[:, None]
        best = tl.where(better, value, best)
        if WITH_ARG:
            winner = tl.where(better, edges.to(tl.int32)[:, None], winner)
    spoilt = tl.max((best != best).to(tl.int32), axis=0) > 0
    top = tl.max(tl.where(best == best, best, float("-inf")), axis=0)
    if WITH_ARG:
        edge = tl.min(tl.where(best == top[None, :], winner, _NO_EDGE), axis=0)
    if BIASED:
        top += tl.load(bias + channels, mask=inside, other=0.0)
    row = piece * C + channels
    message = tl.where(top > 0, top, 0.0) + eps
    message = tl.where(spoilt, float("nan"), message)
    tl.store(out + row, tl.where(stop > first, message, 0.0), mask=inside)
    if WITH_ARG:
        # No gradient passes a closed ReLU, nor a NaN.
        tl.store(arg + row, tl.where((top > 0) & (~spoilt), edge, -1), mask=inside)


@triton.jit
def join_max(target, tail_ptr, num_rows, C, out, arg, WITH_ARG: tl.constexpr, BC: tl.constexpr):
    """Join the pieces of each cut row in the order of its edges: the first of equals stays, and a NaN."""
    first, stop, row, channels, inside = cut_row(target, tail_ptr, num_rows, C, BC)
    best = tl.load(out + row, mask=inside)
    if WITH_ARG:
        winner = tl.load(arg + row, mask=inside)
    for tail in range(first, stop):
        place = (num_rows + tail) * C + channels
        value = tl.load(out + place, mask=inside)
        better = (~(value <= best)) & (best == best)
        best = tl.where(better, value, best)
        if WITH_ARG:
            winner = tl.where(better, tl.load(arg + place, mask=inside), winner)
    tl.store(out + row, best, mask=inside)
    if WITH_ARG:
        tl.store(arg + row, winner, mask=inside)


@triton.jit
def max_backward(
    grad, arg, col, attr, attr_stride, N, C, dx, dw, db,
    D: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients from the winning edges of a block of rows; [blocks, D, C] and [blocks, C] are summed later."""
    block = tl.program_id(0).to(tl.int64)
    rows = block * BR + tl.arange(0, BR)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channels < C
    mask = (rows < N)[:, None] & inside[None, :]
    place = rows[:, None] * C + channels[None, :]
    edge = tl.load(arg + place, mask=mask, other=-1)
    won = edge >= 0
    edge = tl.where(won, edge, 0).to(tl.int64)
    g = tl.load(grad + place, mask=won, other=0.0)
    source = tl.load(col + edge, mask=won, other=0).to(tl.int64)
    tl.atomic_add(dx + source * C + channels[None, :], g, mask=won, sem="relaxed")
    tl.store(db + block * C + channels, tl.sum(g, axis=0), mask=inside)
    for d in range(D):
        feature = tl.load(attr + edge * attr_stride + d, mask=won, other=0.0).to(tl.float32)
        tl.store(dw + (block * D + d) * C + channels, tl.sum(g * feature, axis=0), mask=inside)


@triton.jit
def sum_forward(
    start, end, col, x, x_stride, attr, attr_stride, weight, bias, C, eps, power, out,
    D: tl.constexpr, DP: tl.constexpr, EMBEDDED: tl.constexpr, BIASED: tl.constexpr, POWERED: tl.constexpr,
    PRECISION: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The sum over each piece of the messages, or of their powers."""
    piece = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channels < C
    first, stop = tl.load(start + piece), tl.load(end + piece)
    tile = _weight_tile(weight, channels, inside, D, DP) if D > 0 else 0.0
    shift = tl.load(bias + channels, mask=inside, other=0.0) if BIASED else tl.zeros((BC,), tl.float32)
    exponent = tl.load(power) if POWERED else 1.0
    total = tl.zeros((BE, BC), tl.float32)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        value = _arguments(
            edges, live, sources, channels, inside, x, x_stride, attr, attr_stride, tile, D, DP, EMBEDDED, PRECISION
        )
        value += shift[None, :]
        value = tl.where(value <= 0, 0.0, value) + eps
        if POWERED:
            value = tl.where(value > _POWER_MAX, _POWER_MAX, tl.where(value < _POWER_MIN, _POWER_MIN, value))
            value = tl.exp2(exponent * tl.log2(value))
        total += tl.where(live[:, None], value, 0.0)
    tl.store(out + piece * C + channels, tl.sum(total, axis=0), mask=inside)


@triton.jit
def softmax_forward(
    start, end, col, x, x_stride, attr, attr_stride, weight, bias, C, eps, temperature, out, logsum,
    D: tl.constexpr, DP: tl.constexpr, EMBEDDED: tl.constexpr, BIASED: tl.constexpr,
    PRECISION: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The softmax-weighted mean of the messages of each piece, and the log of the sum of exponentials."""
    piece = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channels < C
    first, stop = tl.load(start + piece), tl.load(end + piece)
    tile = _weight_tile(weight, channels, inside, D, DP) if D > 0 else 0.0
    shift = tl.load(bias + channels, mask=inside, other=0.0) if BIASED else tl.zeros((BC,), tl.float32)
    factor = tl.load(temperature)
    peak = tl.full((BC,), float("-inf"), tl.float32)
    denominator = tl.zeros((BC,), tl.float32)
    numerator = tl.zeros((BC,), tl.float32)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        value = _arguments(
            edges, live, sources, channels, inside, x, x_stride, attr, attr_stride, tile, D, DP, EMBEDDED, PRECISION
        )
        value += shift[None, :]
        value = tl.where(value <= 0, 0.0, value) + eps
        score = tl.where(live[:, None], value * factor, float("-inf"))
        top = tl.maximum(peak, tl.max(score, axis=0))
        # What was summed so far is relative to the old peak.
        shrink = tl.exp(peak - top)
        share = tl.exp(score - top[None, :])
        denominator = denominator * shrink + tl.sum(share, axis=0)
        numerator = numerator * shrink + tl.sum(tl.where(live[:, None], share * value, 0.0), axis=0)
        peak = top
    filled = stop > first
    place = piece * C + channels
    denominator = tl.where(filled, denominator, 1.0)
    tl.store(out + place, numerator / denominator, mask=inside)
    tl.store(logsum + place, tl.where(filled, peak, 0.0) + tl.log(denominator), mask=inside)


@triton.jit
def join_softmax(target, tail_ptr, num_rows, C, out, logsum, BC: tl.constexpr):
    """Join the pieces of each cut row in the order of its edges."""
    first, stop, row, channels, inside = cut_row(target, tail_ptr, num_rows, C, BC)
    mean = tl.load(out + row, mask=inside)
    log = tl.load(logsum + row, mask=inside)
    for tail in range(first, stop):
        place = (num_rows + tail) * C + channels
        other = tl.load(logsum + place, mask=inside)
        top = tl.maximum(log, other)
        left, right = tl.exp(log - top), tl.exp(other - top)
        mean = (mean * left + tl.load(out + place, mask=inside) * right) / (left + right)
        log = top + tl.log(left + right)
    tl.store(out + row, mean, mask=inside)
    tl.store(logsum + row, log, mask=inside)


@triton.jit
def sum_backward(
    start, end, target, num_rows, col, x, x_stride, attr, attr_stride, weight, bias, C, eps, factor_ptr, attached,
    grad, out, logsum, dx, da, dw, db, dfactor,
    FORM: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, EMBEDDED: tl.constexpr, BIASED: tl.constexpr,
    WITH_EDGES: tl.constexpr, SLOTS: tl.constexpr, PRECISION: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of a sum over the edges; FORM is 0 for plain messages, 1 for powers, 2 for softmax.

    [SLOTS, D, C], [SLOTS, C] and [SLOTS] are summed later: programs spread over the slots, so that few meet in one.
    """
    piece = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channels < C
    first, stop = tl.load(start + piece), tl.load(end + piece)
    row = piece
    if piece >= num_rows:
        # Pieces that no row needs have no edges, and no row.
        row = tl.minimum(tl.load(target + piece - num_rows), num_rows - 1)
    place = row * C + channels
    g = tl.load(grad + place, mask=inside, other=0.0)
    tile = _weight_tile(weight, channels, inside, D, DP) if D > 0 else 0.0
    shift = tl.load(bias + channels, mask=inside, other=0.0) if BIASED else tl.zeros((BC,), tl.float32)
    factor = tl.load(factor_ptr) if FORM > 0 else 1.0
    if FORM == 2:
        mean = tl.load(out + place, mask=inside, other=0.0)
        log = tl.load(logsum + place, mask=inside, other=0.0)
    sums = tl.zeros((BC,), tl.float32)
    by_factor = tl.zeros((BC,), tl.float32)
    if D > 0:
        products = tl.zeros((DP, BC), tl.float32)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        mask = live[:, None] & inside[None, :]
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        argument = _arguments(
            edges, live, sources, channels, inside, x, x_stride, attr, attr_stride, tile, D, DP, EMBEDDED, PRECISION
        )
        argument += shift[None, :]
        value = tl.where(argument <= 0, 0.0, argument) + eps
        slope = tl.zeros((BE, BC), tl.float32) + g[None, :]
        if FORM == 1:
            clamped = tl.where(value > _POWER_MAX, _POWER_MAX, tl.where(value < _POWER_MIN, _POWER_MIN, value))
            raised = slope * tl.exp2(factor * tl.log2(clamped))
            by_factor += tl.sum(tl.where(mask, raised * tl.log(clamped), 0.0), axis=0)
            # The clamp lets a gradient through at its ends, as in PyTorch.
            slope = tl.where(value == clamped, factor * raised / clamped, 0.0)
        if FORM == 2:
            share = slope * tl.exp(value * factor - log[None, :])
            lead = value - mean[None, :]
            by_factor += tl.sum(tl.where(mask, share * value * lead, 0.0), axis=0)
            slope = share * (1.0 + attached * factor * lead)
        slope = tl.where(mask & (argument > 0), slope, 0.0)
        tl.atomic_add(dx + sources[:, None] * C + channels[None, :], slope, mask=mask, sem="relaxed")
        sums += tl.sum(slope, axis=0)
        if D > 0:
            features = _attr_tile(attr, attr_stride, edges, live, D, DP)
            products = tl.dot(tl.trans(features), slope, products, input_precision=PRECISION)
            if WITH_EDGES:
                d = tl.arange(0, DP)
                # Tiles of channels meet in the features of an edge.
                part = tl.dot(slope, tl.trans(tile), input_precision=PRECISION)
                tl.atomic_add(
                    da + edges[:, None] * D + d[None, :], part, mask=live[:, None] & (d < D)[None, :], sem="relaxed"
                )
        if EMBEDDED and WITH_EDGES:
            tl.store(da + edges[:, None] * C + channels[None, :], slope, mask=mask)
    slot = piece % SLOTS
    tl.atomic_add(db + slot * C + channels, sums, mask=inside, sem="relaxed")
    if FORM > 0:
        tl.atomic_add(dfactor + slot, tl.sum(by_factor, axis=0), sem="relaxed")
    if D > 0:
        d = tl.arange(0, DP)
        goal = dw + (slot * D + d[:, None]) * C + channels[None, :]
        tl.atomic_add(goal, products, mask=(d < D)[:, None] & inside[None, :], sem="relaxed")
