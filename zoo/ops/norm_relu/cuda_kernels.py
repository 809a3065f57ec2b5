"""The Triton kernels: layer norm, ReLU and mask of a few rows per program, whole rows in registers.

Numbers of any precision are read; everything is computed in float32.
"""

# Triton carries no types, and its functions are not Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(block, N, C, BR: tl.constexpr, BC: tl.constexpr):
    """[BR, 1] row numbers of a block, [1, BC] channels, and [BR, BC] which of the places exist."""
    rows = (block * BR + tl.arange(0, BR)).to(tl.int64)[:, None]
    channels = tl.arange(0, BC)[None, :]
    return rows, channels, (rows < N) & (channels < C)


@triton.jit
def forward(
    x, x_stride, mask, mask_stride, weight, bias, N, C, eps, out, mean, rstd,
    MASKED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """relu(layer_norm(x)) * mask of BR rows, and the mean and 1 / deviation of each."""
    rows, channels, live = _tile(tl.program_id(0), N, C, BR, BC)
    value = tl.load(x + rows * x_stride + channels, mask=live, other=0.0).to(tl.float32)
    center = (tl.sum(value, axis=1) / C)[:, None]
    off = tl.where(live, value - center, 0.0)
    factor = 1.0 / tl.sqrt_rn((tl.sum(off * off, axis=1) / C)[:, None] + eps)
    inside = channels < C
    value = off * factor * tl.load(weight + channels, mask=inside) + tl.load(bias + channels, mask=inside)
    # Not the maximum of it and zero, so that a NaN stays.
    value = tl.where(value <= 0, 0.0, value)
    if MASKED:
        value *= tl.load(mask + rows * mask_stride + channels, mask=live, other=0.0).to(tl.float32)
    tl.store(out + rows * C + channels, value, mask=live)
    tl.store(mean + rows, center, mask=rows < N)
    tl.store(rstd + rows, factor, mask=rows < N)


@triton.jit
def backward(
    x, x_stride, mask, mask_stride, weight, bias, N, C, grad, grad_stride, mean, rstd, dx, sums,
    MASKED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of every n-th block of BR rows, n programs in all; [n, 2, C] those of weight and bias, to be summed."""
    inside = (tl.arange(0, BC) < C)[None, :]
    scale = tl.load(weight + tl.arange(0, BC)[None, :], mask=inside, other=0.0)
    shift = tl.load(bias + tl.arange(0, BC)[None, :], mask=inside, other=0.0)
    dw = tl.zeros((BR, BC), tl.float32)
    db = tl.zeros((BR, BC), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, BR), tl.num_programs(0)):
        rows, channels, live = _tile(block, N, C, BR, BC)
        factor = tl.load(rstd + rows, mask=rows < N, other=0.0)
        value = tl.load(x + rows * x_stride + channels, mask=live, other=0.0).to(tl.float32)
        unit = tl.where(live, (value - tl.load(mean + rows, mask=rows < N, other=0.0)) * factor, 0.0)
        g = tl.load(grad + rows * grad_stride + channels, mask=live, other=0.0).to(tl.float32)
        if MASKED:
            g *= tl.load(mask + rows * mask_stride + channels, mask=live, other=0.0).to(tl.float32)
        g = tl.where(unit * scale + shift <= 0, 0.0, g)
        dw += g * unit
        db += g
        pull = g * scale
        offset = (tl.sum(pull, axis=1) / C)[:, None]
        tilt = (tl.sum(pull * unit, axis=1) / C)[:, None]
        tl.store(dx + rows * C + channels, (pull - offset - unit * tilt) * factor, mask=live)
    goal = sums + tl.program_id(0) * 2 * C + tl.arange(0, BC)
    tl.store(goal, tl.sum(dw, axis=0), mask=tl.arange(0, BC) < C)
    tl.store(goal + C, tl.sum(db, axis=0), mask=tl.arange(0, BC) < C)
