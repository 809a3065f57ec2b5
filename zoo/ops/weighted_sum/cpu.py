"""The weighted sum on the CPU: lays tensors out for the Numba kernels and shares their work over threads.

Results are the same whatever the number of threads.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.csr import CSR
from zoo.ops.numba_kernels import Kernel, addresses, kind_of
from zoo.ops.pieces import Plan, intervals, plan_of
from zoo.ops.tensors import address, unit_stride
from zoo.ops.threads import run_tasks
from zoo.ops.vectors import LANES
from zoo.ops.weighted_sum import cpu_kernels


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """See ``functions.Backend``."""
    (N, H, channels), plan = x.shape, plan_of(csr)
    rows, C = _rows(x)
    weights = None if weight is None else weight.contiguous()
    out = torch.empty(plan.pieces.num_pieces, H, C, dtype=x.dtype)
    source = (address(rows), rows.stride(0), 0 if weights is None else address(weights))
    _run(cpu_kernels.weighted_sum(weight is not None, kind_of(x)), csr, plan, *source, H, C, address(out))
    for first, more in plan.rounds:
        out[first] += out[more]
    # A fresh tensor, not a view of one: autograd would forbid to change a view in place.
    return out if out.shape == x.shape else out[:N, :, :channels].clone()


def edge_products(grad: Tensor, x: Tensor, csr: CSR) -> Tensor:
    """See ``functions.Backend``."""
    plan = plan_of(csr)
    rows, C = _rows(x)
    grads, _ = _rows(grad)
    out = torch.empty(csr.num_edges, x.shape[1], dtype=x.dtype)
    targets = (address(plan.pieces.target), csr.num_nodes)
    both = (address(rows), rows.stride(0), address(grads), grads.stride(0))
    _run(cpu_kernels.edge_products(kind_of(x)), csr, plan, *targets, *both, x.shape[1], C, address(out))
    return out


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """[N, H * C] and C, with zeros up to a multiple of eight channels per head; rows may lie apart."""
    missing = -x.shape[2] % LANES
    padded = F.pad(x, (0, missing)) if missing else x
    return unit_stride(padded.flatten(1)), padded.shape[2]


def _run(kernel: Kernel, csr: CSR, plan: Plan, *rest: int) -> None:
    pieces, col = plan.pieces, csr.col if plan.col is None else plan.col
    edges = addresses(pieces.start, pieces.end)
    run_tasks([partial(kernel, *edges, *chunk, address(col), *rest) for chunk in intervals(plan.bounds)])
