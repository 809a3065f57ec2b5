"""The aggregation on the CPU: lays tensors out for the Numba kernels and shares their work over threads.

Forward passes, and the gradients of max, come out the same whatever the number of threads; the gradients of the other
aggregations with respect to x are sums over threads and the same for the same number of threads.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.csr import CSR
from zoo.ops.gen_aggregate import cpu_kernels
from zoo.ops.gen_aggregate.chunked import max_edge_gradient
from zoo.ops.gen_aggregate.interface import Gradients, Messages
from zoo.ops.numba_kernels import addresses, kind_of
from zoo.ops.pieces import intervals, plan_of
from zoo.ops.tensors import address, unit_stride
from zoo.ops.threads import run_tasks
from zoo.ops.vectors import LANES

# Reading this many edges ahead hides the latency of memory; tables of x below a size stay in the cache anyway.
PREFETCH_EDGES = 32
PREFETCH_BYTES = 4 << 20
# Rows whose gradients with respect to the weights are summed in the tensors' own precision, then in float64.
ROWS_PER_SUM = 4096


class _Layout:
    """The tensors of one call as the kernels want them, kept alive while the kernels use their addresses."""

    def __init__(self, messages: Messages) -> None:
        x, csr, edge_attr, weight, bias, self.eps = messages
        self.csr, self.num_channels = csr, x.shape[1]
        self.plan = plan_of(csr)
        self.kind = kind_of(x)
        self.C = -(-self.num_channels // LANES) * LANES
        self.D = 0 if weight is None else weight.shape[1]
        self.embedded = edge_attr is not None and weight is None
        nothing = x.new_empty(0)
        self.x = self.padded(x)
        self.attr = nothing
        if edge_attr is not None:
            self.attr = self.padded(edge_attr) if self.embedded else unit_stride(edge_attr)
        self.weight = nothing if weight is None else self.padded(weight.t()).contiguous()  # [D, C]
        self.bias = x.new_zeros(self.C) if bias is None else F.pad(bias, (0, self.C - self.num_channels)).contiguous()
        self.chunks = intervals(self.plan.bounds)

    def padded(self, tensor: Tensor) -> Tensor:
        """[n, C], with zeros up to a multiple of eight channels."""
        missing = self.C - tensor.shape[1]
        return F.pad(tensor, (0, missing)) if missing else unit_stride(tensor)

    def empty(self, num_rows: int) -> Tensor:
        """[rows, C] for results."""
        return torch.empty(num_rows, self.C, dtype=self.x.dtype)

    def pieces(self, chunk: tuple[int, int]) -> tuple[int, ...]:
        """The first four arguments of a kernel."""
        return *addresses(self.plan.pieces.start, self.plan.pieces.end), *chunk

    def inputs(self) -> tuple[int, ...]:
        """The next ten: edges, node features, edge features, weight, bias, number of channels."""
        col = self.csr.col if self.plan.col is None else self.plan.col
        ahead = PREFETCH_EDGES if self.x.numel() * self.x.element_size() > PREFETCH_BYTES else 0
        nodes = (address(self.x), self.x.stride(0))
        edges = (address(self.attr), self.attr.stride(0))
        return (
            address(col),
            self.csr.num_edges - 1,
            ahead,
            *nodes,
            *edges,
            *addresses(self.weight, self.bias),
            self.C,
        )

    def cropped(self, tensor: Tensor) -> Tensor:
        """[pieces, padded C] to [N, C]."""
        shape = (self.csr.num_nodes, self.num_channels)
        # A fresh tensor, not a view of one: autograd would forbid to change a view in place.
        return tensor if tensor.shape == shape else tensor[: shape[0], : shape[1]].clone()


def max_forward(messages: Messages, *, with_arg: bool) -> tuple[Tensor, Tensor | None]:
    """See ``interface.Backend``."""
    layout = _Layout(messages)
    kernel = cpu_kernels.max_forward(layout.D, layout.embedded, with_arg, layout.kind)
    out = layout.empty(layout.plan.pieces.num_pieces)
    arg = torch.empty(out.shape if with_arg else (0, 0), dtype=torch.int32)
    rest = (*layout.inputs(), *addresses(out, arg), layout.eps)
    run_tasks([partial(kernel, *layout.pieces(chunk), *rest) for chunk in layout.chunks])
    for rows, parts in layout.plan.rounds:
        # The first of equals stays, and a NaN.
        better = ~(out[parts] <= out[rows]) & ~out[rows].isnan()
        out[rows] = out[parts].where(better, out[rows])
        if with_arg:
            arg[rows] = arg[parts].where(better, arg[rows])
    return layout.cropped(out), layout.cropped(arg) if with_arg else None


def max_backward(
    grad: Tensor, arg: Tensor, csr: CSR, edge_attr: Tensor | None, weight: Tensor | None, *, with_edges: bool
) -> Gradients:
    """See ``interface.Backend``."""
    N, C = grad.shape
    D = 0 if weight is None else weight.shape[1]
    kernel = cpu_kernels.max_backward(D, kind_of(grad))
    plan = plan_of(csr)
    col = csr.col if plan.col is None else plan.col
    grad, arg = grad.contiguous(), arg.to(torch.int32).contiguous()
    attr = grad.new_empty(0) if edge_attr is None or weight is None else unit_stride(edge_attr)
    dx = torch.zeros(N, C, dtype=grad.dtype)
    bounds = range(0, N + ROWS_PER_SUM, ROWS_PER_SUM)
    dw = torch.zeros(len(bounds), C, D, dtype=grad.dtype)
    db = torch.zeros(len(bounds), C, dtype=grad.dtype)

    # Each task owns a slice of the channels, so no two of them write to one place.
    def task(low: int, high: int) -> None:
        for n, first in enumerate(bounds):
            rows, goal = (first, min(first + ROWS_PER_SUM, N)), addresses(dx, dw[n], db[n])
            kernel(*rows, low, high, C, *addresses(col, grad, arg), address(attr), attr.stride(0), *goal)

    num_slices = max(1, min(torch.get_num_threads(), C // LANES))
    cuts = [C * s // num_slices for s in range(num_slices + 1)]
    run_tasks([partial(task, *cut) for cut in intervals(cuts)])
    d_edges = max_edge_gradient(grad, arg, edge_attr, weight) if with_edges and edge_attr is not None else None
    return Gradients(dx, d_edges, None if weight is None else _total(dw), _total(db), None)


def _total(parts: Tensor) -> Tensor:
    return parts.sum(0, dtype=torch.float64).to(parts.dtype)


def sum_forward(messages: Messages, power: Tensor | None) -> Tensor:
    """See ``interface.Backend``."""
    layout = _Layout(messages)
    kernel = cpu_kernels.sum_forward(layout.D, layout.embedded, power is not None, layout.kind)
    out = layout.empty(layout.plan.pieces.num_pieces)
    rest = (*layout.inputs(), address(out), layout.eps, 1.0 if power is None else float(power))
    run_tasks([partial(kernel, *layout.pieces(chunk), *rest) for chunk in layout.chunks])
    for rows, parts in layout.plan.rounds:
        out[rows] += out[parts]
    return layout.cropped(out)


def sum_backward(grad: Tensor, messages: Messages, power: Tensor | None, *, with_edges: bool) -> Gradients:
    """See ``interface.Backend``."""
    if power is None:
        return _sum_backward("sum", grad, messages, grad, grad, 1.0, attached=True, with_edges=with_edges)
    return _sum_backward("power", grad, messages, grad, grad, float(power), attached=True, with_edges=with_edges)


def softmax_forward(messages: Messages, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """See ``interface.Backend``."""
    layout = _Layout(messages)
    kernel = cpu_kernels.softmax_forward(layout.D, layout.embedded, layout.kind)
    pieces, chunks = layout.plan.pieces, layout.chunks
    out, logsum, peaks = layout.empty(pieces.num_pieces), layout.empty(pieces.num_pieces), layout.empty(len(chunks))
    rest, numbers = (*layout.inputs(), *addresses(out, logsum)), (layout.eps, float(temperature))
    tasks = zip(chunks, peaks, strict=True)
    run_tasks([partial(kernel, *layout.pieces(chunk), *rest, address(peak), *numbers) for chunk, peak in tasks])
    for rows, parts in layout.plan.rounds:
        both = torch.logaddexp(logsum[rows], logsum[parts])
        out[rows] = out[rows] * (logsum[rows] - both).exp() + out[parts] * (logsum[parts] - both).exp()
        logsum[rows] = both
    return layout.cropped(out), layout.cropped(logsum)


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
    factor, attached = float(temperature), not detach_weights
    return _sum_backward("softmax", grad, messages, out, logsum, factor, attached=attached, with_edges=with_edges)


def _sum_backward(
    form: str,
    grad: Tensor,
    messages: Messages,
    out: Tensor,
    logsum: Tensor,
    factor: float,
    *,
    attached: bool,
    with_edges: bool,
) -> Gradients:
    layout = _Layout(messages)
    edge_attr, weight, C, D = messages.edge_attr, messages.weight, layout.C, layout.D
    with_edges = with_edges and edge_attr is not None
    kernel = cpu_kernels.sum_backward(form, D, layout.embedded, with_edges, layout.kind)
    pieces, chunks, N = layout.plan.pieces, layout.chunks, layout.csr.num_nodes
    grad, out, logsum = (layout.padded(t).contiguous() for t in (grad, out, logsum))
    transposed = grad.new_empty(0) if weight is None else F.pad(weight, (0, 0, 0, C - weight.shape[0])).contiguous()
    attr_channels = 0 if edge_attr is None else C if layout.embedded else D
    d_edges = torch.empty(layout.csr.num_edges if with_edges else 0, attr_channels, dtype=grad.dtype)
    if not layout.embedded:
        d_edges.zero_()

    rest = (address(pieces.target), N, *layout.inputs(), *addresses(transposed, grad, out, logsum))
    # Several edges share a source, so each group of chunks sums into rows of its own.
    num_groups = max(1, min(torch.get_num_threads(), len(chunks)))
    dx = torch.zeros(num_groups, N, C, dtype=grad.dtype)
    dw = torch.zeros(len(chunks), D + 1, C, dtype=grad.dtype)
    d_factor = torch.zeros(len(chunks), LANES, dtype=grad.dtype)

    def task(group: int) -> None:
        for n in range(len(chunks) * group // num_groups, len(chunks) * (group + 1) // num_groups):
            goal = addresses(dx[group], d_edges, dw[n], dw[n, D], d_factor[n])
            kernel(*layout.pieces(chunks[n]), *rest, *goal, int(attached), layout.eps, factor)

    run_tasks([partial(task, group) for group in range(num_groups)])
    sums = _total(dw)[:, : layout.num_channels]
    return Gradients(
        layout.cropped(dx[0] if num_groups == 1 else dx.sum(0)),
        d_edges[:, : edge_attr.shape[1]] if with_edges and edge_attr is not None else None,
        None if weight is None else sums[:D].t().contiguous(),
        sums[D].contiguous(),
        None if form == "sum" or not attached else d_factor.sum(dtype=torch.float64).to(grad.dtype),
    )
