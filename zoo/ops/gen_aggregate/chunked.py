"""The aggregation in PyTorch alone, a bounded number of edges at a time: for any device, with nothing to compile.

Gradients are written out by hand, because a tape over the chunks would hold every message again. Where several edges
meet in one row, PyTorch's own ``index_add_`` and ``scatter_reduce_`` decide about the order of the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.ops.csr import CSR
from zoo.ops.edge_chunks import Chunk, chunks, sum_dtype
from zoo.ops.gen_aggregate.interface import Gradients, Messages
from zoo.ops.gen_aggregate.reference import POWER_MAX, POWER_MIN


def _full(like: Tensor, value: float) -> Tensor:
    """[N, C] of the type in which sums are kept."""
    return torch.full(like.shape, value, dtype=sum_dtype(like), device=like.device)


def _arguments(messages: Messages, chunk: Chunk) -> Tensor:
    """[edges, C], what the ReLU is applied to."""
    dtype = sum_dtype(messages.x)
    value = messages.x.index_select(0, chunk.col).to(dtype)
    if messages.edge_attr is not None:
        attr = messages.edge_attr[chunk.edges].to(dtype)
        if messages.weight is None:
            value += attr
        else:
            value.addmm_(attr, messages.weight.t())
    return value if messages.bias is None else value.add_(messages.bias)


def max_forward(messages: Messages, *, with_arg: bool) -> tuple[Tensor, Tensor | None]:
    """See ``interface.Backend``."""
    x, csr = messages.x, messages.csr
    # After the ReLU nothing is negative: -1 means that no edge came by yet.
    out = _full(x, -1.0)
    id_dtype = torch.int32 if csr.num_edges < 2**31 else torch.int64
    arg = torch.full(x.shape if with_arg else (0, 0), -1, dtype=id_dtype, device=x.device)
    for chunk in chunks(csr, x.shape[1]):
        value = _arguments(messages, chunk).relu_()
        best = chunk.scatter(value, "amax", -1.0)
        before = out[chunk.rows]
        # The first of equals stays; NaN is better than any number.
        better = ~(best <= before) & ~before.isnan()
        if with_arg:
            # Edges are counted in floating point, exactly within a chunk: scattering floats is far faster.
            lost = torch.ne(value, best.index_select(0, chunk.row), out=torch.empty_like(value))
            count = torch.arange(len(value), device=x.device, dtype=value.dtype)[:, None]
            first = chunk.scatter(lost.mul_(len(value)).add_(count), "amin", len(value))
            # No gradient passes a closed ReLU, nor a NaN.
            through = best > 0
            edge = (first.where(through, 0).to(id_dtype) + chunk.edges.start).where(through, -1)
            arg[chunk.rows] = edge.where(better, arg[chunk.rows])
        out[chunk.rows] = best.where(better, before)
    return (out + messages.eps).masked_fill_(out < 0, 0), arg if with_arg else None


def max_backward(
    grad: Tensor, arg: Tensor, csr: CSR, edge_attr: Tensor | None, weight: Tensor | None, *, with_edges: bool
) -> Gradients:
    """See ``interface.Backend``."""
    dx = torch.zeros_like(grad, memory_format=torch.contiguous_format)
    dw = None if weight is None else torch.zeros_like(weight, memory_format=torch.contiguous_format)
    won = arg >= 0
    grad, winner = grad.where(won, 0), arg.where(won, 0).long()
    if csr.num_edges:
        dx.scatter_add_(0, csr.col[winner].long(), grad)
        if dw is not None and edge_attr is not None:
            for c in range(grad.shape[1]):
                # [N, D], the features of the edges that won channel c
                dw[c] = grad[:, c] @ edge_attr[winner[:, c]].to(grad.dtype)
    d_edges = max_edge_gradient(grad, arg, edge_attr, weight) if with_edges and edge_attr is not None else None
    return Gradients(dx, d_edges, dw, grad.sum(0), None)


def max_edge_gradient(grad: Tensor, arg: Tensor, edge_attr: Tensor, weight: Tensor | None) -> Tensor:
    """[E, D] gradient of the edge features under max: only winning edges get any."""
    out = torch.zeros(edge_attr.shape, dtype=grad.dtype, device=grad.device)
    if not out.numel():
        return out
    won = arg >= 0
    grad, winner = grad.where(won, 0), arg.where(won, 0).long()
    if weight is None:
        return out.scatter_add_(0, winner, grad)
    for c in range(grad.shape[1]):
        out.index_add_(0, winner[:, c], grad[:, c : c + 1] * weight[c])
    return out


def sum_forward(messages: Messages, power: Tensor | None) -> Tensor:
    """See ``interface.Backend``."""
    out = _full(messages.x, 0)
    for chunk in chunks(messages.csr, out.shape[1]):
        value = _arguments(messages, chunk).relu_().add_(messages.eps)
        if power is not None:
            value.clamp_(POWER_MIN, POWER_MAX).pow_(power)
        out[chunk.rows].index_add_(0, chunk.row, value)
    return out


def sum_backward(grad: Tensor, messages: Messages, power: Tensor | None, *, with_edges: bool) -> Gradients:
    """See ``interface.Backend``."""
    sums = _Sums(messages, with_edges=with_edges)
    d_power = None if power is None else torch.zeros_like(power)
    for chunk in chunks(messages.csr, grad.shape[1]):
        argument = _arguments(messages, chunk)
        slope = chunk.gather(grad)
        if power is not None and d_power is not None:
            value = argument.relu().add_(messages.eps)
            clamped = value.clamp(POWER_MIN, POWER_MAX)
            raised = slope * clamped.pow(power)
            d_power += (raised * clamped.log()).sum()
            # The clamp lets a gradient through at its ends, as in PyTorch.
            slope = (power * raised / clamped).where(value == clamped, 0)
        sums.add(chunk, slope, argument)
    return sums.gradients(d_power)


def softmax_forward(messages: Messages, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """See ``interface.Backend``."""
    x = messages.x
    peak = _full(x, -torch.inf)
    total, out = _full(x, 0), _full(x, 0)
    for chunk in chunks(messages.csr, x.shape[1]):
        value = _arguments(messages, chunk).relu_().add_(messages.eps)
        score = value * temperature
        before = peak[chunk.rows]
        top = torch.maximum(before, chunk.scatter(score, "amax", -torch.inf))
        # What was summed so far is relative to the peak so far; rows without edges so far have nothing to shrink.
        shrink = (before - top).masked_fill_(before.isneginf(), 0).exp_()
        share = score.sub_(top.index_select(0, chunk.row)).exp_()
        peak[chunk.rows] = top
        total[chunk.rows] = (total[chunk.rows] * shrink).index_add_(0, chunk.row, share)
        out[chunk.rows] = (out[chunk.rows] * shrink).index_add_(0, chunk.row, value.mul_(share))
    empty = total == 0
    total.masked_fill_(empty, 1)
    return out / total, peak.masked_fill_(empty, 0) + total.log()


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
    sums = _Sums(messages, with_edges=with_edges)
    d_temperature = torch.zeros_like(temperature)
    for chunk in chunks(messages.csr, grad.shape[1]):
        argument = _arguments(messages, chunk)
        value = argument.relu().add_(messages.eps)
        slope = (value * temperature).sub_(chunk.gather(logsum)).exp_().mul_(chunk.gather(grad))
        if not detach_weights:
            lead = value - chunk.gather(out)
            d_temperature += (slope * value).mul_(lead).sum()
            slope *= lead.mul_(temperature).add_(1)
        sums.add(chunk, slope, argument)
    return sums.gradients(None if detach_weights else d_temperature)


class _Sums:
    """Gradients with respect to the parts of a message, summed chunk by chunk."""

    def __init__(self, messages: Messages, *, with_edges: bool) -> None:
        x, _, edge_attr, weight, _, _ = messages
        self.messages = messages
        self.x = _full(x, 0)
        self.bias = torch.zeros(x.shape[1], dtype=self.x.dtype, device=x.device)
        self.weight = None if weight is None else torch.zeros_like(weight, memory_format=torch.contiguous_format)
        self.edges = None
        if with_edges and edge_attr is not None:
            self.edges = torch.empty(edge_attr.shape, dtype=self.x.dtype, device=x.device)

    def add(self, chunk: Chunk, slope: Tensor, argument: Tensor) -> None:
        """Add what ``slope``, [edges, C] the gradient of the messages, gives rise to through the ReLU."""
        edge_attr, weight = self.messages.edge_attr, self.messages.weight
        slope = torch.ops.aten.threshold_backward(slope, argument, 0)
        self.x.scatter_add_(0, chunk.col.long()[:, None].expand_as(slope), slope)
        self.bias += slope.sum(0)
        if self.weight is not None and edge_attr is not None:
            self.weight += (edge_attr[chunk.edges].to(slope.dtype).t() @ slope).t()
        if self.edges is not None:
            self.edges[chunk.edges] = slope if weight is None else slope @ weight

    def gradients(self, factor: Tensor | None) -> Gradients:
        return Gradients(self.x, self.edges, self.weight, self.bias, factor)
