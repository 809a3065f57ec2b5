"""Max and softmax on the GPU: layout of tensors for the Triton kernels, their launch, and the kernels.

Forward passes repeat bit for bit. Backward passes add gradients atomically, in no fixed order.

One program works on a segment of a row and a tile of channels: it goes over its edges in blocks and keeps sums in
registers. Edge features are multiplied by the weight as small matrix products on tensor cores, in three TF32 products
that together are as exact as float32. Numbers of any precision are read; sums are kept in float32.
"""

# Triton carries no types, and its functions are not Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, misc"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.ops.dispatch import unit_stride
from zoo.ops.gen_aggregate.chunked import Gradients, max_edge_gradient
from zoo.ops.gen_aggregate.reference import Messages
from zoo.ops.triton_launch import BLOCK_EDGES, cut_row, launch, merge, segments_of, tile

BLOCK_ROWS = 32
# Programs spread what they add to one address over so many.
SLOTS = 64
# Three products in TF32 recover the digits that a single one loses.
PRECISION = "tf32x3"

_NO_EDGE = tl.constexpr(2**31 - 1)


class _Call:
    """Arguments that the kernels of one call share."""

    def __init__(self, messages: Messages) -> None:
        x, csr, edges, eps = messages
        attr, weight, bias = edges or (None, None, None)
        self.segments = segments_of(csr)
        self.num_rows, self.C = x.shape
        self.D = 0 if weight is None else weight.shape[1]
        x = unit_stride(x)
        # Any tensor may be passed for an argument that a kernel does not read.
        attr = x if attr is None else unit_stride(attr)
        weight = x if weight is None else weight.contiguous()
        shift = x if bias is None else bias.contiguous()
        self.inputs = (csr.col, x, x.stride(0), attr, attr.stride(0), weight, shift, self.C, eps)
        self.BC, self.num_warps = tile(self.C)
        self.options: dict[str, Any] = {
            "D": self.D,
            "DP": max(16, triton.next_power_of_2(self.D)),
            "BIASED": bias is not None,
            "PRECISION": PRECISION,
            "BE": BLOCK_EDGES,
            "BC": self.BC,
            "num_warps": self.num_warps,
        }

    def empty(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[S, C] for the results of segments."""
        return torch.empty(self.segments.start.numel(), self.C, dtype=dtype, device=self.inputs[1].device)

    def run(self, kernel: Any, *args: Any, **flags: Any) -> None:
        """Run one program per segment and tile of channels."""
        grid = (self.segments.start.numel(), triton.cdiv(self.C, self.BC))
        options = {**self.options, **flags}
        launch(kernel, grid, self.inputs[1].device, self.segments.start, self.segments.end, *args, **options)

    def rows(self, results: Tensor) -> Tensor:
        """[S, C] to [N, C], a fresh tensor."""
        return results if len(results) == self.num_rows else results[: self.num_rows].clone()


def max_forward(messages: Messages, factor: None, *, needs_grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See ``chunked``."""
    call = _Call(messages)
    out = call.empty()
    winner = call.empty(torch.int32) if needs_grad else out
    call.run(max_forward_kernel, *call.inputs, out, winner, WITH_WINNER=needs_grad)
    merge(merge_max_kernel, call.segments, out, winner, WITH_WINNER=needs_grad)
    return call.rows(out), (call.rows(winner),) if needs_grad else ()


def max_backward(grad: Tensor, messages: Messages, factor: None, winner: Tensor) -> Gradients:
    """See ``chunked``."""
    attr, weight, _ = messages.edges or (None, None, None)
    N, C = grad.shape
    D = 0 if weight is None else weight.shape[1]
    grad, winner = grad.contiguous(), winner.contiguous()
    attr = grad if attr is None else unit_stride(attr)
    size, warps = tile(C)
    num_blocks = triton.cdiv(N, BLOCK_ROWS)
    dx = torch.zeros(N, C, dtype=grad.dtype, device=grad.device)
    dw = torch.empty(num_blocks, D, C, dtype=grad.dtype, device=grad.device)
    db = torch.empty(num_blocks, C, dtype=grad.dtype, device=grad.device)
    launch(
        max_backward_kernel,
        (num_blocks, triton.cdiv(C, size)),
        grad.device,
        *(grad, winner, messages.csr.col, attr, attr.stride(0), N, C, dx, dw, db),
        D=D,
        BR=BLOCK_ROWS,
        BC=size,
        num_warps=2 * warps,
    )
    return (
        dx,
        max_edge_gradient(grad, messages, winner),
        None if weight is None else dw.sum(0).t().contiguous(),
        db.sum(0),
        None,
    )


def softmax_forward(messages: Messages, temperature: Tensor, *, needs_grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See ``chunked``."""
    call = _Call(messages)
    out, logsum = call.empty(), call.empty()
    call.run(softmax_forward_kernel, *call.inputs, temperature, out, logsum)
    merge(merge_softmax_kernel, call.segments, out, logsum)
    out = call.rows(out)
    return out, (out, call.rows(logsum))


def softmax_backward(
    grad: Tensor, messages: Messages, temperature: Tensor, out: Tensor, logsum: Tensor, *, detach_weights: bool
) -> Gradients:
    """See ``chunked``; edge features get no gradient here."""
    call = _Call(messages)
    C, D = call.C, call.D

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=grad.dtype, device=grad.device)

    dx, dw, db, d_factor = zeros(call.num_rows, C), zeros(SLOTS, D, C), zeros(SLOTS, C), zeros(SLOTS)
    call.run(
        softmax_backward_kernel,
        *(call.segments.row, call.num_rows, *call.inputs, temperature, float(not detach_weights)),
        *(grad.contiguous(), out.contiguous(), logsum.contiguous(), dx, dw, db, d_factor),
        SLOTS=SLOTS,
        num_warps=(2 if D else 1) * call.num_warps,
    )
    d_weight = None if messages.edges is None else dw.sum(0).t().contiguous()
    return dx, None, d_weight, db.sum(0), None if detach_weights else d_factor.sum()


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
def _preactivations(
    edges, live, sources, channels, inside, x, x_stride, attr, attr_stride, tile,
    D: tl.constexpr, DP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[BE, BC], the numbers before the ReLU, without the bias."""
    mask = live[:, None] & inside[None, :]
    value = tl.load(x + sources[:, None] * x_stride + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    if D > 0:
        features = _attr_tile(attr, attr_stride, edges, live, D, DP)
        value = tl.dot(features, tile, value, input_precision=PRECISION)
    return value


@triton.jit
def max_forward_kernel(
    start, end, col, x, x_stride, attr, attr_stride, weight, bias, C, eps, out, win,
    D: tl.constexpr, DP: tl.constexpr, BIASED: tl.constexpr, WITH_WINNER: tl.constexpr,
    PRECISION: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The largest message of each segment and which edge sent it; zero and -1 for a segment without edges."""
    segment = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channels < C
    first, stop = tl.load(start + segment), tl.load(end + segment)
    tile = _weight_tile(weight, channels, inside, D, DP) if D > 0 else 0.0
    # Every lane of a block keeps its own best edge, the earliest of equals; lanes are combined once, after the loop.
    best = tl.full((BE, BC), float("-inf"), tl.float32)
    winner = tl.full((BE, BC), -1, tl.int32)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        value = _preactivations(
            edges, live, sources, channels, inside, x, x_stride, attr, attr_stride, tile, D, DP, PRECISION
        )
        # Not "value > best", so that a NaN comes in and stays.
        better = (~(value <= best)) & (best == best) & live[:, None]
        best = tl.where(better, value, best)
        if WITH_WINNER:
            winner = tl.where(better, edges.to(tl.int32)[:, None], winner)
    has_nan = tl.max((best != best).to(tl.int32), axis=0) > 0
    top = tl.max(tl.where(best == best, best, float("-inf")), axis=0)
    if WITH_WINNER:
        edge = tl.min(tl.where(best == top[None, :], winner, _NO_EDGE), axis=0)
    if BIASED:
        top += tl.load(bias + channels, mask=inside, other=0.0)
    row = segment * C + channels
    message = tl.where(top > 0, top, 0.0) + eps
    message = tl.where(has_nan, float("nan"), message)
    tl.store(out + row, tl.where(stop > first, message, 0.0), mask=inside)
    if WITH_WINNER:
        # No gradient passes a closed ReLU, nor a NaN.
        tl.store(win + row, tl.where((top > 0) & (~has_nan), edge, -1), mask=inside)


@triton.jit
def merge_max_kernel(target, further, num_rows, C, out, win, WITH_WINNER: tl.constexpr, BC: tl.constexpr):
    """Merge the segments of each cut row in the order of its edges: the first of equals stays, and a NaN."""
    first, stop, row, channels, inside = cut_row(target, further, num_rows, C, BC)
    best = tl.load(out + row, mask=inside)
    if WITH_WINNER:
        winner = tl.load(win + row, mask=inside)
    for extra in range(first, stop):
        offsets = (num_rows + extra) * C + channels
        value = tl.load(out + offsets, mask=inside)
        better = (~(value <= best)) & (best == best)
        best = tl.where(better, value, best)
        if WITH_WINNER:
            winner = tl.where(better, tl.load(win + offsets, mask=inside), winner)
    tl.store(out + row, best, mask=inside)
    if WITH_WINNER:
        tl.store(win + row, winner, mask=inside)


@triton.jit
def max_backward_kernel(
    grad, win, col, attr, attr_stride, N, C, dx, dw, db,
    D: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients from the winning edges of a block of rows; [blocks, D, C] and [blocks, C] are summed later."""
    block = tl.program_id(0).to(tl.int64)
    rows = block * BR + tl.arange(0, BR)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channels < C
    mask = (rows < N)[:, None] & inside[None, :]
    offsets = rows[:, None] * C + channels[None, :]
    edge = tl.load(win + offsets, mask=mask, other=-1)
    won = edge >= 0
    edge = tl.where(won, edge, 0).to(tl.int64)
    g = tl.load(grad + offsets, mask=won, other=0.0)
    source = tl.load(col + edge, mask=won, other=0).to(tl.int64)
    tl.atomic_add(dx + source * C + channels[None, :], g, mask=won, sem="relaxed")
    tl.store(db + block * C + channels, tl.sum(g, axis=0), mask=inside)
    for d in range(D):
        feature = tl.load(attr + edge * attr_stride + d, mask=won, other=0.0).to(tl.float32)
        tl.store(dw + (block * D + d) * C + channels, tl.sum(g * feature, axis=0), mask=inside)


@triton.jit
def softmax_forward_kernel(
    start, end, col, x, x_stride, attr, attr_stride, weight, bias, C, eps, temperature, out, logsum,
    D: tl.constexpr, DP: tl.constexpr, BIASED: tl.constexpr,
    PRECISION: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The softmax-weighted mean of the messages of each segment, and the log of the sum of exponentials."""
    segment = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channels < C
    first, stop = tl.load(start + segment), tl.load(end + segment)
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
        value = _preactivations(
            edges, live, sources, channels, inside, x, x_stride, attr, attr_stride, tile, D, DP, PRECISION
        )
        value += shift[None, :]
        value = tl.where(value <= 0, 0.0, value) + eps
        score = tl.where(live[:, None], value * factor, float("-inf"))
        top = tl.maximum(peak, tl.max(score, axis=0))
        # Sums so far are relative to the old peak.
        shrink = tl.exp(peak - top)
        share = tl.exp(score - top[None, :])
        denominator = denominator * shrink + tl.sum(share, axis=0)
        numerator = numerator * shrink + tl.sum(tl.where(live[:, None], value * share, 0.0), axis=0)
        peak = top
    row = segment * C + channels
    filled = stop > first
    denominator = tl.where(filled, denominator, 1.0)
    tl.store(logsum + row, tl.where(filled, peak, 0.0) + tl.log(denominator), mask=inside)
    tl.store(out + row, numerator / denominator, mask=inside)


@triton.jit
def merge_softmax_kernel(target, further, num_rows, C, out, logsum, BC: tl.constexpr):
    """Merge the segments of each cut row in the order of its edges."""
    first, stop, row, channels, inside = cut_row(target, further, num_rows, C, BC)
    mean = tl.load(out + row, mask=inside)
    log = tl.load(logsum + row, mask=inside)
    for extra in range(first, stop):
        offsets = (num_rows + extra) * C + channels
        other = tl.load(logsum + offsets, mask=inside)
        top = tl.maximum(log, other)
        left, right = tl.exp(log - top), tl.exp(other - top)
        mean = (mean * left + tl.load(out + offsets, mask=inside) * right) / (left + right)
        log = top + tl.log(left + right)
    tl.store(out + row, mean, mask=inside)
    tl.store(logsum + row, log, mask=inside)


@triton.jit
def softmax_backward_kernel(
    start, end, target, num_rows, col, x, x_stride, attr, attr_stride, weight, bias, C, eps, temperature, attached,
    grad, out, logsum, dx, dw, db, dtemperature,
    D: tl.constexpr, DP: tl.constexpr, BIASED: tl.constexpr, SLOTS: tl.constexpr, PRECISION: tl.constexpr,
    BE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of softmax-weighted means; messages are computed again.

    dw [SLOTS, D, C], db [SLOTS, C] and dtemperature [SLOTS] are summed later: programs spread over the slots, so that
    few of them add to one address.
    """
    segment = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = channels < C
    first, stop = tl.load(start + segment), tl.load(end + segment)
    row = segment
    if segment >= num_rows:
        # Segments that no row needs have no edges, and no row.
        row = tl.minimum(tl.load(target + segment - num_rows), num_rows - 1)
    offsets = row * C + channels
    g = tl.load(grad + offsets, mask=inside, other=0.0)
    tile = _weight_tile(weight, channels, inside, D, DP) if D > 0 else 0.0
    shift = tl.load(bias + channels, mask=inside, other=0.0) if BIASED else tl.zeros((BC,), tl.float32)
    factor = tl.load(temperature)
    mean = tl.load(out + offsets, mask=inside, other=0.0)
    log = tl.load(logsum + offsets, mask=inside, other=0.0)
    sums = tl.zeros((BC,), tl.float32)
    d_factor = tl.zeros((BC,), tl.float32)
    if D > 0:
        products = tl.zeros((DP, BC), tl.float32)
    for at in range(first, stop, BE):
        edges = at + tl.arange(0, BE)
        live = edges < stop
        mask = live[:, None] & inside[None, :]
        sources = tl.load(col + edges, mask=live, other=0).to(tl.int64)
        pre = _preactivations(
            edges, live, sources, channels, inside, x, x_stride, attr, attr_stride, tile, D, DP, PRECISION
        )
        pre += shift[None, :]
        value = tl.where(pre <= 0, 0.0, pre) + eps
        share = g[None, :] * tl.exp(value * factor - log[None, :])
        centered = value - mean[None, :]
        d_factor += tl.sum(tl.where(mask, share * value * centered, 0.0), axis=0)
        slope = tl.where(mask & (pre > 0), share * (1.0 + attached * factor * centered), 0.0)
        tl.atomic_add(dx + sources[:, None] * C + channels[None, :], slope, mask=mask, sem="relaxed")
        sums += tl.sum(slope, axis=0)
        if D > 0:
            features = _attr_tile(attr, attr_stride, edges, live, D, DP)
            products = tl.dot(tl.trans(features), slope, products, input_precision=PRECISION)
    slot = segment % SLOTS
    tl.atomic_add(db + slot * C + channels, sums, mask=inside, sem="relaxed")
    tl.atomic_add(dtemperature + slot, tl.sum(d_factor, axis=0), sem="relaxed")
    if D > 0:
        d = tl.arange(0, DP)
        sums_of_slot = dw + (slot * D + d[:, None]) * C + channels[None, :]
        tl.atomic_add(sums_of_slot, products, mask=(d < D)[:, None] & inside[None, :], sem="relaxed")
