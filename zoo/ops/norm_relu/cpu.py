"""Layer norm, ReLU and mask on the CPU: Numba kernels over blocks of rows, eight channels at a time.

The number of channels C is at least eight. Where it is no multiple of eight, the last vector overlaps the one before
it: outputs are written twice, the same both times, and sums count each channel once, because the vector at ``keep + 8``
is zero where they overlap (that at ``keep`` is all ones). Blocks do not depend on the number of threads, so neither do
results.
"""

# Numba carries no types.
# mypy: disable-error-code="untyped-decorator, operator"

from __future__ import annotations

import math
from functools import cache, partial

import torch
from torch import Tensor

from zoo.ops.dispatch import address
from zoo.ops.vectors import (
    LANES,
    SCALARS,
    Kernel,
    addresses,
    compiled,
    dtype_code,
    item,
    load,
    pointer,
    put_item,
    splat,
    store,
    total,
    where,
)
from zoo.ops.work_items import run_tasks

# Numbers in the rows of a block: enough work to be worth handing to a thread.
BLOCK_NUMBERS = 1 << 17


@cache
def _keep(num_channels: int, dtype: torch.dtype) -> Tensor:
    """[16]: ones, then zeros in the lanes where the last eight channels overlap the vector before them."""
    keep = torch.ones(2 * LANES, dtype=dtype)
    keep[LANES : LANES + -num_channels % LANES] = 0
    return keep


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    N, C = x.shape
    size = max(1, BLOCK_NUMBERS // C)
    return [(first, min(first + size, N)) for first in range(0, N, size)]


def _inputs(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> tuple[int, ...]:
    masks = (0, 0) if mask is None else (address(mask), mask.stride(0))
    parameters = addresses(weight, bias, _keep(x.shape[1], x.dtype))
    return x.shape[1], address(x), x.stride(0), *masks, *parameters


def forward(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """[N, C] relu(layer_norm(x)) * mask in the dtype of x; [N] means and [N] 1 / deviations of the rows of x."""
    out = torch.empty(x.shape, dtype=x.dtype)
    mean, rstd = torch.empty(2, len(x), dtype=x.dtype)
    kernel, inputs = _forward(mask is not None, dtype_code(x)), _inputs(x, weight, bias, mask)
    run_tasks([partial(kernel, *rows, *inputs, *addresses(out, mean, rstd), eps) for rows in _blocks(x)])
    return out, mean, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    C, blocks = x.shape[1], _blocks(x)
    dx = torch.empty(x.shape, dtype=x.dtype)
    sums = torch.zeros(len(blocks), 2, C, dtype=x.dtype)
    slope = torch.empty(len(blocks), -(-C // LANES) * LANES, dtype=x.dtype)
    kernel, inputs = _backward(mask is not None, dtype_code(x)), _inputs(x, weight, bias, mask)
    rest = (address(grad), grad.stride(0), *addresses(mean, rstd))
    run_tasks(
        [
            partial(kernel, *rows, *inputs, *rest, *addresses(buffer, dx, dw, db))
            for rows, buffer, (dw, db) in zip(blocks, slope, sums, strict=True)
        ]
    )
    dw, db = sums.sum(0, dtype=torch.float64).to(x.dtype)
    return dx, dw, db


@cache
def _forward(masked: bool, dtype: str) -> Kernel:
    """relu(layer_norm(x)) * mask of the rows ``first`` to ``stop``, and the mean and 1 / deviation of each."""
    scalar = SCALARS[dtype]

    @compiled(1, dtype)
    def kernel(first, stop, C, x, x_stride, m, m_stride, w, b, keep, out, mean, rstd, eps):  # type: ignore[no-untyped-def]
        xs, masks, weights, biases = pointer(x, dtype), pointer(m, dtype), pointer(w, dtype), pointer(b, dtype)
        keeps, outs = pointer(keep, dtype), pointer(out, dtype)
        means, rstds = pointer(mean, dtype), pointer(rstd, dtype)
        zero, count = splat(scalar(0)), scalar(C)
        for i in range(first, stop):
            row = i * x_stride
            # Distances from the first channel: where all are equal, mean and variance come out exact.
            start = item(xs, row)
            origin, sums, squares = splat(start), zero, zero
            for t in range(0, C, 8):
                c = min(t, C - 8)
                centered = (load(xs, row + c) - origin) * load(keeps, 8 if c < t else 0)
                sums = sums + centered
                squares = squares + centered * centered
            shift = total(sums) / count
            variance = max(total(squares) / count - shift * shift, scalar(0))
            middle, scale = start + shift, scalar(1) / math.sqrt(variance + scalar(eps))
            put_item(means, i, middle)
            put_item(rstds, i, scale)
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
def _backward(masked: bool, dtype: str) -> Kernel:
    """Gradients of rows ``first`` to ``stop``; those of weight and bias are added to ``dw`` and ``db``.

    ``slope`` is a buffer of C numbers, rounded up to a multiple of eight.
    """
    scalar = SCALARS[dtype]

    @compiled(0, dtype)
    def kernel(  # type: ignore[no-untyped-def]
        first, stop, C, x, x_stride, m, m_stride, w, b, keep, grad, grad_stride, mean, rstd, slope, dx, dw, db
    ):
        xs, masks, weights, biases = pointer(x, dtype), pointer(m, dtype), pointer(w, dtype), pointer(b, dtype)
        keeps, grads, slopes = pointer(keep, dtype), pointer(grad, dtype), pointer(slope, dtype)
        means, rstds = pointer(mean, dtype), pointer(rstd, dtype)
        dxs, dws, dbs = pointer(dx, dtype), pointer(dw, dtype), pointer(db, dtype)
        zero, count = splat(scalar(0)), scalar(C)
        for i in range(first, stop):
            row = i * x_stride
            center, factor = splat(item(means, i)), splat(item(rstds, i))
            sums, unit_sums = zero, zero
            for t in range(0, C, 8):
                c = min(t, C - 8)
                k, weight = load(keeps, 8 if c < t else 0), load(weights, c)
                unit = (load(xs, row + c) - center) * factor
                g = load(grads, i * grad_stride + c)
                if masked:
                    g = g * load(masks, i * m_stride + c)
                g = where(unit * weight + load(biases, c) <= zero, zero, g)
                g_unit = g * weight
                store(slopes, t, g_unit)
                sums = sums + k * g_unit
                unit_sums = unit_sums + k * g_unit * unit
                store(dws, c, load(dws, c) + k * g * unit)
                store(dbs, c, load(dbs, c) + k * g)
            offset, slope_mean = splat(total(sums) / count), splat(total(unit_sums) / count)
            for t in range(0, C, 8):
                c = min(t, C - 8)
                unit = (load(xs, row + c) - center) * factor
                store(dxs, i * C + c, (load(slopes, t) - offset - unit * slope_mean) * factor)

    return kernel
