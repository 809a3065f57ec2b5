"""The definition of the weighted sum in plain PyTorch: short, slow, and the oracle of every kernel's tests."""

from __future__ import annotations

from torch import Tensor

from zoo.ops.csr import CSR, edge_targets
from zoo.ops.dispatch import compute_dtype


def weighted_sum(x: Tensor, csr: CSR, weight: Tensor | None) -> Tensor:
    """[N, H, C] sums by way of an [E, H, C] tensor, in float32 for half precision; always differentiable."""
    dtype = compute_dtype(x)
    message = x.to(dtype).index_select(0, csr.col)
    if weight is not None:
        message = message * weight[:, :, None]
    return x.new_zeros(x.shape, dtype=dtype).index_add(0, edge_targets(csr), message)
