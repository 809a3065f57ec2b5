"""The dropout mask that all layers of a deep stack share."""

from __future__ import annotations

import torch
from torch import Tensor


def shared_mask(x: Tensor, p: float, *, training: bool) -> Tensor | None:
    """Sample one dropout mask for a whole stack, so that depth costs no memory for masks.

    Args:
        x: [N, C] the stack's input; gives shape, dtype and device.
        p: probability of zeroing an element, 0 <= p < 1.
        training: outside training, or for p = 0, there is no mask.

    Returns:
        [N, C] with values 0 and 1 / (1 - p), or None.

    Source: the shared dropout pattern of arXiv 2106.07476.
    """
    if not training or p == 0:
        return None
    with torch.no_grad():
        return torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)
