"""What every block of a stack reads besides the node states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.ops.csr import CSR


class EdgeInput(NamedTuple):
    """Edge embeddings ``attr @ weight.T + bias``, kept apart so that no [E, C] tensor is ever made.

    A linear map of the embeddings is again of this form: its matrix is multiplied into ``weight`` and ``bias``, which
    costs nothing beside touching every edge.

    Attributes:
        attr: [E, D] edge features in the order of the CSR.
        weight: [C, D], or None if ``attr`` itself is the embedding (then C = D).
        bias: [C] or None.
    """

    attr: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None

    def project(self, linear: nn.Linear) -> EdgeInput:
        """The embeddings after a linear map."""
        if self.weight is None:
            return EdgeInput(self.attr, linear.weight, linear.bias)
        # The product of two small matrices decides about every edge: full precision, also under autocast.
        with torch.autocast(self.attr.device.type, enabled=False):
            bias = linear.bias if self.bias is None else torch.addmv(linear.bias, linear.weight, self.bias)
            return EdgeInput(self.attr, linear.weight @ self.weight, bias)

    def channels(self, start: int, stop: int) -> EdgeInput:
        """The slice ``start:stop`` of the channels."""
        if self.weight is None:
            return EdgeInput(self.attr[:, start:stop])
        return EdgeInput(self.attr, self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


class BlockInputs(NamedTuple):
    """The graph and the randomness that all blocks of a stack share.

    Attributes:
        csr: incoming edges of every node.
        edges: edge embeddings of C channels, or None.
        mask: [N, C] dropout mask shared by all layers, scaled by 1 / (1 - p); None outside training.
        kept: [L, E] bool, the edges each layer attends to; [E] inside a block; None: all.
    """

    csr: CSR
    edges: EdgeInput | None = None
    mask: Tensor | None = None
    kept: Tensor | None = None

    def group(self, index: int, num_groups: int, *, slice_edges: bool) -> BlockInputs:
        """The inputs of one coupling group.

        Args:
            index: which group.
            num_groups: G.
            slice_edges: whether a group reads its slice of the edge channels, or all of them.
        """
        edges, mask = self.edges, self.mask
        if mask is not None:
            width = mask.size(1) // num_groups
            mask = mask[:, index * width : (index + 1) * width]
        if edges is not None and slice_edges:
            width = (edges.attr if edges.weight is None else edges.weight.t()).size(1) // num_groups
            edges = edges.channels(index * width, (index + 1) * width)
        return self._replace(edges=edges, mask=mask)

    def layer(self, index: int) -> BlockInputs:
        """The inputs of one layer."""
        return self if self.kept is None else self._replace(kept=self.kept[index])
