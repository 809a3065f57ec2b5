"""The weighted sum as operators that PyTorch knows by name, for ``torch.compile`` and fake tensors."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from zoo.ops.backend import backend_for
from zoo.ops.csr import CSR, check_csr
from zoo.ops.weighted_sum.functions import Backend, gradient_of_x, load_backend


def _backend(x: Tensor) -> Backend:
    name = backend_for(x.device)[0]
    # The definition needs no operator of its own; a graph that was compiled for another backend stays exact.
    return load_backend("chunked" if name == "reference" else name)


@torch.library.custom_op(
    "zoo::weighted_sum", mutates_args=(), schema="(Tensor x, Tensor rowptr, Tensor col, Tensor? weight) -> Tensor"
)
def _sum(x: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor | None) -> Tensor:
    csr = CSR(rowptr, col)
    check_csr(csr)
    return _backend(x).weighted_sum(x, csr, weight)


@torch.library.custom_op(
    "zoo::weighted_sum_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor rowptr, Tensor col, Tensor? weight) -> Tensor",
)
def _backward(grad: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor | None) -> Tensor:
    return gradient_of_x(_backend(grad), grad, CSR(rowptr, col), weight)


@torch.library.custom_op(
    "zoo::edge_products", mutates_args=(), schema="(Tensor grad, Tensor x, Tensor rowptr, Tensor col) -> Tensor"
)
def _products(grad: Tensor, x: Tensor, rowptr: Tensor, col: Tensor) -> Tensor:
    return _backend(grad).edge_products(grad, x, CSR(rowptr, col))


@_sum.register_fake
def _(x: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor | None) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty(x.shape, dtype=dtype, device=x.device)


@_backward.register_fake
def _(grad: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor | None) -> Tensor:
    return grad.new_empty(grad.shape)


@_products.register_fake
def _(grad: Tensor, x: Tensor, rowptr: Tensor, col: Tensor) -> Tensor:
    return grad.new_empty(col.shape[0], grad.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *rest = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, *rest)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, rowptr, col, weight = ctx.saved_tensors
    dx = _backward(grad, rowptr, col, weight) if ctx.needs_input_grad[0] else None
    return dx, None, None, None if x is None else _products(grad, x, rowptr, col)


torch.library.register_autograd(_sum, _differentiate, setup_context=_save)


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """[N, H, C] weighted sums."""
    return cast(Tensor, _sum(x, *csr, weight))
