"""The aggregations in PyTorch alone, a bounded number of edges at a time: for any device, with nothing to compile.

Every backend has functions of these names and arguments, or leaves them to this one. ``NAME_forward`` returns [N, C]
sums and the tensors that ``NAME_backward`` needs besides the arguments; ``NAME_backward`` returns the gradients of x,
edges.attr (None unless it requires one), edges.weight, edges.bias and the factor.

Gradients are written out by hand, because a tape over the chunks would hold every message again. Where several edges
meet in one row, PyTorch's own ``index_add_`` and ``scatter_reduce_`` decide about the order of the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.ops.dispatch import compute_dtype
from zoo.ops.gen_aggregate.reference import POWER_MAX, POWER_MIN, Messages
from zoo.ops.work_items import Chunk, chunks

Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None]


def max_forward(messages: Messages, factor: None, *, needs_grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Largest messages, zero for empty rows; and [N, C] the winning edges, -1 where no gradient passes."""
    x, csr = messages.x, messages.csr
    # After the ReLU nothing is negative: -1 means that no edge has been seen yet.
    out = _full(x, -1.0)
    id_dtype = torch.int32 if csr.num_edges < 2**31 else torch.int64
    winner = torch.full(x.shape if needs_grad else (0, 0), -1, dtype=id_dtype, device=x.device)
    for chunk in chunks(csr, x.shape[1]):
        value = _preactivations(messages, chunk).relu_()
        best = chunk.scatter(value, "amax", -1.0)
        before = out[chunk.rows]
        # Of equal messages the first wins; NaN counts as larger than any number.
        better = ~(best <= before) & ~before.isnan()
        if needs_grad:
            # Edges are counted in floating point, exactly within a chunk: scattering floats is far faster.
            lost = torch.ne(value, best.index_select(0, chunk.row), out=torch.empty_like(value))
            count = torch.arange(len(value), device=x.device, dtype=value.dtype)[:, None]
            first = chunk.scatter(lost.mul_(len(value)).add_(count), "amin", len(value))
            # No gradient passes a closed ReLU, nor a NaN.
            through = best > 0
            edge = (first.where(through, 0).to(id_dtype) + chunk.edges.start).where(through, -1)
            winner[chunk.rows] = edge.where(better, winner[chunk.rows])
        out[chunk.rows] = best.where(better, before)
    return (out + messages.eps).masked_fill_(out < 0, 0), (winner,) if needs_grad else ()


def max_backward(grad: Tensor, messages: Messages, factor: None, winner: Tensor) -> Gradients:
    """Gradients of the largest messages; x is not read."""
    _, csr, edges, _ = messages
    weight = None if edges is None else edges.weight
    dx = torch.zeros_like(grad, memory_format=torch.contiguous_format)
    dw = None if weight is None else torch.zeros_like(weight, memory_format=torch.contiguous_format)
    won = winner >= 0
    passed, edge = grad.where(won, 0), winner.where(won, 0).long()
    if csr.num_edges:
        dx.scatter_add_(0, csr.col[edge].long(), passed)
        if dw is not None and edges is not None:
            for c in range(grad.shape[1]):
                # [N, D], the features of the edges that won channel c
                dw[c] = passed[:, c] @ edges.attr[edge[:, c]].to(grad.dtype)
    return dx, max_edge_gradient(grad, messages, winner), dw, passed.sum(0), None


def max_edge_gradient(grad: Tensor, messages: Messages, winner: Tensor) -> Tensor | None:
    """[E, D] gradient of the edge features under max: only winning edges get any."""
    if messages.edges is None or not messages.edges.attr.requires_grad:
        return None
    attr, weight, _ = messages.edges
    out = torch.zeros(attr.shape, dtype=grad.dtype, device=grad.device)
    if not out.numel():
        return out
    won = winner >= 0
    grad, edge = grad.where(won, 0), winner.where(won, 0).long()
    if weight is None:
        return out.scatter_add_(0, edge, grad)
    for c in range(grad.shape[1]):
        out.index_add_(0, edge[:, c], grad[:, c : c + 1] * weight[c])
    return out


