"""The aggregations as operators that PyTorch knows by name, for ``torch.compile`` and fake tensors.

Plain eager calls do not come here, because calling a registered operator costs more than the kernel of a small part.
The backend is chosen when an operator runs, so a compiled graph holds on every machine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.ops.backend import backend_for
from zoo.ops.csr import CSR, check_csr
from zoo.ops.gen_aggregate.functions import needs_tape
from zoo.ops.gen_aggregate.interface import Backend, Gradients, Messages, load_backend

_MESSAGES = "Tensor x, Tensor rowptr, Tensor col, Tensor? edge_attr, Tensor? weight, Tensor? bias, float eps"


def _backend(x: Tensor) -> Backend:
    name = backend_for(x.device)[0]
    # The definition needs no operator of its own; a graph that was compiled for another backend stays exact.
    return load_backend("chunked" if name == "reference" else name)


def _messages(x: Tensor, rowptr: Tensor, col: Tensor, *rest: Any) -> Messages:
    csr = CSR(rowptr, col)
    check_csr(csr)
    return Messages(x, csr, *rest)


def _fake_rows(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _flat(grads: Gradients, like: Tensor) -> tuple[Tensor, ...]:
    # An operator returns tensors only: what was not asked for is an empty one.
    return tuple(like.new_empty(0) if grad is None else grad for grad in grads)


@torch.library.custom_op("zoo::gen_max", mutates_args=(), schema=f"({_MESSAGES}) -> Tensor")
def _max(*args: Any) -> Tensor:
    return _backend(args[0]).max_forward(_messages(*args), with_arg=False)[0]


@torch.library.custom_op("zoo::gen_max_arg", mutates_args=(), schema=f"({_MESSAGES}) -> (Tensor, Tensor)")
def _max_arg(*args: Any) -> tuple[Tensor, Tensor]:
    out, arg = _backend(args[0]).max_forward(_messages(*args), with_arg=True)
    if arg is None:
        raise AssertionError("max_forward(with_arg=True) returned no winners")
    # Backends may count edges in 32 or 64 bits; a graph is compiled for one of them.
    return out, arg.to(torch.int64)


@torch.library.custom_op(
    "zoo::gen_max_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor arg, Tensor rowptr, Tensor col, Tensor? edge_attr, Tensor? weight, bool with_edges)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _max_backward(
    grad: Tensor, arg: Tensor, rowptr: Tensor, col: Tensor, edge_attr: Any, weight: Any, with_edges: bool
) -> tuple[Tensor, ...]:
    backend, csr = _backend(grad), CSR(rowptr, col)
    return _flat(backend.max_backward(grad, arg, csr, edge_attr, weight, with_edges=with_edges), grad)


@torch.library.custom_op("zoo::gen_sum", mutates_args=(), schema=f"({_MESSAGES}, Tensor? power) -> Tensor")
def _sum(*args: Any) -> Tensor:
    return _backend(args[0]).sum_forward(_messages(*args[:-1]), args[-1])


@torch.library.custom_op(
    "zoo::gen_sum_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_MESSAGES}, Tensor? power, bool with_edges) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _sum_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *rest, power, with_edges = args
    return _flat(_backend(grad).sum_backward(grad, _messages(*rest), power, with_edges=with_edges), grad)


@torch.library.custom_op(
    "zoo::gen_softmax",
    mutates_args=(),
    schema=f"({_MESSAGES}, Tensor temperature, bool detach_weights) -> (Tensor, Tensor)",
)
def _softmax(*args: Any) -> tuple[Tensor, Tensor]:
    *rest, temperature, _ = args
    return _backend(args[0]).softmax_forward(_messages(*rest), temperature)


@torch.library.custom_op(
    "zoo::gen_softmax_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor logsum, {_MESSAGES}, Tensor temperature, bool detach_weights,"
    " bool with_edges) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _softmax_backward(grad: Tensor, out: Tensor, logsum: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *rest, temperature, detach_weights, with_edges = args
    grads = _backend(grad).softmax_backward(
        grad, out, logsum, _messages(*rest), temperature, detach_weights=detach_weights, with_edges=with_edges
    )
    return _flat(grads, grad)


@_max.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return _fake_rows(x)


@_max_arg.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _fake_rows(x), torch.empty(x.shape, dtype=torch.int64, device=x.device)


@_sum.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return _fake_rows(x)


@_softmax.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _fake_rows(x), _fake_rows(x)


def _fake_gradients(
    grad: Tensor, edge_attr: Tensor | None, weight: Tensor | None, factor: Tensor | None, with_edges: bool
) -> tuple[Tensor, ...]:
    wanted = edge_attr if with_edges else None
    dx, d_edges, dw, d_factor = (grad.new_empty((0,) if t is None else t.shape) for t in (grad, wanted, weight, factor))
    return dx, d_edges, dw, grad.new_empty(grad.shape[1]), d_factor


@_max_backward.register_fake
def _(
    grad: Tensor, arg: Tensor, rowptr: Tensor, col: Tensor, edge_attr: Any, weight: Any, with_edges: bool
) -> tuple[Tensor, ...]:
    return _fake_gradients(grad, edge_attr, weight, None, with_edges)


@_sum_backward.register_fake
def _(
    grad: Tensor, x: Tensor, rowptr: Tensor, col: Tensor, edge_attr: Any, weight: Any, *rest: Any
) -> tuple[Tensor, ...]:
    _, _, power, with_edges = rest
    return _fake_gradients(grad, edge_attr, weight, power, with_edges)


@_softmax_backward.register_fake
def _(grad: Tensor, out: Tensor, logsum: Tensor, *args: Any) -> tuple[Tensor, ...]:
    _, _, _, edge_attr, weight, _, _, temperature, detach_weights, with_edges = args
    return _fake_gradients(grad, edge_attr, weight, None if detach_weights else temperature, with_edges)


def _save(ctx: Any, tensors: tuple[Tensor | None, ...], others: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*tensors)
    ctx.others = others


def _in_order(ctx: Any, grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """One entry per argument of a forward operator: x, rowptr, col, edge_attr, weight, bias, eps, factor, ..."""
    dx, d_edges, dw, db, d_factor = grads
    wanted = ctx.needs_input_grad
    ordered = (dx, None, None, d_edges, dw, db, None, d_factor, None)[: len(wanted)]
    return tuple(grad if needed else None for grad, needed in zip(ordered, wanted, strict=True))


def _save_max(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, rowptr, col, edge_attr, weight, _, _ = inputs
    _save(ctx, (output[1], rowptr, col, edge_attr, weight), ())


def _differentiate_max(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _in_order(ctx, _max_backward(grad, *ctx.saved_tensors, ctx.needs_input_grad[3]))


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, eps, power = inputs
    _save(ctx, (*tensors, power), (eps,))


def _differentiate_sum(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, power = ctx.saved_tensors
    return _in_order(ctx, _sum_backward(grad, *tensors, *ctx.others, power, ctx.needs_input_grad[3]))


def _save_softmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, eps, temperature, detach_weights = inputs
    _save(ctx, (*output, *tensors, temperature), (eps, detach_weights))


def _differentiate_softmax(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    out, logsum, *tensors, temperature = ctx.saved_tensors
    eps, detach_weights = ctx.others
    flags = (temperature, detach_weights, ctx.needs_input_grad[3])
    return _in_order(ctx, _softmax_backward(grad, out, logsum, *tensors, eps, *flags))


_max_arg.register_autograd(_differentiate_max, setup_context=_save_max)
_sum.register_autograd(_differentiate_sum, setup_context=_save_sum)
_softmax.register_autograd(_differentiate_softmax, setup_context=_save_softmax)


def max_aggregate(messages: Messages) -> Tensor:
    """[N, C] largest messages."""
    x, (rowptr, col), *rest = messages
    if needs_tape(messages, None):
        return _first(_max_arg(x, rowptr, col, *rest))
    return _first((_max(x, rowptr, col, *rest),))


def sum_aggregate(messages: Messages, power: Tensor | None) -> Tensor:
    """[N, C] sums of the messages or of their powers."""
    x, (rowptr, col), *rest = messages
    return _first((_sum(x, rowptr, col, *rest, power),))


def softmax_aggregate(messages: Messages, temperature: Tensor, *, detach_weights: bool) -> Tensor:
    """[N, C] softmax-weighted means."""
    x, (rowptr, col), *rest = messages
    return _first(_softmax(x, rowptr, col, *rest, temperature, detach_weights))


def _first(outputs: tuple[Tensor, ...]) -> Tensor:
    return outputs[0]
