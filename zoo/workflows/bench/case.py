"""One case of a benchmark: which model is trained on which graph."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from zoo.models.factory import build_model
from zoo.ops.csr import CSR
from zoo.spec.base import Spec
from zoo.spec.model import GenConvSpec, MaxAggr, RevSpec
from zoo.spec.recipe import GraphShape
from zoo.workflows.bench.peers import PyGModel

NUM_EDGE_FEATURES = 8
SHAPE = GraphShape(num_node_features=16, num_node_categories=8, num_edge_features=NUM_EDGE_FEATURES, num_tasks=112)

Implementation = Literal["zoo", "zoo_plain", "pyg", "pyg_plain"]


class Case(Spec):
    """A training step to measure; the defaults are one of ten parts of ogbn-proteins.

    Attributes:
        implementation: this package's model, reversible or under plain autograd; the same architecture from PyG's
            GENConv and GroupAddRev, reversible or not.
        num_edges: directed edges.
    """

    implementation: Implementation = "zoo"
    num_layers: int = Field(default=14, ge=1)
    channels: int = Field(default=80, ge=2)
    num_nodes: int = Field(default=13_253, ge=1)
    num_edges: int = Field(default=791_000, ge=0)
    seed: int = 0


def build(case: Case, device: torch.device) -> nn.Module:
    """The model of a case, with the ends and the head of the models for ogbn-proteins."""
    torch.manual_seed(case.seed)
    if case.implementation.startswith("pyg"):
        reversible = case.implementation == "pyg"
        return PyGModel(case.num_layers, case.channels, SHAPE, reversible=reversible).to(device)
    spec = RevSpec(
        type="rev",
        num_layers=case.num_layers,
        hidden_channels=case.channels,
        dropout=0.1,
        conv=GenConvSpec(type="gen", aggr=MaxAggr(type="max"), edge_encoder="per_layer"),
        reversible=case.implementation == "zoo",
    )
    return build_model(spec, SHAPE).to(device)


def draw_part(num_nodes: int, num_edges: int, seed: int, device: torch.device) -> tuple[Tensor, CSR, Tensor]:
    """A synthetic part of ogbn-proteins: power-law degrees, edge features in thousandths, mostly "no evidence".

    Returns:
        [N, F] node features, the incoming edges, [E, 8] edge features in row order.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.exp(1.1 * torch.randn(num_nodes, generator=generator))
    target = torch.multinomial(weight, num_edges, replacement=True, generator=generator).sort().values
    source = torch.multinomial(weight, num_edges, replacement=True, generator=generator)
    rowptr = torch.searchsorted(target, torch.arange(num_nodes + 1))
    score = torch.randint(1, 1001, (num_edges, NUM_EDGE_FEATURES), generator=generator)
    evidence = torch.rand(num_edges, NUM_EDGE_FEATURES, generator=generator) < 0.4
    attr = torch.where(evidence, score, 1).float() / 1000
    x = torch.rand(num_nodes, SHAPE.num_node_features, generator=generator)
    return x.to(device), CSR(rowptr, source.int()).to(device), attr.to(device)


def draw_labels(num_nodes: int, seed: int, device: torch.device) -> Tensor:
    """[N, T] zeros and ones."""
    generator = torch.Generator().manual_seed(seed + 1)
    return (torch.rand(num_nodes, SHAPE.num_tasks, generator=generator) < 1 / math.e).float().to(device)
