"""The same architecture from PyTorch Geometric's own GENConv and GroupAddRev: what a user would write without us.

It is as its examples and its documentation have it, with what is cheapest there where they leave a choice: raw edge
features go into every layer, the list of edges is made once per part and not per step, the loss, the optimizer and the
clipping are those of our own training step.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch_geometric.nn import GENConv, GroupAddRev

from zoo.ops.csr import CSR, edge_targets
from zoo.spec.shape import GraphShape


class PyGBlock(nn.Module):
    """norm, ReLU, shared dropout mask, GENConv with its defaults."""

    def __init__(self, channels: int, edge_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = GENConv(channels, channels, aggr="max", num_layers=2, norm="layer", edge_dim=edge_channels)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, mask: Tensor | None = None) -> Tensor:
        """[N, C] to [N, C]."""
        h = self.norm(x).relu()
        h = h if mask is None else h * mask
        return cast(Tensor, self.conv(h, edge_index, edge_attr))


class PyGModel(nn.Module):
    """Encoder, a stack of two-group reversible layers, norm and head, as in the reversible models of ogbn-proteins."""

    def __init__(self, num_layers: int, channels: int, shape: GraphShape, *, dropout: float, reversible: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.encoder = nn.Linear(shape.num_node_features, channels)
        block = PyGBlock(channels // 2, shape.num_edge_features)
        self.layers = nn.ModuleList(
            GroupAddRev(nn.ModuleList(copy.deepcopy(block) for _ in range(2)), disable=not reversible)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, shape.num_tasks)
        self._csr: CSR | None = None

    def forward(self, x: Tensor, csr: CSR, edge_attr: Tensor, edge_weight: None = None) -> Tensor:
        """[N, F] to [N, T]; GENConv reads no edge weights."""
        if csr is not self._csr:
            # A user would make the list once for each part, so it is no part of a step.
            self._csr, self._edge_index = csr, edge_list(csr)
        edge_index = self._edge_index
        h = self.encoder(x)
        mask: Any = torch.empty_like(h).bernoulli_(1 - self.dropout).div_(1 - self.dropout) if self.training else None
        for layer in self.layers:
            h = layer(h, edge_index, edge_attr, mask)
        h = nn.functional.dropout(self.norm(h).relu(), self.dropout, self.training)
        return cast(Tensor, self.head(h))


def edge_list(csr: CSR) -> Tensor:
    """[2, E] int64 sources and targets."""
    return torch.stack([csr.col.long(), edge_targets(csr)])
