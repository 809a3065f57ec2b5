"""The aggregation on the GPU: launches the Triton kernels.

Forward passes repeat bit for bit. Backward passes add gradients atomically, in no fixed order; under
``torch.use_deterministic_algorithms`` the backward pass of ``chunked``, which then follows PyTorch's promise, takes
their place. So it does for float64, which serves tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from zoo.ops.csr import CSR
from zoo.ops.gen_aggregate import chunked, cuda_kernels
from zoo.ops.gen_aggregate.chunked import max_edge_gradient
from zoo.ops.gen_aggregate.interface import Gradients, Messages
from zoo.ops.tensors import unit_stride
from zoo.ops.triton_kernels import join_sum
from zoo.ops.triton_launch import BLOCK_EDGES, join, launch, plan_of, tile

BLOCK_ROWS = 32
# Programs spread what they add to one place over so many places.
SLOTS = 64
# Three products in TF32 make up for the digits that one loses.
PRECISION = "tf32x3"


class _Call:
    """What the kernels of one call share."""

    def __init__(self, messages: Messages, *, widest: int = 64) -> None:
        x, csr, edge_attr, weight, bias, eps = messages
        self.plan = plan_of(csr)
        self.num_rows, self.C = x.shape
        self.D = 0 if weight is None else weight.shape[1]
        x = unit_stride(x)
        # What a kernel does not read may be any tensor.
        attr = x if edge_attr is None else unit_stride(edge_attr)
        weight = x if weight is None else weight.contiguous()
        shift = x if bias is None else bias.contiguous()
        self.inputs = (csr.col, x, x.stride(0), attr, attr.stride(0), weight, shift, self.C, eps)
        self.BC, self.num_warps = tile(self.C, widest)
        self.options: dict[str, Any] = {
            "D": self.D,
            "DP": max(16, triton.next_power_of_2(self.D)),
            "EMBEDDED": edge_attr is not None and messages.weight is None,
            "BIASED": bias is not None,
            "PRECISION": PRECISION,
            "BE": BLOCK_EDGES,
            "BC": self.BC,
            "num_warps": self.num_warps,
        }
        self.device = x.device

    @property
    def grid(self) -> tuple[int, int]:
        return self.plan.start.numel(), triton.cdiv(self.C, self.BC)

    def empty(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[P, C] for the results of pieces."""
        return torch.empty(self.plan.start.numel(), self.C, dtype=dtype, device=self.device)

    def run(self, kernel: Any, *args: Any, **flags: Any) -> None:
        """One program per piece and tile of channels."""
        launch(kernel, self.grid, self.device, self.plan.start, self.plan.end, *args, **{**self.options, **flags})

    def rows(self, results: Tensor) -> Tensor:
        """[P, C] to [N, C], a fresh tensor."""
        return results if len(results) == self.num_rows else results[: self.num_rows].clone()


def _left_to_chunked(tensor: Tensor, *, backward: bool = False) -> bool:
    exact = tensor.dtype == torch.float64
    return exact or tensor.numel() == 0 or (backward and torch.are_deterministic_algorithms_enabled())


def max_forward(messages: Messages, *, with_arg: bool) -> tuple[Tensor, Tensor | None]:
    """See ``interface.Backend``."""
    if _left_to_chunked(messages.x):
        return chunked.max_forward(messages, with_arg=with_arg)
    call = _Call(messages)
    out = call.empty()
    arg = call.empty(torch.int32) if with_arg else out
    call.run(cuda_kernels.max_forward, *call.inputs, out, arg, WITH_ARG=with_arg)
    join(cuda_kernels.join_max, call.plan, out, arg, WITH_ARG=with_arg)
    return call.rows(out), call.rows(arg) if with_arg else None


