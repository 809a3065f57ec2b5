"""Max and softmax on the CPU: layout of tensors for the Numba kernels, their work shared over threads, and the kernels.

Forward passes, and the gradients of max, are the same whatever the number of threads; the gradient of softmax with
respect to x is itself a sum over threads, the same for the same number of threads.

Kernels go over the segments of rows in blocks of few edges. Within a block they go over the channels eight at a time
and, innermost, over the edges: the D weights of eight channels then stay in registers, and the rows of x that a block
reads stay in the nearest cache. Arguments are addresses, counts and scalars, so one compiled form serves all tensors of
a precision. Channels come in multiples of eight; results of segments are [S, C] without gaps.
"""

# Numba carries no types.
# mypy: disable-error-code="untyped-decorator, operator"

from __future__ import annotations

import math
from functools import cache, partial

import torch
from numba import int32, int64, njit
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.dispatch import address, unit_stride
from zoo.ops.gen_aggregate.chunked import Gradients, max_edge_gradient
from zoo.ops.gen_aggregate.reference import Messages
from zoo.ops.vectors import (
    BLOCK,
    LANES,
    SCALARS,
    Kernel,
    accumulate,
    add_scaled,
    addresses,
    compiled,
    dtype_code,
    either,
    exp,
    is_nan,
    item,
    load,
    load_rows,
    next_ids,
    pointer,
    prefetch,
    project,
    put_item,
    scratch,
    splat,
    store,
    store_rows,
    where,
)
from zoo.ops.work_items import WorkItems, run_tasks

# Reading this many edges ahead hides the latency of memory; tables of x below a size stay in the cache anyway.
PREFETCH_EDGES = 32
PREFETCH_BYTES = 4 << 20
# Rows whose gradients with respect to the weights are summed in the tensors' own precision, then in float64.
ROWS_PER_SUM = 4096
# Numbers in the messages of a block, for eight channels.
TILE = LANES * BLOCK


