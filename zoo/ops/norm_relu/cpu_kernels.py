"""The Numba kernels: layer norm, ReLU and mask of one thread's share of the rows, eight channels at a time.

The number of channels C is at least eight. Where it is no multiple of eight, the last vector overlaps the one before
it: outputs are written twice, the same both times, and sums count each channel once, because the vector at ``keep + 8``
is zero where they overlap (that at ``keep`` is all ones).
"""

# Numba carries no types.
# mypy: disable-error-code="untyped-decorator, operator"

from __future__ import annotations

import math
from functools import cache

from numba import carray, float32, float64, njit

from zoo.ops.numba_kernels import Kernel, compiled
from zoo.ops.vectors import lane, load, pointer, splat, store, where


@njit(forceinline=True, error_model="numpy")
def _sum(v):  # type: ignore[no-untyped-def]
    low = (lane(v, 0) + lane(v, 4)) + (lane(v, 1) + lane(v, 5))
    return low + ((lane(v, 2) + lane(v, 6)) + (lane(v, 3) + lane(v, 7)))


@cache
def forward(masked: bool, kind: str) -> Kernel:
    """relu(layer_norm(x)) * mask of the rows ``first`` to ``stop``, and the mean and 1 / deviation of each."""
    number = float32 if kind == "f32" else float64

    @compiled(1, kind)
    def kernel(first, stop, C, x, x_stride, m, m_stride, w, b, keep, out, mean, rstd, eps):  # type: ignore[no-untyped-def]
        xs, masks, weights, biases = pointer(x, kind), pointer(m, kind), pointer(w, kind), pointer(b, kind)
        keeps, outs = pointer(keep, kind), pointer(out, kind)
        means, rstds = carray(pointer(mean, kind), stop), carray(pointer(rstd, kind), stop)
        zero, count = splat(number(0)), number(C)
        for i in range(first, stop):
            row = i * x_stride
            # Distances from the first channel: where all are equal, mean and variance come out exact.
            start = lane(load(xs, row), 0)
            origin, total, squares = splat(start), zero, zero
            for t in range(0, C, 8):
                c = min(t, C - 8)
                off = (load(xs, row + c) - origin) * load(keeps, 8 if c < t else 0)
                total = total + off
                squares = squares + off * off
            shift = _sum(total) / count
            variance = max(_sum(squares) / count - shift * shift, number(0))
            middle, scale = start + shift, number(1) / math.sqrt(variance + number(eps))
            means[i], rstds[i] = middle, scale
            center, factor = splat(middle), splat(scale)
            for t in range(0, C, 8):
                c = min(t, C - 8)
                value = (load(xs, row + c) - center) * factor * load(weights, c) + load(biases, c)
                value = where(value <= zero, zero, value)
                if masked:
                    value = value * load(masks, i * m_stride + c)
                store(outs, i * C + c, value)

    return kernel


@cache
def backward(masked: bool, kind: str) -> Kernel:
    """Gradients of rows ``first`` to ``stop``; those of weight and bias are added to ``dw`` and ``db``.

    ``slope`` is room for C numbers, rounded up to a multiple of eight.
    """
    number = float32 if kind == "f32" else float64

    @compiled(0, kind)
    def kernel(  # type: ignore[no-untyped-def]
        first, stop, C, x, x_stride, m, m_stride, w, b, keep, grad, grad_stride, mean, rstd, slope, dx, dw, db
    ):
        xs, masks, weights, biases = pointer(x, kind), pointer(m, kind), pointer(w, kind), pointer(b, kind)
        keeps, grads, slopes = pointer(keep, kind), pointer(grad, kind), pointer(slope, kind)
        means, rstds = carray(pointer(mean, kind), stop), carray(pointer(rstd, kind), stop)
        dxs, dws, dbs = pointer(dx, kind), pointer(dw, kind), pointer(db, kind)
        zero, count = splat(number(0)), number(C)
        for i in range(first, stop):
            row = i * x_stride
            center, factor = splat(means[i]), splat(rstds[i])
            total, along = zero, zero
            for t in range(0, C, 8):
                c = min(t, C - 8)
                k, weight = load(keeps, 8 if c < t else 0), load(weights, c)
                unit = (load(xs, row + c) - center) * factor
                g = load(grads, i * grad_stride + c)
                if masked:
                    g = g * load(masks, i * m_stride + c)
                g = where(unit * weight + load(biases, c) <= zero, zero, g)
                pull = g * weight
                store(slopes, t, pull)
                total = total + k * pull
                along = along + k * pull * unit
                store(dws, c, load(dws, c) + k * g * unit)
                store(dbs, c, load(dbs, c) + k * g)
            offset, tilt = splat(_sum(total) / count), splat(_sum(along) / count)
            for t in range(0, C, 8):
                c = min(t, C - 8)
                unit = (load(xs, row + c) - center) * factor
                store(dxs, i * C + c, (load(slopes, t) - offset - unit * tilt) * factor)

    return kernel
