"""What the tests take from PyTorch Geometric, whose import warns, and a random graph of its kind."""

from __future__ import annotations

import warnings
from typing import Any

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch_geometric import EdgeIndex
    from torch_geometric.data import Batch, Data, HeteroData
    from torch_geometric.loader import DataLoader, RandomNodeLoader
    from torch_geometric.nn import GCNConv, GraphConv
    from torch_geometric.transforms import ToSparseTensor, ToUndirected

__all__ = [
    "Batch",
    "Data",
    "DataLoader",
    "EdgeIndex",
    "GCNConv",
    "GraphConv",
    "HeteroData",
    "RandomNodeLoader",
    "ToSparseTensor",
    "ToUndirected",
    "some_data",
]
NUM_NODES = 30


def some_data(*, num_splits: int = 1, **changes: Any) -> Data:
    """A random undirected graph in both directions; a change to None takes an attribute out."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.randint(NUM_NODES, (2, 80), generator=generator).sort(dim=0).values
    kept = low < high
    pairs = torch.unique(torch.stack([low[kept], high[kept]]), dim=1)
    attr = torch.rand(pairs.shape[1], 3, generator=generator)
    order = torch.rand(max(num_splits, 1), NUM_NODES, generator=generator).argsort(1)
    masks = [(order < 10).T, ((order >= 10) & (order < 20)).T, (order >= 20).T]
    values = {
        "x": torch.randn(NUM_NODES, 5, generator=generator),
        "edge_index": torch.cat([pairs, pairs.flip(0)], 1),
        "edge_attr": torch.cat([attr, attr]),
        "y": torch.arange(NUM_NODES) % 3,
    }
    for name, mask in zip(("train_mask", "val_mask", "test_mask"), masks, strict=True):
        values[name] = mask.squeeze(1) if num_splits == 1 else mask
    return Data(**{key: value for key, value in {**values, **changes}.items() if value is not None})
