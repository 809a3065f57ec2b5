"""The definition in plain PyTorch: what every kernel is tested against, and what follows any transform."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def norm_relu(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """[N, C] relu(layer_norm(x)) * mask in the dtype of x, computed in float32 or float64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = F.layer_norm(x.to(dtype), (x.shape[1],), weight.to(dtype), bias.to(dtype), eps).relu()
    return (out if mask is None else out * mask).to(x.dtype)
