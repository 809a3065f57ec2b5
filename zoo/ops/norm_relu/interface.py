"""What a backend computes: two functions on tensors, without autograd."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from torch import Tensor

# Imported on first use: kernels need what may not be installed, and cost time to import.
_MODULES = {"numba": "zoo.ops.norm_relu.cpu", "triton": "zoo.ops.norm_relu.cuda"}


def load_backend(name: str) -> Backend | None:
    """The module with the functions of ``Backend``; None for a backend that is PyTorch alone."""
    return cast(Backend, importlib.import_module(_MODULES[name])) if name in _MODULES else None


class Backend(Protocol):
    """The functions of cpu.py and cuda.py; ``x``, ``mask`` and ``grad`` have columns side by side."""

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[N, C] relu(layer_norm(x)) * mask in the dtype of x; [N] means and [N] 1 / deviations of the rows of x."""

    def backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias."""
