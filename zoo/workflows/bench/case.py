"""One case of a benchmark: which model does what on which graph."""

from __future__ import annotations

import json
import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from zoo.data.graph import EDGE_CHUNK, Graph, Split
from zoo.errors import RunError
from zoo.models.factory import build_model
from zoo.spec.base import Spec
from zoo.spec.model import GenConvSpec, MaxAggr, RevSpec
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shape import GraphShape
from zoo.spec.shipped import recipe_path
from zoo.workflows.bench.peers import PyGModel
from zoo.workflows.graphs import EdgePrecision, recipe_graph

Implementation = Literal["zoo", "zoo_plain", "pyg", "pyg_plain"]
Work = Literal["train", "evaluate"]

_NUM_CATEGORIES, _NUM_EDGE_FEATURES, _NUM_TASKS = 8, 8, 112
# The shares of ogbn-proteins' nodes: 86,619 to learn from, 21,236 to choose by, 24,679 to report on.
_TRAIN_SHARE, _VALID_SHARE = 0.654, 0.160
# Of the edge features of ogbn-proteins, about this many in 1,000 say "no evidence".
_NO_EVIDENCE = 600


class Case(Spec):
    """What is measured; the defaults are the training steps of 14 layers on one of ten parts of ogbn-proteins.

    Attributes:
        implementation: this package's model, reversible or under plain autograd; the same architecture from PyG's
            GENConv and GroupAddRev, reversible or not.
        work: training steps with the optimizer, or the evaluation of the whole graph.
        recipe: a shipped name or a file: the model, the loss and the optimizer.
        settings: ``KEY=VALUE`` overrides of the recipe.
        num_layers: L; overrides the recipe's.
        channels: C; overrides the recipe's.
        num_nodes: of the synthetic graph; None: the recipe's own data are read.
        num_edges: of the synthetic graph, directed; None: the recipe's own data are read.
        num_parts: P; overrides the recipe's in training and is the P of an evaluation.
        num_steps: steps that count.
        capture: replay CUDA graphs of one layer, on a GPU.
        edge_precision: of the edge features on a GPU.
        seed: of the weights and the synthetic graph.
    """

    implementation: Implementation = "zoo"
    work: Work = "train"
    recipe: str = "rev_deep"
    settings: tuple[str, ...] = ()
    num_layers: int = Field(default=14, ge=1)
    channels: int = Field(default=80, ge=1)
    num_nodes: int | None = Field(default=13_253, ge=1)
    num_edges: int | None = Field(default=791_000, ge=0)
    num_parts: int = Field(default=1, ge=1)
    num_steps: int = Field(default=3, ge=1)
    capture: bool = False
    edge_precision: EdgePrecision = "fp32"
    seed: int = 0


def read_case_recipe(case: Case) -> Recipe:
    """The recipe of a case, at the sizes of the case.

    Raises:
        ZooError: if there is no such recipe, or it has no such sizes.
    """
    sizes = [
        f"model.num_layers={case.num_layers}",
        f"model.hidden_channels={case.channels}",
        f"train.partition={json.dumps({'type': 'random', 'num_parts': case.num_parts})}",
    ]
    if case.implementation == "zoo_plain":
        sizes.append("model.reversible=false")
    return read_recipe(recipe_path(case.recipe), [*sizes, *case.settings])


def case_graph(case: Case, recipe: Recipe) -> tuple[Graph, Split]:
    """The graph of a case: the recipe's own, or a synthetic one."""
    if case.num_nodes is None or case.num_edges is None:
        return recipe_graph(recipe)
    graph = draw_graph(case.num_nodes, case.num_edges, case.seed)
    return graph, graph.splits[0]


def build(case: Case, recipe: Recipe, shape: GraphShape) -> nn.Module:
    """The model of a case.

    Raises:
        RunError: if PyG's side is asked for and the recipe's model is not the one that it is written for.
    """
    torch.manual_seed(case.seed)
    if not case.implementation.startswith("pyg"):
        return build_model(recipe.model, shape)
    conv = GenConvSpec(type="gen", aggr=MaxAggr(type="max"), edge_encoder="per_layer")
    dropout = recipe.model.dropout
    known = RevSpec(
        type="rev", num_layers=case.num_layers, hidden_channels=case.channels, dropout=dropout, conv=conv, num_groups=2
    )
    if recipe.model != known:
        raise RunError(f"{recipe.name}: PyG's side is written for models like rev_deep's; this recipe's is another")
    return PyGModel(case.num_layers, case.channels, shape, dropout=dropout, reversible=case.implementation == "pyg")


def draw_graph(num_nodes: int, num_edges: int, seed: int) -> Graph:
    """A synthetic graph with the form of ogbn-proteins: uneven degrees, edge features in thousandths, 112 labels.

    At the true size it takes half a minute and 2 GB. Nothing is to be learned from it.

    Args:
        num_nodes: N.
        num_edges: directed; the graph is undirected, so an odd number loses one.
        seed: the same one draws the same graph.
    """
    generator = torch.Generator().manual_seed(seed)
    mass = torch.exp(1.1 * torch.randn(num_nodes, generator=generator, dtype=torch.float64)).cumsum(0)
    stored = num_edges // 2
    edge_index = torch.empty(2, stored, dtype=torch.int32)
    edge_attr = torch.empty(stored, _NUM_EDGE_FEATURES)
    for start in range(0, stored, EDGE_CHUNK):
        rows = slice(start, min(start + EDGE_CHUNK, stored))
        size = rows.stop - rows.start
        at = torch.rand(2, size, generator=generator, dtype=torch.float64).mul_(mass[-1])
        edge_index[:, rows] = torch.searchsorted(mass, at, right=True, out_int32=True).clamp_(max=num_nodes - 1)
        # One draw decides whether there is evidence and how much.
        top = round(1000 * 1000 / (1000 - _NO_EVIDENCE))
        score = torch.randint(0, top, (size, _NUM_EDGE_FEATURES), generator=generator, dtype=torch.int16)
        edge_attr[rows] = score.sub_(top - 1001).clamp_(min=1)
    edge_attr /= 1000
    categories = torch.randint(_NUM_CATEGORIES, (num_nodes,), generator=generator)
    one_hot = nn.functional.one_hot(categories, _NUM_CATEGORIES).float()
    x = torch.cat([torch.rand(num_nodes, _NUM_EDGE_FEATURES, generator=generator), one_hot], 1)
    y = (torch.rand(num_nodes, _NUM_TASKS, generator=generator) < 1 / math.e).float()
    first, second = (math.ceil(share * num_nodes) for share in (_TRAIN_SHARE, _TRAIN_SHARE + _VALID_SHARE))
    nodes = torch.arange(num_nodes)
    return Graph(
        name="synthetic",
        edge_index=edge_index,
        undirected=True,
        num_nodes=num_nodes,
        x=x,
        edge_attr=edge_attr,
        y=y,
        splits=(Split(nodes[:first], nodes[first:second], nodes[second:]),),
        task="multilabel",
        num_tasks=_NUM_TASKS,
        num_categories=_NUM_CATEGORIES,
    )
