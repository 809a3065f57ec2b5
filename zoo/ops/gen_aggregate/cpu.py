"""Max, sums and softmax on the CPU: layout of tensors for the kernels, and their work shared over threads.

Forward passes, and the gradients of max, are the same whatever the number of threads; the gradient of sums with respect
to x is itself a sum over threads, the same for the same number of threads.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.gen_aggregate import cpu_kernels
from zoo.ops.gen_aggregate.chunked import Gradients, max_edge_gradient
from zoo.ops.gen_aggregate.reference import Messages
from zoo.ops.numba_launch import addresses, dtype_code
from zoo.ops.tensors import address, unit_stride
from zoo.ops.threads import run_tasks
from zoo.ops.vectors import LANES
from zoo.ops.work_items import WorkItems

# Reading this many edges ahead hides the latency of memory; tables of x below a size stay in the cache anyway.
PREFETCH_EDGES = 32
PREFETCH_BYTES = 4 << 20
# Rows whose gradients with respect to the weights are summed in the tensors' own precision, then in float64.
ROWS_PER_SUM = 4096


class _Layout:
    """The tensors of one call as the kernels want them, kept alive while the kernels use their addresses."""

    def __init__(self, messages: Messages) -> None:
        x, self.csr, edges, self.eps = messages
        attr, weight, bias = edges or (None, None, None)
        self.num_channels, self.work, self.dtype = x.shape[1], WorkItems.of(self.csr), dtype_code(x)
        self.C = -(-self.num_channels // LANES) * LANES
        self.D = 0 if weight is None else weight.shape[1]
        self.embedded = attr is not None and weight is None
        self.col = self.work.int32_col(self.csr)
        nothing = x.new_empty(0)
        self.x = self.padded(x)
        self.attr = nothing
        if attr is not None:
            self.attr = self.padded(attr) if self.embedded else unit_stride(attr)
        self.weight = nothing if weight is None else self.padded(weight.t()).contiguous()  # [D, C]
        self.bias = x.new_zeros(self.C) if bias is None else F.pad(bias, (0, self.C - self.num_channels)).contiguous()

    def padded(self, tensor: Tensor) -> Tensor:
        """[n, C], with zeros up to a multiple of eight channels."""
        missing = self.C - tensor.shape[1]
        return F.pad(tensor, (0, missing)) if missing else unit_stride(tensor)

    def empty(self, dtype: torch.dtype | None = None) -> Tensor:
        """[S, C] for the results of segments."""
        return torch.empty(self.work.segments.start.numel(), self.C, dtype=dtype or self.x.dtype)

    def inputs(self) -> tuple[int, ...]:
        """Arguments of every kernel: edges, node features, edge features, weight, bias, number of channels."""
        ahead = PREFETCH_EDGES if self.x.numel() * self.x.element_size() > PREFETCH_BYTES else 0
        nodes, edges = (address(self.x), self.x.stride(0)), (address(self.attr), self.attr.stride(0))
        return (
            address(self.col),
            self.csr.num_edges - 1,
            ahead,
            *nodes,
            *edges,
            *addresses(self.weight, self.bias),
            self.C,
        )

    def cropped(self, tensor: Tensor) -> Tensor:
        """[S, padded C] to [N, C]."""
        shape = (self.csr.num_nodes, self.num_channels)
        # A fresh tensor, not a view of one: autograd would forbid to change a view in place.
        return tensor if tensor.shape == shape else tensor[: shape[0], : shape[1]].clone()


def max_forward(messages: Messages, factor: None, *, needs_grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See ``chunked``."""
    layout = _Layout(messages)
    out = layout.empty()
    winner = layout.empty(torch.int32) if needs_grad else torch.empty(0, dtype=torch.int32)
    kernel = cpu_kernels.max_forward(layout.D, layout.embedded, needs_grad, layout.dtype)
    layout.work.run(kernel, *layout.inputs(), *addresses(out, winner), layout.eps)
    for rows, segments in layout.work.merge_steps:
        # Of equal messages the first wins, and a NaN wins over all numbers.
        better = ~(out[segments] <= out[rows]) & ~out[rows].isnan()
        out[rows] = out[segments].where(better, out[rows])
        if needs_grad:
            winner[rows] = winner[segments].where(better, winner[rows])
    return layout.cropped(out), (layout.cropped(winner),) if needs_grad else ()


