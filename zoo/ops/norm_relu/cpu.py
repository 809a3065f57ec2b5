"""Layer norm, ReLU and mask on the CPU: hands the rows to the Numba kernels in blocks.

Blocks do not depend on the number of threads, so neither does any result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from zoo.ops.norm_relu import cpu_kernels
from zoo.ops.numba_kernels import Kernel, kind_of
from zoo.ops.tensors import address
from zoo.ops.threads import run_tasks
from zoo.ops.vectors import LANES

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
    where_mask = (0, 0) if mask is None else (address(mask), mask.stride(0))
    keep = _keep(x.shape[1], x.dtype)
    return x.shape[1], *_place(x), *where_mask, address(weight), address(bias), address(keep)


def _place(tensor: Tensor) -> tuple[int, int]:
    return address(tensor), tensor.stride(0)


def _kernel(make: Callable[[bool, str], Kernel], x: Tensor, mask: Tensor | None) -> Kernel:
    return make(mask is not None, kind_of(x))


def forward(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """See ``interface.Backend``."""
    out = torch.empty(x.shape, dtype=x.dtype)
    mean, rstd = torch.empty(2, len(x), dtype=x.dtype)
    results = (address(out), address(mean), address(rstd))
    kernel, inputs = _kernel(cpu_kernels.forward, x, mask), _inputs(x, weight, bias, mask)
    run_tasks([partial(kernel, *rows, *inputs, *results, eps) for rows in _blocks(x)])
    return out, mean, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``interface.Backend``."""
    C, blocks = x.shape[1], _blocks(x)
    dx = torch.empty(x.shape, dtype=x.dtype)
    sums = torch.zeros(len(blocks), 2, C, dtype=x.dtype)
    slope = torch.empty(len(blocks), -(-C // LANES) * LANES, dtype=x.dtype)
    kernel, inputs = _kernel(cpu_kernels.backward, x, mask), _inputs(x, weight, bias, mask)
    rest = (*_place(grad), address(mean), address(rstd))
    tasks = []
    for rows, room, total in zip(blocks, slope, sums, strict=True):
        goal = (address(room), address(dx), address(total[0]), address(total[1]))
        tasks.append(partial(kernel, *rows, *inputs, *rest, *goal))
    run_tasks(tasks)
    dw, db = sums.sum(0, dtype=torch.float64).to(x.dtype)
    return dx, dw, db
