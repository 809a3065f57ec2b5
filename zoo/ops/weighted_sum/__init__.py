"""Weighted sums over the incoming edges of every node in one pass over the rows, never an [E, C] tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import DataError
from zoo.ops.backend import backend_for, named_backend, refuse_transforms
from zoo.ops.csr import CSR, check_csr
from zoo.ops.tensors import plain
from zoo.ops.weighted_sum import functions, reference, registered

__all__ = ["weighted_sum"]


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None = None) -> Tensor:
    """Sum weight_e * x_j over the incoming edges e = (j, i) of every node i.

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
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # [N, H, C] and [E, H] from here on; heads differ by their weights alone.
    heads = x if weight is not None and x.dim() == 3 else x.flatten(1)[:, None]
    if weight is not None:
        weight = weight.to(dtype).view(csr.num_edges, heads.shape[1])
    # On an accelerator half precision is read as it is.
    if x.device.type == "cpu":
        heads = heads.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _weighted_sum(heads, csr, weight).view(x.shape).to(x.dtype)


def _weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    # A compiled graph calls registered operators, which choose the backend when they run.
    compiling = torch.compiler.is_compiling()
    name = named_backend() if compiling else backend_for(x.device)[0]
    if name == "reference":
        return reference.weighted_sum(x, csr, weight)
    if compiling or name is None:
        return registered.weighted_sum(x, csr, weight)
    refuse_transforms("weighted_sum", name)
    return functions.weighted_sum(x, csr, weight, functions.load_backend(name))


def _check_arguments(x: Tensor, csr: CSR, weight: Tensor | None) -> None:
    if x.dim() not in (2, 3) or x.shape[0] != csr.num_nodes:
        raise DataError(f"x: expected [N, C] or [N, H, C] with N = {csr.num_nodes} as in the CSR, got {list(x.shape)}")
    if weight is not None:
        expected = [csr.num_edges, *x.shape[1:-1]]
        if list(weight.shape) != expected:
            raise DataError(f"weight: expected {expected} to fit the CSR and x, got {list(weight.shape)}")
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor is not None and not tensor.is_floating_point():
            raise DataError(f"{name}: expected floating point numbers, got {tensor.dtype}")
        if tensor is not None and tensor.device != csr.col.device:
            raise DataError(f"{name} is on {tensor.device} and the CSR on {csr.col.device}; expected one device")
