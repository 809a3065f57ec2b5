"""Max, sums and softmax on the GPU: layout of tensors for the kernels, and their launch.

Forward passes repeat bit for bit. Backward passes add gradients atomically, in no fixed order; under
``torch.use_deterministic_algorithms`` the backward pass of ``chunked``, which then keeps PyTorch's promise, takes their
place. So it does for float64, which serves tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from zoo.ops.gen_aggregate import chunked
from zoo.ops.gen_aggregate.chunked import Gradients, max_edge_gradient
from zoo.ops.gen_aggregate.cuda_kernels import (
    max_backward_kernel,
    max_forward_kernel,
    merge_max_kernel,
    merge_softmax_kernel,
    sum_backward_kernel,
    sum_forward_kernel,
)
from zoo.ops.gen_aggregate.reference import Messages
from zoo.ops.tensors import unit_stride
from zoo.ops.triton_launch import BLOCK_EDGES, launch, merge, merge_sum, segments_of, tile

BLOCK_ROWS = 32
# Programs spread what they add to one address over so many.
SLOTS = 64
# Three products in TF32 recover the digits that a single one loses.
PRECISION = "tf32x3"


class _Call:
    """Arguments that the kernels of one call share."""

    def __init__(self, messages: Messages, *, widest: int = 64) -> None:
        x, csr, edges, eps = messages
        attr, weight, bias = edges or (None, None, None)
        self.segments = segments_of(csr)
        self.num_rows, self.C = x.shape
        self.D = 0 if weight is None else weight.shape[1]
        embedded = attr is not None and weight is None
        x = unit_stride(x)
        # Any tensor may be passed for an argument that a kernel does not read.
        attr = x if attr is None else unit_stride(attr)
        weight = x if weight is None else weight.contiguous()
        shift = x if bias is None else bias.contiguous()
        self.inputs = (csr.col, x, x.stride(0), attr, attr.stride(0), weight, shift, self.C, eps)
        self.BC, self.num_warps = tile(self.C, widest)
        self.options: dict[str, Any] = {
            "D": self.D,
            "DP": max(16, triton.next_power_of_2(self.D)),
            "EMBEDDED": embedded,
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


def _left_to_chunked(tensor: Tensor, *, backward: bool = False) -> bool:
    exact = tensor.dtype == torch.float64
    return exact or tensor.numel() == 0 or (backward and torch.are_deterministic_algorithms_enabled())


def max_forward(messages: Messages, factor: None, *, needs_grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See ``chunked``."""
    if _left_to_chunked(messages.x):
        return chunked.max_forward(messages, factor, needs_grad=needs_grad)
    call = _Call(messages)
    out = call.empty()
    winner = call.empty(torch.int32) if needs_grad else out
    call.run(max_forward_kernel, *call.inputs, out, winner, WITH_WINNER=needs_grad)
    merge(merge_max_kernel, call.segments, out, winner, WITH_WINNER=needs_grad)
    return call.rows(out), (call.rows(winner),) if needs_grad else ()


def max_backward(
    grad: Tensor, messages: Messages, factor: None, winner: Tensor, *, detach_weights: bool, with_edges: bool
) -> Gradients:
    """See ``chunked``."""
    if _left_to_chunked(grad, backward=True):
        options = {"detach_weights": detach_weights, "with_edges": with_edges}
        return chunked.max_backward(grad, messages, factor, winner, **options)
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
    d_attr = max_edge_gradient(grad, messages, winner) if with_edges else None
    return dx, d_attr, None if weight is None else dw.sum(0).t().contiguous(), db.sum(0), None


def sum_forward(
    messages: Messages, temperature: Tensor | None, *, needs_grad: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See ``chunked``."""
    if _left_to_chunked(messages.x):
        return chunked.sum_forward(messages, temperature, needs_grad=needs_grad)
    call = _Call(messages)
    out = call.empty()
    if temperature is None:
        call.run(sum_forward_kernel, *call.inputs, out, out, out, SOFTMAX=False)
        merge(merge_sum, call.segments, out)
        return call.rows(out), ()
    logsum = call.empty()
    call.run(sum_forward_kernel, *call.inputs, temperature, out, logsum, SOFTMAX=True)
    merge(merge_softmax_kernel, call.segments, out, logsum)
    out = call.rows(out)
    return out, (out, call.rows(logsum))


def sum_backward(
    grad: Tensor,
    messages: Messages,
    temperature: Tensor | None,
    out: Tensor | None = None,
    logsum: Tensor | None = None,
    *,
    detach_weights: bool,
    with_edges: bool,
) -> Gradients:
    """See ``chunked``."""
    if _left_to_chunked(grad, backward=True):
        options = {"detach_weights": detach_weights, "with_edges": with_edges}
        return chunked.sum_backward(grad, messages, temperature, out, logsum, **options)
    attr, weight, _ = messages.edges or (None, None, None)
    # Gradients of weights and edge features stay in registers too: more of them, for fewer channels.
    call = _Call(messages, widest=16 if with_edges and weight is not None else 64)
    # Without softmax its three tensors are not read.
    grad, out, logsum = (grad if tensor is None else tensor.contiguous() for tensor in (grad.contiguous(), out, logsum))
    C, D = call.C, call.D

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=grad.dtype, device=grad.device)

    dx, dw, db, d_factor = zeros(call.num_rows, C), zeros(SLOTS, D, C), zeros(SLOTS, C), zeros(SLOTS)
    d_attr = zeros(*attr.shape) if with_edges and attr is not None else None
    factor = (grad if temperature is None else temperature, float(not detach_weights))
    call.run(
        sum_backward_kernel,
        *(call.segments.row, call.num_rows, *call.inputs, *factor),
        *(grad, out, logsum, dx, dx if d_attr is None else d_attr, dw, db, d_factor),
        SOFTMAX=temperature is not None,
        WITH_EDGES=d_attr is not None,
        SLOTS=SLOTS,
        num_warps=(2 if D else 1) * call.num_warps,
    )
    d_weight = None if weight is None else dw.sum(0).t().contiguous()
    return dx, d_attr, d_weight, db.sum(0), None if temperature is None or detach_weights else d_factor.sum()
