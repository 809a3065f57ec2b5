"""Small graphs with everything that kernels get wrong, and one call of the aggregation with all its gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.ops.csr import CSR, csr_from_edge_index
from zoo.ops.dispatch import use_backend
from zoo.ops.edges import EdgeInput
from zoo.ops.gen_aggregate import gen_aggregate

AGGREGATIONS = ("max", "mean", "sum", "softmax", "powermean")


def graph(num_nodes: int, num_edges: int, *, seed: int = 0) -> CSR:
    """Isolated nodes at the end, one row with a third of the edges, a few edges many times over."""
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    edge_index[1] %= max(num_nodes - num_nodes // 5, 1)
    edge_index[1, : num_edges // 3] = num_nodes // 2
    num_copies = num_edges // 8
    edge_index[:, num_edges - num_copies :] = edge_index[:, :1]
    return csr_from_edge_index(edge_index, num_nodes)[0]


class Case(NamedTuple):
    """What one call gets; ``grad`` is the gradient of its output."""

    csr: CSR
    x: Tensor
    edge_attr: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    factor: Tensor
    grad: Tensor

    def to(self, dtype: torch.dtype) -> Case:
        return Case(self.csr, *(None if t is None else t.to(dtype) for t in self[1:]))


def make_case(
    num_nodes: int = 50,
    num_edges: int = 700,
    C: int = 40,
    D: int = 8,
    *,
    edges: str = "projected",
    ties: bool = False,
    factor: float = 1.3,
    seed: int = 0,
) -> Case:
    """Random float32 numbers; with ``ties`` few small multiples of 1/4, which add up without rounding."""
    csr = graph(num_nodes, num_edges, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator)
        return (values * 2).round() / 4 if ties else values

    x = draw(num_nodes, C)
    edge_attr = {"projected": draw(num_edges, D), "embedded": draw(num_edges, C), "none": None}[edges]
    weight = draw(C, D) if edges == "projected" else None
    bias = draw(C) if edges != "none" else None
    # Gradients of one sign do not cancel out in the sums that are compared.
    return Case(csr, x, edge_attr, weight, bias, torch.tensor(factor), draw(num_nodes, C).abs() + 0.25)


def forward(case: Case, aggr: str, **options: object) -> Tensor:
    edges = None if case.edge_attr is None else EdgeInput(case.edge_attr, case.weight, case.bias)
    return gen_aggregate(
        *(case.x, case.csr, edges),
        **{"aggr": aggr, "temperature": case.factor, "power": case.factor, **options},
    )


def run(case: Case, backend: str, aggr: str, **options: object) -> dict[str, Tensor]:
    """The output, and the gradients of all tensors that have one.

    Kernels of softmax give edge features no gradient, so that is asked for in a second call.
    """
    found = _run(case, backend, aggr, ("x", "weight", "bias", "factor"), options)
    if case.edge_attr is not None:
        found["gradient of edge_attr"] = _run(case, backend, aggr, ("edge_attr",), options)["gradient of edge_attr"]
    return found


def _run(case: Case, backend: str, aggr: str, names: tuple[str, ...], options: dict[str, object]) -> dict[str, Tensor]:
    leaves = {name: getattr(case, name) for name in names}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items() if leaf is not None}
    with use_backend(backend):
        out = forward(case._replace(**leaves), aggr, **options)
    grads = torch.autograd.grad(out, leaves.values(), case.grad, allow_unused=True)
    found = {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}
    return {"output": out.detach(), **found}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Equal up to ``tolerance`` times the largest number of each tensor."""
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        assert found[name].shape == right.shape, name
        scale = right.abs().max() if right.numel() else torch.tensor(1.0)
        if name == "gradient of factor":
            # One number summed over all outputs, in which large parts cancel out.
            scale = scale + expected["output"].abs().sum()
        difference = (found[name].to(right.dtype) - right).abs()
        assert (difference <= tolerance * scale.clamp(min=1e-30)).all(), f"{name}: {difference.max()} of {scale}"
