"""RevGAT: a first and a last attention layer around a reversible stack of attention blocks."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.layers.block import NORMS, NormName, shared_mask
from zoo.layers.conv import RevGATConv
from zoo.layers.inputs import BlockInputs
from zoo.models.inputs import read_inputs
from zoo.ops.csr import CSR


class RevGATMasks(NamedTuple):
    """The dropout masks of one forward pass; None where nothing is dropped."""

    input: Tensor | None  # [N, F], of the node features
    stack: Tensor | None  # [N, C], shared by all reversible layers
    head: Tensor | None  # [N, C], before the last layer
    kept: Tensor | None  # [L, E] bool, the edges that each layer attends to, in the order of edge_index


class RevGAT(nn.Module):
    """RevGAT (arXiv 2106.07476): reversible graph attention for full-batch node classification.

    Args:
        hidden_channels: C, the width of the model: heads times the channels of a head.
        out_channels: T.
        num_layers: L, the first and the last layer included.
        first: attention layer from F to C channels.
        stack: reversible stack on C channels.
        last: attention layer from C to T channels, one head.
        norm: normalization before the last layer.
        dropout: in the stack (one mask for all layers) and before the last layer.
        input_dropout: of the node features.
        edge_dropout: share of the edges that each layer ignores in a training pass.
    """

    def __init__(
        self,
        *,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        first: RevGATConv,
        stack: nn.Module,
        last: RevGATConv,
        norm: NormName = "batch",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        edge_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.widths = (first.linear.in_features, hidden_channels, out_channels)
        self.num_layers = num_layers
        self.dropout, self.input_dropout, self.edge_dropout = dropout, input_dropout, edge_dropout
        self.first, self.stack, self.last = first, stack, last
        self.norm = NORMS[norm](hidden_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels))

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
        masks: RevGATMasks | None = None,
    ) -> Tensor:
        """Logits [N, T] of every node, called as ``model(x, edge_index)`` or as ``model(data)``.

        Arguments are those of :meth:`zoo.models.gnn.GNN.forward`, but neither features nor weights of edges are read.

        Raises:
            ValueError: if something is missing, given without being read, or not of its shape.
        """
        h, inputs = self._run(x, edge_index, edge_attr, edge_weight, masks)
        return cast(Tensor, self.last(h, inputs) + self.bias)

    def embed(
        self,
        x: Any,
        edge_index: Any = None,
        edge_attr: Tensor | None = None,
        edge_weight: Tensor | None = None,
        *,
        masks: RevGATMasks | None = None,
    ) -> Tensor:
        """[N, C] states that the last layer reads; the arguments are those of ``forward``."""
        return self._run(x, edge_index, edge_attr, edge_weight, masks)[0]

    def _run(
        self,
        x: Any,
        edge_index: Any,
        edge_attr: Tensor | None,
        edge_weight: Tensor | None,
        masks: RevGATMasks | None,
    ) -> tuple[Tensor, BlockInputs]:
        """The states before the last layer, and its inputs."""
        x, inputs, perm = read_inputs(
            self,
            *(x, edge_index, edge_attr, edge_weight),
            num_node_features=self.first.linear.in_features,
            num_edge_features=0,
        )
        masks = self._sample_masks(x, inputs.csr) if masks is None else masks
        # Masks are in the order of edge_index, while layers read edges in the order of the CSR.
        kept = masks.kept if masks.kept is None or perm is None else masks.kept[:, perm]

        # Each layer leaves out its own edges: row 0 is for the first layer, row -1 for the last.
        def inputs_of(layers: slice | int, mask: Tensor | None = None) -> BlockInputs:
            return inputs._replace(mask=mask, kept=None if kept is None else kept[layers])

        h = x if masks.input is None else x * masks.input
        h = self.first(h, inputs_of(0))
        h = self.stack(h, inputs_of(slice(1, -1), masks.stack))
        h = self.norm(h).relu()
        return h if masks.head is None else h * masks.head, inputs_of(-1)

    def _sample_masks(self, x: Tensor, csr: CSR) -> RevGATMasks:
        state = x.new_empty(x.size(0), self.last.linear.in_features)
        kept = None
        if self.training and self.edge_dropout:
            # Each layer leaves out exactly this many edges, as in the authors' code, rather than each edge at random.
            num_dropped = int(csr.num_edges * self.edge_dropout)
            kept = torch.ones(self.num_layers, csr.num_edges, dtype=torch.bool, device=x.device)
            for row in kept:
                row[torch.randperm(csr.num_edges, device=x.device)[:num_dropped]] = False
        return RevGATMasks(
            shared_mask(x, self.input_dropout, training=self.training),
            shared_mask(state, self.dropout, training=self.training),
            shared_mask(state, self.dropout, training=self.training),
            kept,
        )
