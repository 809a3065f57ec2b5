"""The weighted sum under autograd: what a backend computes, and how gradients follow from it."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.autograd import Function

from zoo.ops.autograd import exact_backward
from zoo.ops.csr import CSR, csr_from_edge_index, remembered
from zoo.ops.segment import edge_targets


class Backend(Protocol):
    """The functions of chunked.py, cpu.py and cuda.py, without autograd."""

    def weighted_sum(self, x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
        """[N, H, C] sums of weight[e, h] * x[col[e], h] over the edges of each row; None, with H = 1: weights of 1."""

    def edge_products(self, grad: Tensor, x: Tensor, csr: CSR) -> Tensor:
        """[E, H] inner products over the channels of grad[i, h] and x[col[e], h] for the edges e of each row i."""


# Imported on first use: a backend may need what is not installed, and costs time to import.
_MODULES = {
    "chunked": "zoo.ops.weighted_sum.chunked",
    "numba": "zoo.ops.weighted_sum.cpu",
    "triton": "zoo.ops.weighted_sum.cuda",
}


def load_backend(name: str) -> Backend:
    """The module of that name, which has the functions of ``Backend``."""
    return cast(Backend, importlib.import_module(_MODULES[name]))


class Transposed(NamedTuple):
    """The same edges grouped by their source node.

    Attributes:
        csr: rows of sources; ``col`` holds the targets.
        perm: [E], the position in the original rows of each edge.
    """

    csr: CSR
    perm: Tensor


def transposed(csr: CSR) -> Transposed:
    """The transpose of a CSR, built once."""
    return remembered(csr, "transposed", _transpose)


def _transpose(csr: CSR) -> Transposed:
    rows, perm = csr_from_edge_index(torch.stack([edge_targets(csr).to(csr.col.dtype), csr.col]), csr.num_nodes)
    return Transposed(rows, perm.to(torch.int32) if csr.num_edges < 2**31 else perm)


def gradient_of_x(backend: Backend, grad: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """[N, H, C]: the same weighted sum, of gradients along the reversed edges."""
    rows, perm = transposed(csr)
    return backend.weighted_sum(grad, rows, None if weight is None else weight.index_select(0, perm))


class WeightedSum(Function):
    """[N, H, C] weighted sums; keeps x for the gradient of the weights only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rowptr: Tensor, col: Tensor, weight: Tensor | None, backend: Backend) -> Tensor:
        """See ``Backend.weighted_sum``."""
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, rowptr, col, weight)
        ctx.backend = backend
        return backend.weighted_sum(x, CSR(rowptr, col), weight)

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """One entry per argument of forward."""
        x, rowptr, col, weight = ctx.saved_tensors
        csr = CSR(rowptr, col)
        dx = gradient_of_x(ctx.backend, grad, csr, weight) if ctx.needs_input_grad[0] else None
        return dx, None, None, None if x is None else ctx.backend.edge_products(grad, x, csr), None


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None, backend: Backend) -> Tensor:
    """[N, H, C] weighted sums: with a tape if some tensor asks for it, else without."""
    if torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad)):
        return cast(Tensor, WeightedSum.apply(x, *csr, weight, backend))  # type: ignore[no-untyped-call]
    return backend.weighted_sum(x, csr, weight)
