"""Message and aggregation of generalised graph convolution in one pass over the rows, never an [E, C] tensor."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zoo.errors import DataError
from zoo.ops.backend import backend_for, named_backend, refuse_transforms
from zoo.ops.csr import CSR, check_csr
from zoo.ops.gen_aggregate import functions, reference, registered
from zoo.ops.gen_aggregate.interface import Messages, load_backend
from zoo.ops.gen_aggregate.reference import POWER_MAX, POWER_MIN
from zoo.ops.tensors import plain

Aggr = Literal["max", "mean", "sum", "softmax", "powermean"]
AGGREGATIONS: tuple[Aggr, ...] = ("max", "mean", "sum", "softmax", "powermean")

__all__ = ["AGGREGATIONS", "Aggr", "gen_aggregate"]


def gen_aggregate(
    x: Tensor,
    csr: CSR,
    edge_attr: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    aggr: Aggr = "max",
    temperature: float | Tensor = 1.0,
    power: float | Tensor = 1.0,
    detach_weights: bool = False,
    eps: float = 1e-7,
) -> Tensor:
    """Aggregate the messages relu(x_j + a_e) + eps over the incoming edges e = (j, i) of every node i.

    Args:
        x: [N, C] node features; rows may lie apart, as in a slice of the columns of a larger tensor.
        csr: incoming edges of each node.
        edge_attr: [E, D] edge features in the order of ``csr.col``, then a_e = weight @ edge_attr_e + bias; or [E, C]
            edge embeddings without a weight, then a_e = edge_attr_e + bias; or None.
        weight: [C, D] or None.
        bias: [C] or None.
        aggr: how messages are joined. ``max``: of equal messages the first in the row wins and gets the gradient.
            ``softmax``: mean with weights softmax(temperature * message). ``powermean``: the power mean of messages
            clamped to 1e-7 .. 10. A node without incoming edges gets zeros, under ``powermean`` the power mean of 1e-7.
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
    x, edge_attr = plain(x), None if edge_attr is None else plain(edge_attr)
    _check_arguments(x, csr, edge_attr, weight, bias, aggr)
    check_csr(csr)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    device, out_dtype = x.device, x.dtype
    # On an accelerator half precision is read as it is; weights are small.
    if device.type == "cpu" or dtype == torch.float64:
        x, edge_attr = x.to(dtype), _cast(edge_attr, dtype)
    messages = Messages(x, csr, edge_attr, _cast(weight, dtype), _cast(bias, dtype), eps)
    factor = None
    if aggr in ("softmax", "powermean"):
        name, value = ("temperature", temperature) if aggr == "softmax" else ("power", power)
        factor = _one_number(name, value, dtype, device)
    with torch.autocast(device.type, enabled=False):
        out = _aggregate(messages, aggr, factor, detach_weights)
    return out.to(out_dtype)


def _aggregate(messages: Messages, aggr: Aggr, factor: Tensor | None, detach_weights: bool) -> Tensor:
    # A compiled graph calls registered operators, which choose the backend when they run.
    compiling = torch.compiler.is_compiling()
    name = named_backend() if compiling else backend_for(messages.x.device)[0]
    if name == "reference":
        return reference.gen_aggregate(messages, aggr, factor, detach_weights=detach_weights)
    if not compiling:
        refuse_transforms("gen_aggregate", name)
    ops = registered if compiling or name is None else functions.Aggregations(load_backend(name))
    if aggr == "max":
        return ops.max_aggregate(messages)
    if aggr == "softmax" and factor is not None:
        return ops.softmax_aggregate(messages, factor, detach_weights=detach_weights)
    total = ops.sum_aggregate(messages, factor)
    if aggr == "sum":
        return total
    mean = total / messages.csr.rowptr.diff().clamp(min=1).to(total.dtype)[:, None]
    return mean if factor is None else mean.clamp(POWER_MIN, POWER_MAX).pow(1 / factor)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _one_number(name: str, value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)
    if value.numel() != 1:
        raise DataError(f"{name}: expected one number, got a tensor of shape {list(value.shape)}")
    return value.to(device=device, dtype=dtype).reshape(())


def _check_arguments(
    x: Tensor, csr: CSR, edge_attr: Tensor | None, weight: Tensor | None, bias: Tensor | None, aggr: str
) -> None:
    if aggr not in AGGREGATIONS:
        raise DataError(f"aggr: expected one of {', '.join(AGGREGATIONS)}, got {aggr!r}")
    if x.dim() != 2 or x.shape[0] != csr.num_nodes:
        raise DataError(f"x: expected [N, C] with N = {csr.num_nodes} as in the CSR, got {list(x.shape)}")
    num_channels, num_edges = x.shape[1], csr.num_edges
    if weight is not None and edge_attr is None:
        raise DataError("weight: given without edge_attr, which it would project")
    if edge_attr is not None:
        if weight is not None and (weight.dim() != 2 or weight.shape[0] != num_channels):
            raise DataError(f"weight: expected [C, D] with C = {num_channels} as in x, got {list(weight.shape)}")
        expected = [num_edges, num_channels if weight is None else weight.shape[1]]
        if list(edge_attr.shape) != expected:
            raise DataError(f"edge_attr: expected {expected} to fit the CSR, x and weight, got {list(edge_attr.shape)}")
    if bias is not None and list(bias.shape) != [num_channels]:
        raise DataError(f"bias: expected [C] with C = {num_channels} as in x, got {list(bias.shape)}")
    for name, tensor in (("x", x), ("edge_attr", edge_attr), ("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise DataError(f"{name}: expected floating point numbers, got {tensor.dtype}")
        if tensor is not None and tensor.device != csr.col.device:
            raise DataError(f"{name} is on {tensor.device} and the CSR on {csr.col.device}; expected one device")
