"""Layer norm, ReLU and mask on the GPU: launches the Triton kernels. Results repeat bit for bit."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from zoo.ops.norm_relu import cuda_kernels
from zoo.ops.triton_launch import launch

# Numbers that a program holds of each tensor.
TILE_NUMBERS = 2048
NUM_WARPS = 4
# Programs of a backward pass, each with sums of its own for the gradients of weight and bias.
MAX_PROGRAMS = 512


def _run(kernel: Any, max_programs: int, x: Tensor, mask: Tensor | None, *args: Any) -> None:
    width = triton.next_power_of_2(x.shape[1])
    height = max(1, TILE_NUMBERS // width)
    grid = (min(triton.cdiv(len(x), height), max_programs), 1)
    # What a kernel does not read may be any tensor.
    place = (x, x.stride(0), x, 0) if mask is None else (x, x.stride(0), mask, mask.stride(0))
    launch(kernel, grid, x.device, *place, *args, MASKED=mask is not None, BR=height, BC=width, num_warps=NUM_WARPS)


def forward(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """See ``interface.Backend``."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    mean = torch.empty(len(x), dtype=torch.float32, device=x.device)
    rstd = torch.empty(len(x), dtype=torch.float32, device=x.device)
    _run(cuda_kernels.forward, len(x), x, mask, weight, bias, *x.shape, eps, out, mean, rstd)
    return out, mean, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``interface.Backend``."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    # Zero, because fewer programs may run.
    sums = torch.zeros(MAX_PROGRAMS, 2, x.shape[1], dtype=torch.float32, device=x.device)
    rest = (grad, grad.stride(0), mean, rstd, dx, sums)
    _run(cuda_kernels.backward, MAX_PROGRAMS, x, mask, weight, bias, *x.shape, *rest)
    total = sums.sum(0)
    return dx, total[0], total[1]
