"""What a backend computes: six functions on tensors, without autograd."""

from __future__ import annotations

import importlib
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from zoo.ops.csr import CSR


class Messages(NamedTuple):
    """What the message of edge e = (j, i) is made of: relu(x_j + a_e) + eps.

    Attributes:
        x: [N, C] node features.
        csr: N rows, E edges.
        edge_attr: [E, D] with a weight, then a_e = weight @ edge_attr_e + bias; [E, C] without one, then a_e is
            edge_attr_e + bias; or None.
        weight: [C, D] or None.
        bias: [C] or None.
        eps: added to every message.
    """

    x: Tensor
    csr: CSR
    edge_attr: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float


class Gradients(NamedTuple):
    """Gradients with the shapes of what they belong to; ``factor`` is the temperature or the power."""

    x: Tensor
    edge_attr: Tensor | None
    weight: Tensor | None
    bias: Tensor
    factor: Tensor | None


# Imported on first use: a backend may need what is not installed, and costs time to import.
_MODULES = {
    "chunked": "zoo.ops.gen_aggregate.chunked",
    "numba": "zoo.ops.gen_aggregate.cpu",
    "triton": "zoo.ops.gen_aggregate.cuda",
}


def load_backend(name: str) -> Backend:
    """The module of that name, which has the functions of ``Backend``."""
    return cast(Backend, importlib.import_module(_MODULES[name]))


class Backend(Protocol):
    """The functions of chunked.py, cpu.py and cuda.py."""

    def max_forward(self, messages: Messages, *, with_arg: bool) -> tuple[Tensor, Tensor | None]:
        """[N, C] largest messages, zero for empty rows; [N, C] int32 the winning edges, -1 where no gradient flows."""

    def max_backward(
        self,
        grad: Tensor,
        arg: Tensor,
        csr: CSR,
        edge_attr: Tensor | None,
        weight: Tensor | None,
        *,
        with_edges: bool,
    ) -> Gradients:
        """Gradients of the maxima; that of ``edge_attr`` only if asked for."""

    def sum_forward(self, messages: Messages, power: Tensor | None) -> Tensor:
        """[N, C] sums of the messages, or of clamp(message, 1e-7, 10) ** power; zero for empty rows."""

    def sum_backward(self, grad: Tensor, messages: Messages, power: Tensor | None, *, with_edges: bool) -> Gradients:
        """Gradients of the sums."""

    def softmax_forward(self, messages: Messages, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C] means weighted by softmax(temperature * message); [N, C] logs of the sums of exponentials."""

    def softmax_backward(
        self,
        grad: Tensor,
        out: Tensor,
        logsum: Tensor,
        messages: Messages,
        temperature: Tensor,
        *,
        detach_weights: bool,
        with_edges: bool,
    ) -> Gradients:
        """Gradients of the weighted means; with ``detach_weights`` as if the weights were constants."""
