"""The aggregations under autograd: each saves what its backward pass needs and leaves the arithmetic to a backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from zoo.ops.autograd import exact_backward
from zoo.ops.csr import CSR
from zoo.ops.gen_aggregate.interface import Backend, Gradients, Messages


class MaxAggregate(Function):
    """[N, C] largest messages; keeps only which edge won."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rowptr: Tensor,
        col: Tensor,
        edge_attr: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        backend: Backend,
    ) -> Tensor:
        """See ``Backend.max_forward``."""
        messages = Messages(x, CSR(rowptr, col), edge_attr, weight, bias, eps)
        out, arg = backend.max_forward(messages, with_arg=True)
        ctx.save_for_backward(arg, rowptr, col, edge_attr, weight)
        ctx.backend = backend
        return out

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See ``Backend.max_backward``."""
        arg, rowptr, col, edge_attr, weight = ctx.saved_tensors
        with_edges = ctx.needs_input_grad[3]
        grads = ctx.backend.max_backward(grad, arg, CSR(rowptr, col), edge_attr, weight, with_edges=with_edges)
        return _in_order(ctx, grads)


class SumAggregate(Function):
    """[N, C] sums of the messages or of their powers; messages are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rowptr: Tensor,
        col: Tensor,
        edge_attr: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        power: Tensor | None,
        eps: float,
        backend: Backend,
    ) -> Tensor:
        """See ``Backend.sum_forward``."""
        ctx.save_for_backward(x, rowptr, col, edge_attr, weight, bias, power)
        ctx.eps, ctx.backend = eps, backend
        return backend.sum_forward(Messages(x, CSR(rowptr, col), edge_attr, weight, bias, eps), power)

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See ``Backend.sum_backward``."""
        x, rowptr, col, edge_attr, weight, bias, power = ctx.saved_tensors
        messages = Messages(x, CSR(rowptr, col), edge_attr, weight, bias, ctx.eps)
        grads = ctx.backend.sum_backward(grad, messages, power, with_edges=ctx.needs_input_grad[3])
        return _in_order(ctx, grads)


class SoftmaxAggregate(Function):
    """[N, C] softmax-weighted means; keeps them and the logs of the sums, but no weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rowptr: Tensor,
        col: Tensor,
        edge_attr: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        temperature: Tensor,
        detach_weights: bool,
        eps: float,
        backend: Backend,
    ) -> Tensor:
        """See ``Backend.softmax_forward``."""
        messages = Messages(x, CSR(rowptr, col), edge_attr, weight, bias, eps)
        out, logsum = backend.softmax_forward(messages, temperature)
        ctx.save_for_backward(x, rowptr, col, edge_attr, weight, bias, temperature, out, logsum)
        ctx.detach_weights, ctx.eps, ctx.backend = detach_weights, eps, backend
        return out

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See ``Backend.softmax_backward``."""
        x, rowptr, col, edge_attr, weight, bias, temperature, out, logsum = ctx.saved_tensors
        grads = ctx.backend.softmax_backward(
            grad,
            out,
            logsum,
            Messages(x, CSR(rowptr, col), edge_attr, weight, bias, ctx.eps),
            temperature,
            detach_weights=ctx.detach_weights,
            with_edges=ctx.needs_input_grad[3],
        )
        return _in_order(ctx, grads)


def _in_order(ctx: Any, grads: Gradients) -> tuple[Tensor | None, ...]:
    """One entry per argument of forward: x, rowptr, col, edge_attr, weight, bias, factor, then what is no tensor."""
    ordered = (grads.x, None, None, grads.edge_attr, grads.weight, grads.bias, grads.factor)
    wanted = ctx.needs_input_grad
    padded = ordered[: len(wanted)] + (None,) * (len(wanted) - len(ordered))
    return tuple(grad if needed else None for grad, needed in zip(padded, wanted, strict=True))


class Aggregations:
    """The three aggregations as calls of one backend: with a tape if some tensor asks for it, else without."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def max_aggregate(self, messages: Messages) -> Tensor:
        """[N, C] largest messages."""
        if not needs_tape(messages, None):
            return self._backend.max_forward(messages, with_arg=False)[0]
        x, (rowptr, col), *rest, eps = messages
        return _apply(MaxAggregate, x, rowptr, col, *rest, eps, self._backend)

    def sum_aggregate(self, messages: Messages, power: Tensor | None) -> Tensor:
        """[N, C] sums of the messages or of their powers."""
        if not needs_tape(messages, power):
            return self._backend.sum_forward(messages, power)
        x, (rowptr, col), *rest, eps = messages
        return _apply(SumAggregate, x, rowptr, col, *rest, power, eps, self._backend)

    def softmax_aggregate(self, messages: Messages, temperature: Tensor, *, detach_weights: bool) -> Tensor:
        """[N, C] softmax-weighted means."""
        if not needs_tape(messages, temperature):
            return self._backend.softmax_forward(messages, temperature)[0]
        x, (rowptr, col), *rest, eps = messages
        return _apply(SoftmaxAggregate, x, rowptr, col, *rest, temperature, detach_weights, eps, self._backend)


def needs_tape(messages: Messages, factor: Tensor | None) -> bool:
    """Whether a gradient may be asked for."""
    if not torch.is_grad_enabled():
        return False
    tensors = (messages.x, messages.edge_attr, messages.weight, messages.bias, factor)
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _apply(function: Any, *args: Any) -> Tensor:
    out: Tensor = function.apply(*args)
    return out
