"""Convolutions of PyTorch Geometric as blocks of our stacks, run by its own layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.inputs import BlockInputs
from zoo.ops.csr import edge_index_of

PygConvName = Literal[
    "gin", "gine", "gatv2", "transformer", "pna", "res_gated", "general", "graph", "cheb", "tag", "film", "le"
]


class PygConv(nn.Module):
    """A convolution of PyTorch Geometric that maps [N, C] to [N, C]; its documentation has the formulas.

    No self-loops are added: a recipe adds them with ``data.self_loops``. On a GPU the sums of PyTorch Geometric are
    not deterministic, so a reversible stack restores its states up to the rounding of a block, not to the last bit.

    Args:
        channels: C.
        name: of the convolution.
        embedding_channels: width of the edge embeddings that "gine" projects to C channels; None for all others.
        options: keyword arguments of its row of ``PYG_CONVS``.

    Raises:
        ImportError: if PyTorch Geometric is not installed.
    """

    def __init__(
        self, channels: int, *, name: PygConvName, embedding_channels: int | None = None, **options: Any
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # Its import warns of deprecated parts of PyTorch that it uses, which users of this package need not see.
            warnings.simplefilter("ignore")
            import torch_geometric.nn as pyg
        self.conv: nn.Module = PYG_CONVS[name](pyg, channels, **options)
        self.edge_linear = None if embedding_channels is None else nn.Linear(embedding_channels, channels)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] to [N, C]."""
        if inputs.edge_weight is not None:
            raise ValueError("PygConv reads no edge weights: leave edge_weight out, or use GCN, SAGE or GAT")
        edge_index = edge_index_of(inputs.csr)
        if self.edge_linear is None:
            return cast(Tensor, self.conv(x, edge_index))
        assert inputs.edges is not None  # the model checks that a graph has what its convolutions read
        # Projection and embedding are one small matrix, so that [E, C / G] is the only tensor of the edges.
        attr, weight, bias = inputs.edges.project(self.edge_linear)
        assert weight is not None
        return cast(Tensor, self.conv(x, edge_index, F.linear(attr.to(weight.dtype), weight, bias)))


def _mlp(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))


def _pna(pyg: Any, channels: int, *, mean_degree: int) -> nn.Module:
    # The layer reads nothing of its histogram of degrees but the means of d and log(d + 1): here all nodes have the
    # degree that the recipe names, so that the model does not depend on the graph it is built for.
    degrees = torch.zeros(mean_degree + 1, dtype=torch.long, device="cpu")  # read while a model is built on "meta"
    degrees[mean_degree] = 1
    aggrs, scalers = ["mean", "min", "max", "std"], ["identity", "amplification", "attenuation"]
    return cast(nn.Module, pyg.PNAConv(channels, channels, aggrs, scalers, degrees))


# Builders by name; each takes torch_geometric.nn, C, and the options of the convolution.
PYG_CONVS: Mapping[PygConvName, Callable[..., nn.Module]] = MappingProxyType(
    {
        "gin": lambda pyg, c: pyg.GINConv(_mlp(c), train_eps=True),
        "gine": lambda pyg, c: pyg.GINEConv(_mlp(c), train_eps=True),
        "gatv2": lambda pyg, c, num_heads: pyg.GATv2Conv(c, c, heads=num_heads, concat=False, add_self_loops=False),
        "transformer": lambda pyg, c, num_heads: pyg.TransformerConv(c, c, heads=num_heads, concat=False),
        "pna": _pna,
        "res_gated": lambda pyg, c: pyg.ResGatedGraphConv(c, c),
        "general": lambda pyg, c, num_heads: pyg.GeneralConv(c, c, heads=num_heads, attention=True),
        "graph": lambda pyg, c: pyg.GraphConv(c, c),
        # A polynomial of degree K - 1 in the Laplacian for PyTorch Geometric's K.
        "cheb": lambda pyg, c, num_hops: pyg.ChebConv(c, c, K=num_hops + 1),
        "tag": lambda pyg, c, num_hops: pyg.TAGConv(c, c, K=num_hops),
        "film": lambda pyg, c: pyg.FiLMConv(c, c),
        "le": lambda pyg, c: pyg.LEConv(c, c),
    }
)
