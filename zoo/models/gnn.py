"""GNN: encode, stack, norm, predict; the model class of the node-level families."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.layers.block import NORMS, NormName, normed_relu
from zoo.layers.dropout import shared_mask
from zoo.layers.encoders import NodeEncoder
from zoo.layers.inputs import BlockInputs
from zoo.ops.csr import CSR, as_csr
from zoo.ops.edges import EdgeInput


class DropoutMasks(NamedTuple):
    """The dropout masks of one forward pass, scaled by 1 / (1 - p); None where nothing is dropped.

    Attributes:
        stack: [N, C], shared by all layers.
        head: [N, C], before the prediction head.
    """

    stack: Tensor | None
    head: Tensor | None


class GNN(nn.Module):
    """A node-level graph neural network around a stack of layers.

    Args:
        in_channels: F, columns of x.
        num_categories: how many of the last columns of x are a one-hot code.
        num_edge_features: D, columns of edge_attr that the model encodes; 0: edge features are not read.
        hidden_channels: C.
        out_channels: T, outputs per node.
        stack: maps [N, C] to [N, C], called as ``stack(h, inputs)``.
        norm: normalization before the head; None: the stack ends with one.
        dropout: probability, in the stack and before the head.
        shared_dropout: one mask for the whole stack; False: the stack draws its own.

    Source: arXiv 2106.07476.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_categories: int,
        num_edge_features: int,
        hidden_channels: int,
        out_channels: int,
        stack: nn.Module,
        norm: NormName | None = "layer",
        dropout: float = 0.0,
        shared_dropout: bool = True,
    ) -> None:
        super().__init__()
        self.widths = (in_channels, hidden_channels, out_channels)
        self.dropout, self.shared_dropout = dropout, shared_dropout
        self.node_encoder = NodeEncoder(in_channels, num_categories, hidden_channels)
        self.edge_encoder = nn.Linear(num_edge_features, hidden_channels) if num_edge_features else None
        self.stack = stack
        self.norm = nn.Identity() if norm is None else NORMS[norm](hidden_channels)
        self.head = nn.Linear(hidden_channels, out_channels)

    def extra_repr(self) -> str:
        """The widths of input, states and output, as a printed model shows them."""
        return "{} -> {} -> {}".format(*self.widths)

    def forward(
        self, x: Tensor, edge_index: Tensor | CSR, edge_attr: Tensor | None = None, *, masks: DropoutMasks | None = None
    ) -> Tensor:
        """Logits of every node.

        Args:
            x: [N, F] node features.
            edge_index: [2, E] sources and targets, or the CSR of the incoming edges.
            edge_attr: [E, D] edge features, in the order of ``edge_index``.
            masks: dropout masks to apply; None: fresh ones in training, none otherwise.

        Returns:
            [N, T].

        Raises:
            ValueError: if edge features are missing, or given to a model that reads none, or not of shape [E, D].
        """
        csr, edges = self._edges(x, edge_index, edge_attr)
        h = self.node_encoder(x)
        # Autocast may have halved the states; the residual stream and its mask are kept at full precision.
        h = h if h.dtype == torch.float64 else h.float()
        # Drawn once for the whole stack: a mask per layer would make memory grow with depth.
        if masks is None:
            rates = (self.dropout if self.shared_dropout else 0.0, self.dropout)
            masks = DropoutMasks(*(shared_mask(h, rate, training=self.training) for rate in rates))
        h = self.stack(h, BlockInputs(csr, edges, masks.stack))
        return cast(Tensor, self.head(normed_relu(self.norm, h, masks.head)))

    def _edges(self, x: Tensor, edge_index: Tensor | CSR, edge_attr: Tensor | None) -> tuple[CSR, EdgeInput | None]:
        encoder = self.edge_encoder
        if encoder is None and edge_attr is not None:
            raise ValueError("this model reads no edge features: leave edge_attr out")
        if encoder is not None:
            if edge_attr is None:
                raise ValueError(f"this model reads edge features: give edge_attr [E, {encoder.in_features}]")
            num_edges = edge_index.num_edges if isinstance(edge_index, CSR) else edge_index.size(1)
            if edge_attr.shape != (num_edges, encoder.in_features):
                raise ValueError(
                    f"edge_attr: expected shape ({num_edges}, {encoder.in_features}), got {tuple(edge_attr.shape)}"
                )
        csr, perm = as_csr(edge_index, x.size(0))
        # The encoder is handed on as weights: each layer folds its own projection into them, and no [E, C] is stored.
        if encoder is None or edge_attr is None:
            return csr, None
        return csr, EdgeInput(edge_attr if perm is None else edge_attr[perm], encoder.weight, encoder.bias)
