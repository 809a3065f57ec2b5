"""GNN: encode, stack, norm, predict; the model class of the node-level families."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.layers.block import NORMS, NodeEncoder, NormName, dropout, normed_relu, shared_mask
from zoo.models.inputs import read_inputs, refuse_half


class DropoutMasks(NamedTuple):
    """The dropout masks of one forward pass, scaled by 1 / (1 - p); None where nothing is dropped."""

    stack: Tensor | None  # [N, C], shared by all layers
    head: Tensor | None  # [N, C], before the prediction head


class GNN(nn.Module):
    """A node-level graph neural network around a stack of layers.

    >>> import torch, zoo
    >>> from torch_geometric.data import Data
    >>> model = zoo.build_model(zoo.read_recipe("small_rev").model, zoo.GraphShape(num_node_features=5, num_tasks=3))
    >>> data = Data(x=torch.rand(4, 5), edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]), edge_weight=torch.rand(3))
    >>> model(data).shape, model.embed(data).shape
    (torch.Size([4, 3]), torch.Size([4, 64]))
    >>> model(data.x, data.edge_index, edge_weight=data.edge_weight).shape
    torch.Size([4, 3])

    Args:
        in_channels: F, columns of x.
        num_categories: how many of the last columns of x are a one-hot code.
        num_edge_features: D, columns of edge_attr that the model encodes; 0: edge features are not read.
        hidden_channels: C.
        out_channels: T, outputs per node.
        stack: maps [N, C] to [N, C], called as ``stack(h, inputs)``.
        norm: normalization before the head; None: the stack ends with one.
        dropout: probability, in the stack and before the head.
        shared_dropout: one mask for the whole stack; False: the stack samples its own.
        input_dropout: probability for the node features.

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
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.widths = (in_channels, hidden_channels, out_channels)
        self.dropout, self.shared_dropout, self.input_dropout = dropout, shared_dropout, input_dropout
        self.node_encoder = NodeEncoder(in_channels, num_categories, hidden_channels)
        self.edge_encoder = nn.Linear(num_edge_features, hidden_channels) if num_edge_features else None
        self.stack = stack
        self.norm = nn.Identity() if norm is None else NORMS[norm](hidden_channels)
        self.head = nn.Linear(hidden_channels, out_channels)

    def extra_repr(self) -> str:
        """The widths of input, states and output, as a printed model shows them."""
        return "{} -> {} -> {}".format(*self.widths)

    def forward(
        self,
        x: Any,
        edge_index: Any = None,
        edge_attr: Tensor | None = None,
        edge_weight: Tensor | None = None,
        *,
        masks: DropoutMasks | None = None,
    ) -> Tensor:
        """Logits of every node, called as ``model(x, edge_index, edge_attr)`` or as ``model(data)``.

        Args:
            x: [N, F] node features; or a PyG ``Data`` object or batch, of which the model takes what it reads.
            edge_index: [2, E] sources and targets, a sparse [N, N] ``adj_t``, or the CSR of the incoming edges.
            edge_attr: [E, D] edge features, in the order of ``edge_index``.
            edge_weight: [E] factors of the messages, in the order of ``edge_index``; for GCN, SAGE and GAT.
            masks: dropout masks to apply; None: fresh ones in training, none otherwise.

        Returns:
            [N, T].

        Raises:
            ValueError: if something is missing, given to a model that does not read it, or not of its shape.
        """
        return cast(Tensor, self.head(self.embed(x, edge_index, edge_attr, edge_weight, masks=masks)))

    def embed(
        self,
        x: Any,
        edge_index: Any = None,
        edge_attr: Tensor | None = None,
        edge_weight: Tensor | None = None,
        *,
        masks: DropoutMasks | None = None,
    ) -> Tensor:
        """[N, C] states that the head reads; the arguments are those of ``forward``."""
        encoder = self.edge_encoder
        x, inputs, _ = read_inputs(
            self,
            *(x, edge_index, edge_attr, edge_weight),
            num_node_features=self.node_encoder.linear.in_features,
            num_edge_features=0 if encoder is None else encoder.in_features,
        )
        refuse_half(self.head.weight)
        h = self.node_encoder(dropout(x, self.input_dropout, training=self.training))
        # Autocast may have halved the states; the residual stream and its mask are kept at full precision.
        h = h if h.dtype == torch.float64 else h.float()
        # Sampled once for the whole stack: a mask per layer would make memory grow with depth.
        if masks is None:
            rates = (self.dropout if self.shared_dropout else 0.0, self.dropout)
            masks = DropoutMasks(*(shared_mask(h, rate, training=self.training) for rate in rates))
        # The encoder is handed on as weights: each layer folds its own projection into them, and no [E, C] is stored.
        edges = inputs.edges if encoder is None or inputs.edges is None else inputs.edges.project(encoder)
        h = self.stack(h, inputs._replace(edges=edges, mask=masks.stack))
        return normed_relu(self.norm, h, masks.head)