def softmax_forward(messages: Messages, temperature: Tensor, *, needs_grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Sums of the messages weighted by softmax(temperature * message).

    The state is they themselves, and the logs of the sums of exponentials.
    """
    x = messages.x
    peak = _full(x, -torch.inf)
    total, out = _full(x, 0), _full(x, 0)
    for chunk in chunks(messages.csr, x.shape[1]):
        value = _preactivations(messages, chunk).relu_().add_(messages.eps)
        score = value * temperature
        before = peak[chunk.rows]
        top = torch.maximum(before, chunk.scatter(score, "amax", -torch.inf))
        # Sums so far are relative to the peak so far; rows without edges so far have nothing to shrink.
        shrink = (before - top).masked_fill_(before.isneginf(), 0).exp_()
        share = score.sub_(top.index_select(0, chunk.row)).exp_()
        peak[chunk.rows] = top
        total[chunk.rows] = (total[chunk.rows] * shrink).index_add_(0, chunk.row, share)
        out[chunk.rows] = (out[chunk.rows] * shrink).index_add_(0, chunk.row, value.mul_(share))
    empty = total == 0
    total.masked_fill_(empty, 1)
    mean = out / total
    return mean, (mean, peak.masked_fill_(empty, 0) + total.log())


def softmax_backward(
    grad: Tensor, messages: Messages, temperature: Tensor, out: Tensor, logsum: Tensor, *, detach_weights: bool
) -> Gradients:
    """Gradients of the weighted sums; with ``detach_weights`` as if the weights were constants."""
    sums = _Sums(messages)
    d_temperature = torch.zeros_like(temperature)
    for chunk in chunks(messages.csr, grad.shape[1]):
        pre = _preactivations(messages, chunk)
        value = pre.relu().add_(messages.eps)
        slope = (value * temperature).sub_(chunk.gather(logsum)).exp_().mul_(chunk.gather(grad))
        if not detach_weights:
            centered = value - chunk.gather(out)
            d_temperature += (slope * value).mul_(centered).sum()
            slope *= centered.mul_(temperature).add_(1)
        sums.add(chunk, slope, pre)
    return sums.gradients(None if detach_weights else d_temperature)


def sum_forward(messages: Messages, power: Tensor | None, *, needs_grad: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Sums of the messages, or of clamp(message, 1e-7, 10) ** power; zero for empty rows."""
    out = _full(messages.x, 0)
    for chunk in chunks(messages.csr, out.shape[1]):
        value = _preactivations(messages, chunk).relu_().add_(messages.eps)
        if power is not None:
            value.clamp_(POWER_MIN, POWER_MAX).pow_(power)
        out[chunk.rows].index_add_(0, chunk.row, value)
    return out, ()


def sum_backward(grad: Tensor, messages: Messages, power: Tensor | None) -> Gradients:
    """Gradients of the sums."""
    sums = _Sums(messages)
    d_power = None if power is None else torch.zeros_like(power)
    for chunk in chunks(messages.csr, grad.shape[1]):
        pre, slope = _preactivations(messages, chunk), chunk.gather(grad)
        if power is not None and d_power is not None:
            value = pre.relu().add_(messages.eps)
            clamped = value.clamp(POWER_MIN, POWER_MAX)
            raised = slope * clamped.pow(power)
            d_power += (raised * clamped.log()).sum()
            # The clamp lets a gradient through at its ends, as in PyTorch.
            slope = (power * raised / clamped).where(value == clamped, 0)
        sums.add(chunk, slope, pre)
    return sums.gradients(d_power)


def _full(like: Tensor, value: float) -> Tensor:
    """[N, C] in the precision of the sums."""
    return torch.full(like.shape, value, dtype=compute_dtype(like), device=like.device)


def _preactivations(messages: Messages, chunk: Chunk) -> Tensor:
    """[edges, C], the numbers before the ReLU."""
    dtype = compute_dtype(messages.x)
    value = messages.x.index_select(0, chunk.col).to(dtype)
    if messages.edges is None:
        return value
    attr, weight, bias = messages.edges
    attr = attr[chunk.edges].to(dtype)
    value = value.add_(attr) if weight is None else value.addmm_(attr, weight.t())
    return value if bias is None else value.add_(bias)


class _Sums:
    """Gradients of the parts of a message, summed chunk by chunk."""

    def __init__(self, messages: Messages) -> None:
        x, _, self.edges, _ = messages
        self.dx = _full(x, 0)
        self.db = torch.zeros(x.shape[1], dtype=self.dx.dtype, device=x.device)
        self.dw, self.d_attr = None, None
        if self.edges is not None:
            attr, weight, _ = self.edges
            self.dw = None if weight is None else torch.zeros_like(weight, memory_format=torch.contiguous_format)
            self.d_attr = torch.empty(attr.shape, dtype=self.dx.dtype, device=x.device) if attr.requires_grad else None

    def add(self, chunk: Chunk, slope: Tensor, pre: Tensor) -> None:
        """Add the gradients that follow from ``slope``, [edges, C] the gradient of the messages, through the ReLU."""
        slope = torch.ops.aten.threshold_backward(slope, pre, 0)
        self.dx.scatter_add_(0, chunk.col.long()[:, None].expand_as(slope), slope)
        self.db += slope.sum(0)
        if self.edges is None:
            return
        attr, weight, _ = self.edges
        if self.dw is not None:
            self.dw += (attr[chunk.edges].to(slope.dtype).t() @ slope).t()
        if self.d_attr is not None:
            self.d_attr[chunk.edges] = slope if weight is None else slope @ weight

    def gradients(self, factor: Tensor | None) -> Gradients:
        """The sums, and the gradient of the factor."""
        return self.dx, self.d_attr, self.dw, self.db, factor
