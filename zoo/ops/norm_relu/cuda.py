"""Layer norm, ReLU and mask on the GPU: Triton kernels, a few rows per program, whole rows in registers.

Numbers of any precision are read; everything is computed in float32. Results repeat bit for bit.
"""

# Triton carries no types, and its functions are not Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, misc"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.ops.triton_launch import launch

# Numbers that a program holds of each tensor.
TILE_NUMBERS = 2048
NUM_WARPS = 4
# Programs of a backward pass, each with its own sums for the gradients of weight and bias.
MAX_PROGRAMS = 512


def _run(kernel: Any, max_programs: int, x: Tensor, mask: Tensor | None, *args: Any) -> None:
    width = triton.next_power_of_2(x.shape[1])
    height = max(1, TILE_NUMBERS // width)
    grid = (min(triton.cdiv(len(x), height), max_programs), 1)
    # Any tensor may be passed for an argument that a kernel does not read.
    rows = (x, x.stride(0), x, 0) if mask is None else (x, x.stride(0), mask, mask.stride(0))
    launch(kernel, grid, x.device, *rows, *args, MASKED=mask is not None, BR=height, BC=width, num_warps=NUM_WARPS)


def forward(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """See ``cpu``."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean = torch.empty(len(x), dtype=torch.float32, device=x.device)
    rstd = torch.empty(len(x), dtype=torch.float32, device=x.device)
    _run(forward_kernel, len(x), x, mask, weight, bias, *x.shape, eps, out, mean, rstd)
    return out, mean, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``cpu``."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # Zero, because fewer programs may run.
    sums = torch.zeros(MAX_PROGRAMS, 2, x.shape[1], dtype=torch.float32, device=x.device)
    rest = (grad, grad.stride(0), mean, rstd, dx, sums)
    _run(backward_kernel, MAX_PROGRAMS, x, mask, weight, bias, *x.shape, *rest)
    total = sums.sum(0)
    return dx, total[0], total[1]


@triton.jit
def _tile(block, N, C, BR: tl.constexpr, BC: tl.constexpr):
    """[BR, 1] row numbers of a block, [1, BC] channels, and [BR, BC] which of the places exist."""
    rows = (block * BR + tl.arange(0, BR)).to(tl.int64)[:, None]
    channels = tl.arange(0, BC)[None, :]
    return rows, channels, (rows < N) & (channels < C)


@triton.jit
def forward_kernel(
    x, x_stride, mask, mask_stride, weight, bias, N, C, eps, out, mean, rstd,
    MASKED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """relu(layer_norm(x)) * mask of BR rows, and the mean and 1 / deviation of each."""
    rows, channels, live = _tile(tl.program_id(0), N, C, BR, BC)
    value = tl.load(x + rows * x_stride + channels, mask=live, other=0.0).to(tl.float32)
    center = (tl.sum(value, axis=1) / C)[:, None]
    centered = tl.where(live, value - center, 0.0)
    factor = 1.0 / tl.sqrt_rn((tl.sum(centered * centered, axis=1) / C)[:, None] + eps)
    inside = channels < C
    value = centered * factor * tl.load(weight + channels, mask=inside) + tl.load(bias + channels, mask=inside)
    # Not the maximum of it and zero, so that a NaN stays.
    value = tl.where(value <= 0, 0.0, value)
    if MASKED:
        value *= tl.load(mask + rows * mask_stride + channels, mask=live, other=0.0).to(tl.float32)
    tl.store(out + rows * C + channels, value, mask=live)
    tl.store(mean + rows, center, mask=rows < N)
    tl.store(rstd + rows, factor, mask=rows < N)


@triton.jit
def backward_kernel(
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
        g_unit = g * scale
        offset = (tl.sum(g_unit, axis=1) / C)[:, None]
        slope_mean = (tl.sum(g_unit * unit, axis=1) / C)[:, None]
        tl.store(dx + rows * C + channels, (g_unit - offset - unit * slope_mean) * factor, mask=live)
    own_sums = sums + tl.program_id(0) * 2 * C + tl.arange(0, BC)
    tl.store(own_sums, tl.sum(dw, axis=0), mask=tl.arange(0, BC) < C)
    tl.store(own_sums + C, tl.sum(db, axis=0), mask=tl.arange(0, BC) < C)
