"""The definition in plain PyTorch: the oracle of every kernel's tests, and the path of any transform.

Its [N, C] tensors are bounded memory, so that there is no chunked form.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from zoo.ops.dispatch import compute_dtype


def norm_relu(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, eps: float) -> Tensor:
    """[N, C] relu(layer_norm(x)) * mask in the dtype of x, computed in float32 or float64."""
    dtype = compute_dtype(x)
    out = F.layer_norm(x.to(dtype), (x.shape[1],), weight.to(dtype), bias.to(dtype), eps).relu()
    return (out if mask is None else out * mask).to(x.dtype)
