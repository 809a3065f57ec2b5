"""Edge features with a folded projection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


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
