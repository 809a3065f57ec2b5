"""A convolution is added by its spec, its layer and a row of ``CONVS``, as CONTRIBUTING.md says."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from zoo.layers.conv import CONVS
from zoo.layers.inputs import BlockInputs
from zoo.models.factory import build_model
from zoo.spec.conv import ConvSpec, Linear
from zoo.spec.model import DeqSpec, ResSpec, RevSpec
from zoo.spec.shape import GraphShape

SHAPE = GraphShape(num_node_features=7, num_tasks=5)


class GINConvSpec(ConvSpec):
    """The graph isomorphism network (arXiv 1810.00826)."""

    type: Literal["gin"]
    learn_epsilon: bool = True

    def linear_maps(self, channels: int, embedding_channels: int) -> list[Linear]:
        return [Linear(channels, 2 * channels), Linear(2 * channels, channels)]

    def num_other_parameters(self, channels: int) -> int:
        return int(self.learn_epsilon)


class GINConv(nn.Module):
    """MLP((1 + epsilon) x_i + sum_j x_j)."""

    def __init__(self, channels: int, *, learn_epsilon: bool) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.zeros(())) if learn_epsilon else None
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        csr = inputs.csr
        rows = torch.repeat_interleave(torch.arange(csr.num_nodes), csr.rowptr.diff())
        total = torch.zeros_like(x).index_add(0, rows, x[csr.col.long()])
        return self.mlp(total + x if self.epsilon is None else total + (1 + self.epsilon) * x)


class GINRev(RevSpec):
    conv: GINConvSpec  # type: ignore[assignment]


class GINRes(ResSpec):
    conv: GINConvSpec  # type: ignore[assignment]


class GINDeq(DeqSpec):
    conv: GINConvSpec  # type: ignore[assignment]


CONV = GINConvSpec(type="gin")
SPECS = [
    GINRev(type="rev", num_layers=4, hidden_channels=8, conv=CONV),
    GINRes(type="res", num_layers=4, num_distinct_layers=2, hidden_channels=8, conv=CONV),
    GINDeq(type="deq", hidden_channels=8, conv=CONV, weight_norm="weight"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.type)
def test_a_convolution_from_outside_builds_counts_and_trains(spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONVS, "gin", GINConv)
    torch.manual_seed(0)
    model = build_model(spec, SHAPE)
    assert sum(p.numel() for p in model.parameters()) == spec.num_parameters(SHAPE)
    x, edge_index, y = torch.randn(9, 7), torch.randint(9, (2, 30)), torch.randint(5, (9,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(x, edge_index), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_contributing_lists_the_files_of_a_convolution() -> None:
    root = Path(__file__).parents[2]
    section = (
        (root / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("### A convolution\n")[2].partition("\n###")[0]
    )
    for path in ("zoo/spec/conv.py", "zoo/layers/conv.py"):
        assert f"`{path}`" in section
        assert (root / path).is_file()
    assert "`CONVS`" in section
