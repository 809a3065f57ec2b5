"""Encoders of raw node features to node states."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class NodeEncoder(nn.Module):
    """A linear map of the node features; a one-hot code among them passes a map of its own first.

    Args:
        in_channels: F, columns of x.
        num_categories: K, how many of the last columns of x are a one-hot code; 0: none.
        out_channels: C.

    Source: the node encoder of the ogbn-proteins models, arXiv 2006.07739 and 2106.07476.
    """

    def __init__(self, in_channels: int, num_categories: int, out_channels: int) -> None:
        super().__init__()
        self.num_categories = num_categories
        self.category = nn.Linear(num_categories, num_categories) if num_categories else None
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, F] to [N, C]."""
        if self.category is not None:
            features, code = x[:, : -self.num_categories], x[:, -self.num_categories :]
            x = torch.cat([features, self.category(code)], dim=1)
        return cast(Tensor, self.linear(x))
