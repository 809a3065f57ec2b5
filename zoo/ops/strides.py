"""How tensors must lie in memory to be read by kernels."""

from __future__ import annotations

from torch import Tensor


def unit_stride(tensor: Tensor) -> Tensor:
    """[n, C] with the channels of a row side by side; rows may lie apart."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()