class _Layout:
    """The tensors of one call as the kernels want them, kept alive while the kernels use their addresses."""

    def __init__(self, messages: Messages) -> None:
        x, self.csr, edges, self.eps = messages
        attr, weight, bias = edges or (None, None, None)
        self.num_channels, self.work, self.dtype = x.shape[1], WorkItems.of(self.csr), dtype_code(x)
        self.C = -(-self.num_channels // LANES) * LANES
        self.col = self.work.int32_col(self.csr)
        nothing = x.new_empty(0, 0)
        self.x = self.padded(x)
        self.attr = nothing if attr is None else unit_stride(attr)
        self.D = self.attr.shape[1]
        self.weight = nothing if weight is None else self.padded(weight.t()).contiguous()  # [D, C]
        self.bias = x.new_zeros(self.C) if bias is None else F.pad(bias, (0, self.C - self.num_channels)).contiguous()

    def padded(self, tensor: Tensor) -> Tensor:
        """[n, C], with zeros up to a multiple of eight channels."""
        missing = self.C - tensor.shape[1]
        return F.pad(tensor, (0, missing)) if missing else unit_stride(tensor)

    def empty(self, dtype: torch.dtype | None = None) -> Tensor:
        """[S, C] for the results of segments."""
        return torch.empty(self.work.segments.start.numel(), self.C, dtype=dtype or self.x.dtype)

    def inputs(self) -> tuple[int, ...]:
        """Arguments of every kernel: edges, node features, edge features, weight, bias, number of channels."""
        ahead = PREFETCH_EDGES if self.x.numel() * self.x.element_size() > PREFETCH_BYTES else 0
        nodes, edges = (address(self.x), self.x.stride(0)), (address(self.attr), self.attr.stride(0))
        parameters = addresses(self.weight, self.bias)
        return address(self.col), self.csr.num_edges - 1, ahead, *nodes, *edges, *parameters, self.C

    def cropped(self, tensor: Tensor) -> Tensor:
        """[S, padded C] to [N, C]."""
        shape = (self.csr.num_nodes, self.num_channels)
        # A fresh tensor, not a view of one: autograd would forbid to change a view in place.
        return tensor if tensor.shape == shape else tensor[: shape[0], : shape[1]].clone()


def max_forward(messages: Messages, factor: None, *, needs_grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See ``chunked``."""
    layout = _Layout(messages)
    out = layout.empty()
    winner = layout.empty(torch.int32) if needs_grad else torch.empty(0, dtype=torch.int32)
    kernel = max_forward_kernel(layout.D, needs_grad, layout.dtype)
    layout.work.run(kernel, *layout.inputs(), *addresses(out, winner), layout.eps)
    for rows, segments in layout.work.merge_steps:
        # Of equal messages the first wins, and a NaN wins over all numbers.
        better = ~(out[segments] <= out[rows]) & ~out[rows].isnan()
        out[rows] = out[segments].where(better, out[rows])
        if needs_grad:
            winner[rows] = winner[segments].where(better, winner[rows])
    return layout.cropped(out), (layout.cropped(winner),) if needs_grad else ()


def max_backward(grad: Tensor, messages: Messages, factor: None, winner: Tensor) -> Gradients:
    """See ``chunked``."""
    _, csr, edges, _ = messages
    col = WorkItems.of(csr).int32_col(csr)
    grad, winner = grad.contiguous(), winner.to(torch.int32).contiguous()
    attr = grad.new_empty(0, 0) if edges is None else unit_stride(edges.attr)
    (N, C), D = grad.shape, attr.shape[1]
    dx = torch.zeros(N, C, dtype=grad.dtype)
    starts = range(0, N + ROWS_PER_SUM, ROWS_PER_SUM)
    dw = torch.zeros(len(starts), C, D, dtype=grad.dtype)
    db = torch.zeros(len(starts), C, dtype=grad.dtype)
    kernel = max_backward_kernel(D, dtype_code(grad))

    # Each task owns a slice of the channels, so that no two of them write to one address.
    def task(low: int, high: int) -> None:
        for n, first in enumerate(starts):
            rows, sums = (first, min(first + ROWS_PER_SUM, N)), addresses(dx, dw[n], db[n])
            kernel(*rows, low, high, C, *addresses(col, grad, winner), address(attr), attr.stride(0), *sums)

    num_slices = max(1, min(torch.get_num_threads(), C // LANES))
    run_tasks([partial(task, C * s // num_slices, C * (s + 1) // num_slices) for s in range(num_slices)])
    return dx, max_edge_gradient(grad, messages, winner), None if edges is None else _total(dw), _total(db), None


def _total(parts: Tensor) -> Tensor:
    return parts.sum(0, dtype=torch.float64).to(parts.dtype)


def softmax_forward(messages: Messages, temperature: Tensor, *, needs_grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See ``chunked``."""
    layout = _Layout(messages)
    work, out, total, peak = layout.work, layout.empty(), layout.empty(), layout.empty()
    kernel = softmax_forward_kernel(layout.D, layout.dtype)
    work.run(kernel, *layout.inputs(), *addresses(out, total, peak), layout.eps, float(temperature))
    logsum = total.log_().add_(peak)
    for rows, segments in work.merge_steps:
        both = torch.logaddexp(logsum[rows], logsum[segments])
        out[rows] = out[rows] * (logsum[rows] - both).exp() + out[segments] * (logsum[segments] - both).exp()
        logsum[rows] = both
    out = layout.cropped(out)
    return out, (out, layout.cropped(logsum))


def softmax_backward(
    grad: Tensor, messages: Messages, temperature: Tensor, out: Tensor, logsum: Tensor, *, detach_weights: bool
) -> Gradients:
    """See ``chunked``; edge features get no gradient here."""
    layout = _Layout(messages)
    C, D, work, N = layout.C, layout.D, layout.work, layout.csr.num_nodes
    grad, out, logsum = (layout.padded(tensor).contiguous() for tensor in (grad, out, logsum))
    # Several edges share a source, so each group of work items sums into its own rows.
    num_groups = max(1, min(torch.get_num_threads(), len(work.items)))
    dx = torch.zeros(num_groups, N, C, dtype=grad.dtype)
    dw = torch.zeros(len(work.items), D + 1, C, dtype=grad.dtype)
    d_factor = torch.zeros(len(work.items), LANES, dtype=grad.dtype)
    kernel = softmax_backward_kernel(D, layout.dtype)
    rest = (*layout.inputs(), address(work.segments.row), N, *addresses(grad, out, logsum))
    scalars = (int(not detach_weights), layout.eps, float(temperature))

    def task(group: int) -> None:
        for n in range(len(work.items) * group // num_groups, len(work.items) * (group + 1) // num_groups):
            kernel(*work.bounds(n), *rest, *addresses(dx[group], dw[n], dw[n, D], d_factor[n]), *scalars)

    run_tasks([partial(task, group) for group in range(num_groups)])
    total = _total(dw)[:, : layout.num_channels]
    return (
        layout.cropped(dx[0] if num_groups == 1 else dx.sum(0)),
        None,
        None if messages.edges is None else total[:D].t().contiguous(),
        total[D].contiguous(),
        None if detach_weights else d_factor.sum(dtype=torch.float64).to(grad.dtype),
    )


@njit(forceinline=True, error_model="numpy")
def _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C):  # type: ignore[no-untyped-def]
    """Ask for the rows of x that the block ``ahead`` edges later will read."""
    if ahead > 0:
        for e in range(edge, block_end):
            row = int64(item(cols, min(e + ahead, last))) * x_stride
            for c in range(0, C, 16):
                prefetch(xs, row + c)


@njit(forceinline=True, error_model="numpy")
def _preactivations(tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, bias, c):  # type: ignore[no-untyped-def]
    """Write the numbers before the ReLU of each edge of a block, eight channels from c on.

    A loop of its own: beside the exponential there would be too few registers for the D rows of weights.
    """
    for e in range(edge, block_end):
        value = load(xs, int64(item(cols, e)) * x_stride + c) + bias
        store(tile, (e - edge) * 8, project(value, rows, attrs, e * a_stride))


@cache
def max_forward_kernel(D: int, with_winner: bool, dtype: str) -> Kernel:
    """The largest message of each segment, and the edge that sent it."""
    scalar = SCALARS[dtype]

    @compiled(1, dtype)
    def kernel(start, end, first, stop, col, last, ahead, x, x_stride, a, a_stride, w, b, C, out, win, eps):  # type: ignore[no-untyped-def]
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, attrs, weights, biases = pointer(x, dtype), pointer(a, dtype), pointer(w, dtype), pointer(b, dtype)
        outs, wins = pointer(out, dtype), pointer(win, "i32")
        zero, lowest, nan = splat(scalar(0)), splat(scalar(-math.inf)), splat(scalar(math.nan))
        epsilon, no_edge = splat(scalar(eps)), splat(int32(-1))
        for k in range(first, stop):
            row, edge, edge_end = k * C, item(starts, k), item(ends, k)
            for c in range(0, C, 8):
                store(outs, row + c, lowest if edge < edge_end else zero)
                if with_winner:
                    store(wins, row + c, no_edge)
            if edge == edge_end:
                continue
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
def max_backward_kernel(D: int, dtype: str) -> Kernel:
    """Gradients of rows ``first`` to ``stop`` and of channels ``low`` to ``high`` from the winning edges."""

    @compiled(0, dtype)
    def kernel(first, stop, low, high, C, col, grad, win, a, a_stride, dx, dw, db):  # type: ignore[no-untyped-def]
        cols, grads, wins, attrs = pointer(col, "i32"), pointer(grad, dtype), pointer(win, "i32"), pointer(a, dtype)
        dxs, dws, dbs = pointer(dx, dtype), pointer(dw, dtype), pointer(db, dtype)
        for i in range(first, stop):
            for c in range(low, high):
                e = int64(item(wins, i * C + c))
                if e >= 0:
                    g, source = item(grads, i * C + c), int64(item(cols, e)) * C + c
                    put_item(dxs, source, item(dxs, source) + g)
                    put_item(dbs, c, item(dbs, c) + g)
                    add_scaled(dws, c * D, g, attrs, e * a_stride, D)

    return kernel


@cache
def softmax_forward_kernel(D: int, dtype: str) -> Kernel:
    """Softmax-weighted means of the messages of each segment, largest scores, and sums of exponentials below these.

    Of a segment without edges: zero, zero and one.
    """
    scalar = SCALARS[dtype]

    @compiled(2, dtype)
    def kernel(  # type: ignore[no-untyped-def]
        start, end, first, stop, col, last, ahead, x, x_stride, a, a_stride, w, b, C, out, total, peak, eps, temperature
    ):
        starts, ends, cols = pointer(start, "i64"), pointer(end, "i64"), pointer(col, "i32")
        xs, attrs, weights, biases = pointer(x, dtype), pointer(a, dtype), pointer(w, dtype), pointer(b, dtype)
        outs, totals, peaks = pointer(out, dtype), pointer(total, dtype), pointer(peak, dtype)
        tile = scratch(TILE, dtype)
        zero, one, lowest = splat(scalar(0)), splat(scalar(1)), splat(scalar(-math.inf))
        epsilon, factor = splat(scalar(eps)), splat(scalar(temperature))
        for k in range(first, stop):
            row, edge, edge_end = k * C, item(starts, k), item(ends, k)
            for c in range(0, C, 8):
                store(outs, row + c, zero)
                store(totals, row + c, zero if edge < edge_end else one)
                store(peaks, row + c, lowest if edge < edge_end else zero)
            if edge == edge_end:
                continue
            while edge < edge_end:
                block_end = min(edge_end, edge + BLOCK)
                _fetch(cols, edge, block_end, last, ahead, xs, x_stride, C)
                for c in range(0, C, 8):
                    rows, bias, old = load_rows(weights, c, C, D), load(biases, c), load(peaks, row + c)
                    _preactivations(tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, bias, c)
                    top = old
                    for t in range(0, (block_end - edge) * 8, 8):
                        value = load(tile, t)
                        value = where(value <= zero, zero, value) + epsilon
                        store(tile, t, value)
                        score = value * factor
                        top = where(score > top, score, top)
                    # Sums so far are relative to the old peak.
                    shrink, numerator, denominator = exp(old - top), zero, zero
                    for t in range(0, (block_end - edge) * 8, 8):
                        value = load(tile, t)
                        share = exp(value * factor - top)
                        denominator = denominator + share
                        numerator = numerator + share * value
                    store(peaks, row + c, top)
                    store(totals, row + c, load(totals, row + c) * shrink + denominator)
                    store(outs, row + c, load(outs, row + c) * shrink + numerator)
                edge = block_end
            for c in range(0, C, 8):
                store(outs, row + c, load(outs, row + c) / load(totals, row + c))

    return kernel


@cache
def softmax_backward_kernel(D: int, dtype: str) -> Kernel:
    """Gradients of softmax-weighted means; messages are computed again."""
    scalar = SCALARS[dtype]

    @compiled(2, dtype)
    def kernel(  # type: ignore[no-untyped-def]
        start, end, first, stop, col, last, ahead, x, x_stride, a, a_stride, w, b, C,
        target, num_rows, grad, out, lse, dx, dw, db, dt, attached, eps, temperature
    ):  # fmt: skip
        starts, ends, targets = pointer(start, "i64"), pointer(end, "i64"), pointer(target, "i64")
        xs, attrs, weights, biases = pointer(x, dtype), pointer(a, dtype), pointer(w, dtype), pointer(b, dtype)
        grads, outs, lses, dts = pointer(grad, dtype), pointer(out, dtype), pointer(lse, dtype), pointer(dt, dtype)
        cols, dxs, dws, dbs = pointer(col, "i32"), pointer(dx, dtype), pointer(dw, dtype), pointer(db, dtype)
        tile = scratch(TILE, dtype)
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
                    rows, bias, g = load_rows(weights, c, C, D), load(biases, c), load(grads, row + c)
                    _preactivations(tile, cols, edge, block_end, xs, x_stride, attrs, a_stride, rows, bias, c)
                    mean, logsum, d_factor = load(outs, row + c), load(lses, row + c), zero
                    for e in range(edge, block_end):
                        source, pre = int64(item(cols, e)), load(tile, (e - edge) * 8)
                        value = where(pre <= zero, zero, pre) + epsilon
                        share = g * exp(value * factor - logsum)
                        centered = value - mean
                        d_factor = d_factor + share * value * centered
                        slope = where(pre > zero, share * (one + attached_factor * centered), zero)
                        store(tile, (e - edge) * 8, slope)
                        store(dxs, source * C + c, load(dxs, source * C + c) + slope)
                    sums, total = load_rows(dws, c, C, D), load(dbs, c)
                    for e in range(edge, block_end):
                        slope = load(tile, (e - edge) * 8)
                        sums = accumulate(sums, slope, attrs, e * a_stride)
                        total = total + slope
                    store_rows(dws, c, C, sums)
                    store(dbs, c, total)
                    store(dts, 0, load(dts, 0) + d_factor)
                edge = block_end

    return kernel
