"""The shapes of the graphs that are known by name, so that models can be counted before any data are there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from zoo.spec.model import GenConvSpec, Model, RevGATSpec
from zoo.spec.recipe import GraphShape, Recipe


class Widths(NamedTuple):
    """Columns of a data set's node features and edge features, number of node categories, outputs per node."""

    node: int
    edge: int
    categories: int
    tasks: int


DATASET_WIDTHS: Mapping[str, Widths] = MappingProxyType(
    {
        "ogbn-proteins": Widths(0, 8, 8, 112),
        "ogbn-arxiv": Widths(128, 0, 0, 40),
        "ogbn-products": Widths(100, 0, 0, 47),
        "digits": Widths(64, 5, 0, 10),
        "minesweeper": Widths(7, 0, 0, 1),
        "roman-empire": Widths(300, 0, 0, 18),
        "amazon-ratings": Widths(300, 0, 0, 5),
        "tolokers": Widths(10, 0, 0, 1),
        "questions": Widths(301, 0, 0, 1),
        "cora": Widths(1433, 0, 0, 7),
        "citeseer": Widths(3703, 0, 0, 6),
        "pubmed": Widths(500, 0, 0, 3),
    }
)
_LAPLACIAN_WIDTH = 32


def input_shape(recipe: Recipe, graph: GraphShape) -> GraphShape:
    """What a recipe's model reads of its graph: under label reuse, a column more for each class, after the features."""
    if recipe.train.label_reuse is None:
        return graph
    return graph.model_copy(update={"num_node_features": graph.num_node_features + graph.num_tasks})


def known_shape(recipe: Recipe) -> GraphShape | None:
    """The shape of what a recipe's model reads; None for a graph of the user's own, whose files decide."""
    widths = DATASET_WIDTHS.get(recipe.data.dataset)
    if widths is None:
        return None
    columns = {
        "node": widths.node,
        "edge_sum": widths.edge,
        "species_one_hot": widths.categories,
        "degree": 1,
        "laplacian": _LAPLACIAN_WIDTH,
        "constant": 1,
    }
    names = recipe.data.node_features
    graph = GraphShape(
        num_node_features=sum(columns[name] for name in names),
        num_node_categories=widths.categories if "species_one_hot" in names else 0,
        num_edge_features=widths.edge if reads_edges(recipe.model) else 0,
        num_tasks=widths.tasks,
    )
    return input_shape(recipe, graph)


def reads_edges(model: Model) -> bool:
    """Whether a model reads edge features, if the graph has any."""
    conv = None if isinstance(model, RevGATSpec) else model.conv
    return isinstance(conv, GenConvSpec) and conv.edge_encoder != "none"
