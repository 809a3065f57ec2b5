"""Weighted sums over the incoming edges of every node in one pass over the rows, never an [E, C] tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from zoo.errors import DataError
from zoo.ops.csr import CSR, cached, check_csr, csr_from_edge_index, edge_targets
from zoo.ops.dispatch import (
    check_floats,
    compute_dtype,
    exact_backward,
    kernel_function,
    needs_grad,
    operator_backend,
    plain,
    refuse_transforms,
    uncompiled_training,
)
from zoo.ops.weighted_sum import reference

__all__ = ["weighted_sum"]


@uncompiled_training
def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None = None) -> Tensor:
    """Sum over the incoming edges e = (j, i) of every node i: out_i = sum_e weight_e * x_j.

    Args:
        x: [N, C] node features, or [N, H, C] for H heads; rows may lie apart, as in a slice of the columns.
        csr: incoming edges of each node.
        weight: [E], or [E, H] for H heads, in the order of ``csr.col``; None: every edge counts once.

    Returns:
        The shape and dtype of x; half precision is summed in float32. A node without incoming edges gets zeros.
        Differentiable once in x and weight; any number of times by the backend ``reference``.

    Raises:
        DataError: if shapes, devices or dtypes do not fit together, or the CSR is damaged.
        BackendError: if the backend asked for cannot serve these tensors.
    """
    x, weight = plain(x), None if weight is None else plain(weight)
    _check_arguments(x, csr, weight)
    check_csr(csr)
    dtype = compute_dtype(x)
    # [N, H, C] and [E, H] from here on; heads differ by their weights alone.
    heads = x if weight is not None and x.dim() == 3 else x.flatten(1)[:, None]
    if weight is not None:
        weight = weight.to(dtype).view(csr.num_edges, heads.shape[1])
    # On an accelerator half precision is read as it is.
    if x.device.type == "cpu":
        heads = heads.to(dtype)
    name = operator_backend(x.device)
    with torch.autocast(x.device.type, enabled=False):
        if name == "reference":
            return reference.weighted_sum(heads, csr, weight).view(x.shape).to(x.dtype)
        refuse_transforms("weighted_sum", name)
        if needs_grad(heads, weight):
            out: Tensor = _WeightedSum.apply(heads, weight, csr, name)  # type: ignore[no-untyped-call]
        else:
            out = kernel_function("weighted_sum", name, "weighted_sum")(heads, csr, weight)
        return out.view(x.shape).to(x.dtype)


class _WeightedSum(Function):
    """[N, H, C] weighted sums; keeps x for the gradient of the weights only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, csr: CSR, backend: str) -> Tensor:
        """See ``chunked.weighted_sum``."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, *csr)
        ctx.backend = backend
        out: Tensor = kernel_function("weighted_sum", backend, "weighted_sum")(x, csr, weight)
        return out

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, the same sum along the reversed edges, and of the weights, products over the channels."""
        x, weight, rowptr, col = ctx.saved_tensors
        csr, dx, dw = CSR(rowptr, col), None, None
        if ctx.needs_input_grad[0]:
            rows, perm = cached(csr, "transposed", _transpose)
            weight = None if weight is None else weight.index_select(0, perm)
            dx = kernel_function("weighted_sum", ctx.backend, "weighted_sum")(grad, rows, weight)
        if x is not None:
            dw = kernel_function("weighted_sum", ctx.backend, "edge_products")(grad, x, csr)
        return dx, dw, None, None


def _transpose(csr: CSR) -> tuple[CSR, Tensor]:
    """The same edges grouped by their source node, and [E] their positions in the original rows."""
    rows, perm = csr_from_edge_index(torch.stack([edge_targets(csr).to(csr.col.dtype), csr.col]), csr.num_nodes)
    return rows, perm.to(torch.int32) if csr.num_edges < 2**31 else perm


def _check_arguments(x: Tensor, csr: CSR, weight: Tensor | None) -> None:
    if x.dim() not in (2, 3) or x.shape[0] != csr.num_nodes:
        raise DataError(f"x: expected [N, C] or [N, H, C] with N = {csr.num_nodes} as in the CSR, got {list(x.shape)}")
    if weight is not None:
        expected = [csr.num_edges, *x.shape[1:-1]]
        if list(weight.shape) != expected:
            raise DataError(f"weight: expected {expected} to fit the CSR and x, got {list(weight.shape)}")
    check_floats(csr.col.device, "the CSR", x=x, weight=weight)