def max_backward(
    grad: Tensor, arg: Tensor, csr: CSR, edge_attr: Tensor | None, weight: Tensor | None, *, with_edges: bool
) -> Gradients:
    """See ``interface.Backend``."""
    if _left_to_chunked(grad, backward=True):
        return chunked.max_backward(grad, arg, csr, edge_attr, weight, with_edges=with_edges)
    N, C = grad.shape
    D = 0 if weight is None else weight.shape[1]
    grad, arg = grad.contiguous(), arg.contiguous()
    attr = grad if edge_attr is None else unit_stride(edge_attr)
    size, warps = tile(C)
    num_blocks = triton.cdiv(N, BLOCK_ROWS)
    dx = torch.zeros(N, C, dtype=grad.dtype, device=grad.device)
    dw = torch.empty(num_blocks, D, C, dtype=grad.dtype, device=grad.device)
    db = torch.empty(num_blocks, C, dtype=grad.dtype, device=grad.device)
    launch(
        cuda_kernels.max_backward,
        (num_blocks, triton.cdiv(C, size)),
        grad.device,
        *(grad, arg, csr.col, attr, attr.stride(0), N, C, dx, dw, db),
        D=D,
        BR=BLOCK_ROWS,
        BC=size,
        num_warps=2 * warps,
    )
    d_edges = max_edge_gradient(grad, arg, edge_attr, weight) if with_edges and edge_attr is not None else None
    return Gradients(dx, d_edges, None if weight is None else dw.sum(0).t().contiguous(), db.sum(0), None)


def sum_forward(messages: Messages, power: Tensor | None) -> Tensor:
    """See ``interface.Backend``."""
    if _left_to_chunked(messages.x):
        return chunked.sum_forward(messages, power)
    call = _Call(messages)
    out = call.empty()
    powered = power is not None
    call.run(cuda_kernels.sum_forward, *call.inputs, power if powered else out, out, POWERED=powered)
    join(join_sum, call.plan, out)
    return call.rows(out)


def sum_backward(grad: Tensor, messages: Messages, power: Tensor | None, *, with_edges: bool) -> Gradients:
    """See ``interface.Backend``."""
    if _left_to_chunked(grad, backward=True):
        return chunked.sum_backward(grad, messages, power, with_edges=with_edges)
    form = 0 if power is None else 1
    return _sum_backward(form, grad, messages, power, grad, grad, attached=True, with_edges=with_edges)


def softmax_forward(messages: Messages, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """See ``interface.Backend``."""
    if _left_to_chunked(messages.x):
        return chunked.softmax_forward(messages, temperature)
    call = _Call(messages)
    out, logsum = call.empty(), call.empty()
    call.run(cuda_kernels.softmax_forward, *call.inputs, temperature, out, logsum)
    join(cuda_kernels.join_softmax, call.plan, out, logsum)
    return call.rows(out), call.rows(logsum)


def softmax_backward(
    grad: Tensor,
    out: Tensor,
    logsum: Tensor,
    messages: Messages,
    temperature: Tensor,
    *,
    detach_weights: bool,
    with_edges: bool,
) -> Gradients:
    """See ``interface.Backend``."""
    if _left_to_chunked(grad, backward=True):
        return chunked.softmax_backward(
            grad, out, logsum, messages, temperature, detach_weights=detach_weights, with_edges=with_edges
        )
    attached = not detach_weights
    return _sum_backward(2, grad, messages, temperature, out, logsum, attached=attached, with_edges=with_edges)


def _sum_backward(
    form: int,
    grad: Tensor,
    messages: Messages,
    factor: Tensor | None,
    out: Tensor,
    logsum: Tensor,
    *,
    attached: bool,
    with_edges: bool,
) -> Gradients:
    edge_attr = messages.edge_attr
    with_edges = with_edges and edge_attr is not None
    # Gradients of weights and edge features stay in registers too: more of them, for fewer channels.
    call = _Call(messages, widest=16 if with_edges and messages.weight is not None else 64)
    grad, out, logsum = grad.contiguous(), out.contiguous(), logsum.contiguous()
    plan, C, D = call.plan, call.C, call.D

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=grad.dtype, device=grad.device)

    dx, dw, db, d_factor = zeros(call.num_rows, C), zeros(SLOTS, D, C), zeros(SLOTS, C), zeros(SLOTS)
    d_edges = zeros(*edge_attr.shape) if with_edges and edge_attr is not None else None
    call.run(
        cuda_kernels.sum_backward,
        plan.target,
        call.num_rows,
        *call.inputs,
        grad if factor is None else factor,
        float(attached),
        *(grad, out, logsum, dx, dx if d_edges is None else d_edges, dw, db, d_factor),
        FORM=form,
        WITH_EDGES=d_edges is not None,
        SLOTS=SLOTS,
        num_warps=(2 if D else 1) * call.num_warps,
    )
    return Gradients(
        dx,
        d_edges,
        None if messages.weight is None else dw.sum(0).t().contiguous(),
        db.sum(0),
        d_factor.sum() if factor is not None and attached else None,
    )
