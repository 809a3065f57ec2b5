"""Layer norm, ReLU and dropout mask in one pass over the rows, keeping nothing but its input for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from zoo.errors import DataError
from zoo.ops.dispatch import (
    backend_for,
    check_floats,
    compute_dtype,
    kernel_function,
    needs_grad,
    plain,
    transforming,
    unit_stride,
)
from zoo.ops.norm_relu import reference

__all__ = ["norm_relu"]

# Narrower rows, and rows too wide for the registers of a GPU, are left to the definition.
MIN_CHANNELS, MAX_CHANNELS = 8, 2048


def norm_relu(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """relu(layer_norm(x) * weight + bias) * mask.

    Args:
        x: [N, C]; rows may lie apart, as in a slice of the columns of a larger tensor.
        weight: [C].
        bias: [C].
        mask: [N, C] without gradient, rows may lie apart; None: nothing is masked.
        eps: added to the variance of a row.

    Returns:
        [N, C] in the dtype of x; half precision is computed in float32, under autocast too. Differentiable any number
        of times; a second derivative is computed by the definition.

    Raises:
        DataError: if shapes, devices or dtypes do not fit together.
        BackendError: if the backend asked for cannot serve these tensors.
    """
    x, mask = plain(x), None if mask is None else plain(mask)
    _check_arguments(x, weight, bias, mask)
    backend = _backend(x, mask)
    with torch.autocast(x.device.type, enabled=False):
        if backend is None:
            return reference.norm_relu(x, weight, bias, mask, eps)
        dtype = compute_dtype(x)
        rows = x
        # On an accelerator half precision is read as it is.
        if x.device.type == "cpu" or dtype == torch.float64:
            rows, mask = x.to(dtype), None if mask is None else mask.to(dtype)
        inputs = (unit_stride(rows), weight.to(dtype).contiguous(), bias.to(dtype).contiguous())
        mask = None if mask is None else unit_stride(mask)
        if needs_grad(*inputs):
            out: Tensor = _NormRelu.apply(*inputs, mask, eps, backend)  # type: ignore[no-untyped-call]
        else:
            out = kernel_function("norm_relu", backend, "forward")(*inputs, mask, eps)[0]
        return out.to(x.dtype)


class _NormRelu(Function):
    """The op under autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, eps: float, backend: str
    ) -> Tensor:
        """See ``cpu.forward``."""
        out, mean, rstd = kernel_function("norm_relu", backend, "forward")(x, weight, bias, mask, eps)
        ctx.save_for_backward(x, weight, bias, mask, mean, rstd)
        ctx.eps, ctx.backend = eps, backend
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See ``cpu.backward``."""
        x, weight, bias, mask, mean, rstd = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            if torch.is_grad_enabled():
                # The tape of a second derivative: kernels leave none.
                inputs = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
                out = reference.norm_relu(x, weight, bias, mask, ctx.eps)
                given = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
                grads = tuple(next(given) if tensor.requires_grad else None for tensor in (x, weight, bias))
            else:
                backward = kernel_function("norm_relu", ctx.backend, "backward")
                grads = backward(unit_stride(grad), x, weight, bias, mask, mean, rstd)
        pairs = zip(grads, ctx.needs_input_grad, strict=False)
        return *(gradient if needed else None for gradient, needed in pairs), None, None, None


def _backend(x: Tensor, mask: Tensor | None) -> str | None:
    """The backend with kernels for these tensors, or None where the definition serves better."""
    # A compiler fuses these few operators itself; kernels do not follow transforms and have no gradient of the mask.
    if torch.compiler.is_compiling():
        return None
    name = backend_for(x.device)[0]
    if transforming() or (mask is not None and mask.requires_grad):
        return None
    fits = MIN_CHANNELS <= x.shape[1] <= MAX_CHANNELS and len(x) > 0
    has_kernel = name == "numba" or (name == "triton" and x.dtype != torch.float64)
    return name if fits and has_kernel else None


def _check_arguments(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> None:
    if x.dim() != 2:
        raise DataError(f"x: expected [N, C], got {list(x.shape)}")
    for name, scale in (("weight", weight), ("bias", bias)):
        if list(scale.shape) != [x.shape[1]]:
            raise DataError(f"{name}: expected [C] with C = {x.shape[1]} as in x, got {list(scale.shape)}")
    if mask is not None and mask.shape != x.shape:
        raise DataError(f"mask: expected {list(x.shape)} as x, got {list(mask.shape)}")
    check_floats(x.device, "x", x=x, weight=weight, bias=bias, mask=mask)
