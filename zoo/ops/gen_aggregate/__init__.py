"""Message and aggregation of generalized graph convolution in one pass over the rows, never an [E, C] tensor."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd import Function

from zoo.errors import DataError
from zoo.ops.csr import CSR, check_csr
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
from zoo.ops.edges import EdgeInput
from zoo.ops.gen_aggregate import reference
from zoo.ops.gen_aggregate.reference import POWER_MAX, POWER_MIN, Messages

Aggr = Literal["max", "mean", "sum", "softmax", "powermean"]
AGGREGATIONS: tuple[Aggr, ...] = get_args(Aggr)
# The functions of a backend that compute each aggregation: NAME_forward and NAME_backward.
_FUNCTIONS: dict[Aggr, str] = {"max": "max", "mean": "sum", "sum": "sum", "softmax": "softmax", "powermean": "sum"}

__all__ = ["AGGREGATIONS", "Aggr", "gen_aggregate"]


@uncompiled_training
def gen_aggregate(
    x: Tensor,
    csr: CSR,
    edges: EdgeInput | None = None,
    *,
    aggr: Aggr = "max",
    temperature: float | Tensor = 1.0,
    power: float | Tensor = 1.0,
    detach_weights: bool = False,
    eps: float = 1e-7,
) -> Tensor:
    """Aggregate the messages m_e = relu(x_j + a_e) + eps over the incoming edges e = (j, i) of every node i.

    Args:
        x: [N, C] node features; rows may lie apart, as in a slice of the columns of a larger tensor.
        csr: incoming edges of each node.
        edges: edge embeddings a_e of C channels in the order of ``csr.col``, or None: a_e = 0.
        aggr: how messages are combined. ``max``: of equal messages the first in the row wins and gets the gradient.
            ``softmax``: sum_e softmax_e(temperature * m_e) m_e. ``powermean``: (mean_e m_e^power)^(1 / power), messages
            being clamped to 1e-7 .. 10. A node without incoming edges gets zeros, under ``powermean`` the power mean
            of 1e-7.
        temperature: of softmax; one element if a tensor.
        power: of powermean; one element if a tensor.
        detach_weights: keep gradients out of the softmax weights.
        eps: added to every message.

    Returns:
        [N, C] in the dtype of x; half precision is computed in float32. Differentiable once in every tensor; any
        number of times by the backend ``reference``.

    Raises:
        DataError: if shapes, devices or dtypes do not fit together, or the CSR is damaged.
        BackendError: if the backend asked for cannot serve these tensors.

    Source: GENConv, arXiv 2006.07739.
    """
    x, edges = plain(x), None if edges is None else edges._replace(attr=plain(edges.attr))
    _check_arguments(x, csr, edges, aggr)
    check_csr(csr)
    dtype, out_dtype = compute_dtype(x), x.dtype
    # On an accelerator half precision is read as it is; weights are small.
    cast_rows = x.device.type == "cpu" or dtype == torch.float64
    if edges is not None:
        attr, *projection = edges
        weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in projection)
        edges = EdgeInput(attr.to(dtype) if cast_rows else attr, weight, bias)
    messages = Messages(x.to(dtype) if cast_rows else x, csr, edges, eps)
    factor = None
    if aggr in ("softmax", "powermean"):
        name, value = ("temperature", temperature) if aggr == "softmax" else ("power", power)
        factor = _scalar(name, value, dtype, x.device)
    with torch.autocast(x.device.type, enabled=False):
        return _aggregate(messages, aggr, factor, detach_weights).to(out_dtype)


def _aggregate(messages: Messages, aggr: Aggr, factor: Tensor | None, detach_weights: bool) -> Tensor:
    name = _backend(messages, aggr)
    if name == "reference":
        return reference.gen_aggregate(messages, aggr, factor, detach_weights=detach_weights)
    refuse_transforms("gen_aggregate", name)
    x, csr, edges, eps = messages
    if needs_grad(x, *(edges or ()), factor):
        call = _Call(csr, eps, name, _FUNCTIONS[aggr], detach_weights)
        out: Tensor = _Aggregate.apply(call, x, factor, *(edges or ()))  # type: ignore[no-untyped-call]
    else:
        forward = kernel_function("gen_aggregate", name, f"{_FUNCTIONS[aggr]}_forward")
        out = forward(messages, factor, needs_grad=False)[0]
    if aggr not in ("mean", "powermean"):
        return out
    mean = out / csr.rowptr.diff().clamp(min=1)[:, None]
    return mean if factor is None else mean.clamp(POWER_MIN, POWER_MAX).pow(1 / factor)


def _backend(messages: Messages, aggr: Aggr) -> str:
    """The backend of a call. Kernels serve what recipes use; the rest is left to ``chunked``."""
    name = operator_backend(messages.x.device)
    edges = messages.edges
    # Whatever the grad mode: a reversible stack evaluates a call again in backward, to the same last bit.
    unserved = edges is not None and (edges.weight is None or (aggr == "softmax" and edges.attr.requires_grad))
    if name == "triton":
        # Its kernels compute in float32, and add gradients in no fixed order.
        exact = messages.x.dtype == torch.float64 or torch.are_deterministic_algorithms_enabled()
        unserved = unserved or exact or not messages.x.numel()
    return "chunked" if unserved and name in ("numba", "triton") else name


class _Call(NamedTuple):
    """Arguments of an aggregation that have no gradient."""

    csr: CSR
    eps: float
    backend: str
    function: str
    detach_weights: bool


class _Aggregate(Function):
    """An aggregation under autograd; the arithmetic of both passes is the backend's, see ``chunked``."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, factor: Tensor | None, *edges: Any) -> Tensor:
        """[N, C] results for [N, C] features; ``edges`` are the tensors of an ``EdgeInput``, or none."""
        forward = kernel_function("gen_aggregate", call.backend, f"{call.function}_forward")
        messages = Messages(x, call.csr, EdgeInput(*edges) if edges else None, call.eps)
        out: Tensor
        out, state = forward(messages, factor, needs_grad=True)
        # Max needs its winners alone: neither its input nor its output is kept, so both may be overwritten.
        ctx.save_for_backward(None if call.function == "max" else x, factor, *call.csr, *edges, *state)
        ctx.call, ctx.num_edge_tensors = call, len(edges)
        return out

    @staticmethod
    @exact_backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors of forward."""
        x, factor, rowptr, col, *rest = ctx.saved_tensors
        call: _Call = ctx.call
        edges, state = rest[: ctx.num_edge_tensors], rest[ctx.num_edge_tensors :]
        messages = Messages(grad if x is None else x, CSR(rowptr, col), EdgeInput(*edges) if edges else None, call.eps)
        backward = kernel_function("gen_aggregate", call.backend, f"{call.function}_backward")
        options = {"detach_weights": call.detach_weights} if call.function == "softmax" else {}
        dx, *d_edges, d_factor = backward(grad, messages, factor, *state, **options)
        pairs = zip((None, dx, d_factor, *d_edges), ctx.needs_input_grad, strict=False)
        return tuple(gradient if needed else None for gradient, needed in pairs)


def _scalar(name: str, value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)
    if value.numel() != 1:
        raise DataError(f"{name}: expected one number, got a tensor of shape {list(value.shape)}")
    return value.to(device=device, dtype=dtype).reshape(())


def _check_arguments(x: Tensor, csr: CSR, edges: EdgeInput | None, aggr: str) -> None:
    if aggr not in AGGREGATIONS:
        raise DataError(f"aggr: expected one of {', '.join(AGGREGATIONS)}, got {aggr!r}")
    if x.dim() != 2 or x.shape[0] != csr.num_nodes:
        raise DataError(f"x: expected [N, C] with N = {csr.num_nodes} as in the CSR, got {list(x.shape)}")
    check_floats(csr.col.device, "the CSR", x=x)
    if edges is None:
        return
    attr, weight, bias = edges
    num_channels = x.shape[1]
    if weight is not None and (weight.dim() != 2 or weight.shape[0] != num_channels):
        raise DataError(f"edges.weight: expected [C, D] with C = {num_channels} as in x, got {list(weight.shape)}")
    expected = [csr.num_edges, num_channels if weight is None else weight.shape[1]]
    if list(attr.shape) != expected:
        raise DataError(f"edges.attr: expected {expected} to fit the CSR, x and weight, got {list(attr.shape)}")
    if bias is not None and list(bias.shape) != [num_channels]:
        raise DataError(f"edges.bias: expected [C] with C = {num_channels} as in x, got {list(bias.shape)}")
    check_floats(csr.col.device, "the CSR", **{f"edges.{name}": tensor for name, tensor in edges._asdict().items()})
