"""The aggregation on the GPU: launches the Triton kernels.

Forward passes repeat bit for bit. Backward passes add gradients atomically, in no fixed order; under
``torch.use_deterministic_algorithms`` the backward pass of ``chunked``, which then follows PyTorch's promise, takes
their place. So it does for float64, which serves tests.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from zoo.errors import BackendError
from zoo.ops.csr import CSR, remembered
from zoo.ops.gen_aggregate import chunked, cuda_kernels
from zoo.ops.gen_aggregate.chunked import max_edge_gradient
from zoo.ops.gen_aggregate.interface import Gradients, Messages

# Longer rows are shared by several programs; yet there is room for so many pieces of them at most, since each has
# results of its own.
MAX_PIECE_EDGES = 256
MAX_FURTHER_PIECES = 1 << 16
# Edges that a program handles at once: the side of the smallest matrix product.
BLOCK_EDGES = 16
BLOCK_ROWS = 32
# Programs spread what they add to one place over so many places.
SLOTS = 64
# Three products in TF32 make up for the digits that one loses.
PRECISION = "tf32x3"


class _Plan(NamedTuple):
    """Rows cut into pieces of bounded length; shapes depend on N and E alone.

    Piece i < N begins row i. Room for what is left of long rows follows, row by row; what is not needed of it is empty.
    """

    start: Tensor  # [P] first edge of each piece
    end: Tensor  # [P]
    target: Tensor  # [P - N] rows of the pieces from N on; N of those that no row needs
    tail_ptr: Tensor  # [N + 1] where the further pieces of each row begin, counted from N

    def refill(self, csr: CSR) -> None:
        """See ``csr.Refillable``."""
        for old, new in zip(self, _make_plan(csr), strict=True):
            old.copy_(new)


def _make_plan(csr: CSR) -> _Plan:
    if csr.num_edges >= 2**31:
        raise BackendError(f"triton: {csr.num_edges} edges are too many for 32-bit edge ids; use_backend('chunked')")
    limit = MAX_PIECE_EDGES
    while csr.num_edges // limit > MAX_FURTHER_PIECES:
        limit *= 2
    # Nothing here is read back from the GPU.
    first, last = csr.rowptr[:-1], csr.rowptr[1:]
    extra = (last - first - 1).div(limit, rounding_mode="floor").clamp(min=0)  # [N] pieces after the first
    tail_ptr = torch.zeros_like(csr.rowptr)
    torch.cumsum(extra, 0, out=tail_ptr[1:])
    room = csr.num_edges // limit
    unused = room - tail_ptr[-1:]
    target = torch.repeat_interleave(torch.cat([extra, unused]), output_size=room)
    # A row beyond the last has no edges, whatever piece of it is asked for.
    after = csr.rowptr[-1:]
    nth = torch.arange(1, room + 1, device=target.device) - tail_ptr[target]
    tail_end = torch.cat([last, after])[target]
    tail_start = torch.minimum(torch.cat([first, after])[target] + nth * limit, tail_end)
    start = torch.cat([first, tail_start])
    end = torch.minimum(start + limit, torch.cat([last, tail_end]))
    return _Plan(start, end, target, tail_ptr)


def _launch(kernel: Any, grid: tuple[int, int], device: torch.device, *args: Any, **options: Any) -> None:
    # Triton launches on the current GPU, which need not be that of the tensors.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        # Fused multiply-add is what the kernels are written for; newer versions ask to say so.
        kernel[grid](*args, **options, enable_fp_fusion=True)


class _Call:
    """What the kernels of one call share."""

    def __init__(self, messages: Messages, *, widest: int = 64) -> None:
        x, csr, edge_attr, weight, bias, eps = messages
        self.plan: _Plan = remembered(csr, "triton", _make_plan)
        self.num_rows, self.C = x.shape
        self.D = 0 if weight is None else weight.shape[1]
        x = _unit_stride(x)
        # What a kernel does not read may be any tensor.
        attr = x if edge_attr is None else _unit_stride(edge_attr)
        weight = x if weight is None else weight.contiguous()
        shift = x if bias is None else bias.contiguous()
        self.inputs = (csr.col, x, x.stride(0), attr, attr.stride(0), weight, shift, self.C, eps)
        self.BC, warps = _tile(self.C, widest)
        self.joining = {"BC": self.BC, "num_warps": warps}
        self.options: dict[str, Any] = {
            "D": self.D,
            "DP": max(16, triton.next_power_of_2(self.D)),
            "EMBEDDED": edge_attr is not None and messages.weight is None,
            "BIASED": bias is not None,
            "PRECISION": PRECISION,
            "BE": BLOCK_EDGES,
            **self.joining,
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
        _launch(kernel, self.grid, self.device, self.plan.start, self.plan.end, *args, **{**self.options, **flags})

    def join(self, kernel: Any, *results: Tensor, **flags: bool) -> None:
        """Join the pieces of cut rows in place."""
        target, tail_ptr = self.plan.target, self.plan.tail_ptr
        if target.numel():
            grid = (target.numel(), self.grid[1])
            _launch(
                kernel, grid, self.device, target, tail_ptr, self.num_rows, self.C, *results, **flags, **self.joining
            )

    def rows(self, results: Tensor) -> Tensor:
        """[P, C] to [N, C], a fresh tensor."""
        return results if len(results) == self.num_rows else results[: self.num_rows].clone()


def _tile(num_channels: int, widest: int = 64) -> tuple[int, int]:
    """Channels of a tile, and warps that work on it: little padding, few tiles."""
    sizes = [size for size in (64, 32, 16) if size <= widest]
    size = min(sizes, key=lambda size: triton.cdiv(num_channels, size) * (size + 12))
    return size, max(1, size // 32)


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


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
    call.join(cuda_kernels.join_max, out, arg, WITH_ARG=with_arg)
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
    attr = grad if edge_attr is None else _unit_stride(edge_attr)
    size, warps = _tile(C)
    num_blocks = triton.cdiv(N, BLOCK_ROWS)
    dx = torch.zeros(N, C, dtype=grad.dtype, device=grad.device)
    dw = torch.empty(num_blocks, D, C, dtype=grad.dtype, device=grad.device)
    db = torch.empty(num_blocks, C, dtype=grad.dtype, device=grad.device)
    _launch(
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
    call.join(cuda_kernels.join_sum, out)
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
    call.join(cuda_kernels.join_softmax, out, logsum)
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
        num_warps=(2 if D else 1) * call.joining["num_warps"],
    )
    return Gradients(
        dx,
        d_edges,
        None if messages.weight is None else dw.sum(0).t().contiguous(),
        db.sum(0),
        d_factor.sum() if factor is not None and attached else None,
    )