def max_backward(
    grad: Tensor, messages: Messages, factor: None, winner: Tensor, *, detach_weights: bool, with_edges: bool
) -> Gradients:
    """See ``chunked``."""
    _, csr, edges, _ = messages
    attr, weight, _ = edges or (None, None, None)
    N, C = grad.shape
    D = 0 if weight is None else weight.shape[1]
    col = WorkItems.of(csr).int32_col(csr)
    grad, winner = grad.contiguous(), winner.to(torch.int32).contiguous()
    attr = grad.new_empty(0) if attr is None or weight is None else unit_stride(attr)
    dx = torch.zeros(N, C, dtype=grad.dtype)
    starts = range(0, N + ROWS_PER_SUM, ROWS_PER_SUM)
    dw = torch.zeros(len(starts), C, D, dtype=grad.dtype)
    db = torch.zeros(len(starts), C, dtype=grad.dtype)
    kernel = cpu_kernels.max_backward(D, dtype_code(grad))

    # Each task owns a slice of the channels, so that no two of them write to one address.
    def task(low: int, high: int) -> None:
        for n, first in enumerate(starts):
            rows, sums = (first, min(first + ROWS_PER_SUM, N)), addresses(dx, dw[n], db[n])
            kernel(*rows, low, high, C, *addresses(col, grad, winner), address(attr), attr.stride(0), *sums)

    num_slices = max(1, min(torch.get_num_threads(), C // LANES))
    run_tasks([partial(task, C * s // num_slices, C * (s + 1) // num_slices) for s in range(num_slices)])
    d_attr = max_edge_gradient(grad, messages, winner) if with_edges else None
    return dx, d_attr, None if weight is None else _total(dw), _total(db), None


def _total(parts: Tensor) -> Tensor:
    return parts.sum(0, dtype=torch.float64).to(parts.dtype)


def sum_forward(
    messages: Messages, temperature: Tensor | None, *, needs_grad: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See ``chunked``."""
    layout, softmax = _Layout(messages), temperature is not None
    work, out = layout.work, layout.empty()
    logsum = layout.empty() if softmax else out
    # Each work item has a buffer for the peaks of the row at hand.
    peaks = torch.empty(len(work.items), layout.C if softmax else 0, dtype=out.dtype)
    kernel = cpu_kernels.sum_forward(layout.D, layout.embedded, softmax, layout.dtype)
    rest, scalars = (*layout.inputs(), *addresses(out, logsum)), (layout.eps, float(temperature or 0))
    run_tasks([partial(kernel, *work.bounds(n), *rest, address(peak), *scalars) for n, peak in enumerate(peaks)])
    for rows, segments in work.merge_steps:
        if not softmax:
            out[rows] += out[segments]
            continue
        both = torch.logaddexp(logsum[rows], logsum[segments])
        out[rows] = out[rows] * (logsum[rows] - both).exp() + out[segments] * (logsum[segments] - both).exp()
        logsum[rows] = both
    out = layout.cropped(out)
    return out, (out, layout.cropped(logsum)) if softmax else ()


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
    layout = _Layout(messages)
    attr, weight, _ = messages.edges or (None, None, None)
    C, D, work, N = layout.C, layout.D, layout.work, layout.csr.num_nodes
    with_edges = with_edges and attr is not None
    # Without softmax ``out`` and ``logsum`` are not read.
    grad, out, logsum = (layout.padded(grad if t is None else t).contiguous() for t in (grad, out, logsum))
    transposed = grad.new_empty(0) if weight is None else F.pad(weight, (0, 0, 0, C - weight.shape[0])).contiguous()
    d_attr = torch.zeros(layout.csr.num_edges if with_edges else 0, C if layout.embedded else D, dtype=grad.dtype)
    # Several edges share a source, so each group of work items sums into its own rows.
    num_groups = max(1, min(torch.get_num_threads(), len(work.items)))
    dx = torch.zeros(num_groups, N, C, dtype=grad.dtype)
    dw = torch.zeros(len(work.items), D + 1, C, dtype=grad.dtype)
    d_factor = torch.zeros(len(work.items), LANES, dtype=grad.dtype)
    kernel = cpu_kernels.sum_backward(D, layout.embedded, temperature is not None, with_edges, layout.dtype)
    rest = (*layout.inputs(), address(work.segments.row), N, *addresses(transposed, grad, out, logsum))
    scalars = (int(not detach_weights), layout.eps, float(temperature or 0))

    def task(group: int) -> None:
        for n in range(len(work.items) * group // num_groups, len(work.items) * (group + 1) // num_groups):
            sums = addresses(dx[group], d_attr, dw[n], dw[n, D], d_factor[n])
            kernel(*work.bounds(n), *rest, *sums, *scalars)

    run_tasks([partial(task, group) for group in range(num_groups)])
    total = _total(dw)[:, : layout.num_channels]
    return (
        layout.cropped(dx[0] if num_groups == 1 else dx.sum(0)),
        d_attr[:, : attr.shape[1]] if with_edges and attr is not None else None,
        None if weight is None else total[:D].t().contiguous(),
        total[D].contiguous(),
        None if temperature is None or detach_weights else d_factor.sum(dtype=torch.float64).to(grad.dtype),
    )
