from typing import Any, get_args

import numpy as np
import pytest
import torch

from zoo.data.datasets import load_graph
from zoo.data.generated import GENERATED, NUM_CLASSES
from zoo.data.graph import Graph, directed_edges, validate
from zoo.errors import DataError, RecipeError
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import GeneratedName, known_shape
from zoo.workflows.graphs import recipe_graph

SMALL = {"range": 6, "num_nodes": 300}
TRANSFER = [name for name in GENERATED if name.startswith("graph-transfer-")]
NO_FEATURES = ("eccentricity", "diameter", "road")


def rows(graph: Graph) -> list[list[int]]:
    """The neighbors of each node."""
    neighbors: list[list[int]] = [[] for _ in range(graph.num_nodes)]
    for source, target in directed_edges(graph)[0].T.tolist():
        neighbors[target].append(source)
    return neighbors


def hops(neighbors: list[list[int]], source: int) -> dict[int, int]:
    """Hops to every node that can be reached, by breadth-first search."""
    found, border = {source: 0}, [source]
    while border:
        border = [
            far for near in border for far in neighbors[near] if found.setdefault(far, found[near] + 1) > found[near]
        ]
        border = list(dict.fromkeys(border))
    return found


def test_every_generated_data_set_has_a_maker() -> None:
    assert set(GENERATED) == set(get_args(GeneratedName))


@pytest.mark.parametrize("name", GENERATED)
def test_the_arguments_alone_decide_the_graph(name: str) -> None:
    one, same, other = (load_graph(name, generated={**SMALL, "seed": seed}) for seed in (1, 1, 2))
    validate(one)
    assert torch.equal(one.edge_index, same.edge_index)
    assert torch.equal(one.y, same.y)
    assert all(
        torch.equal(a, b) for a, b in zip(vars(one.splits[0]).values(), vars(same.splits[0]).values(), strict=True)
    )
    # Nothing is random about the rings.
    assert (name in TRANSFER) == (one.edge_index.shape == other.edge_index.shape and torch.equal(one.y, other.y))


@pytest.mark.parametrize("name", GENERATED)
def test_the_shape_is_known_before_the_data(name: str) -> None:
    features = '["degree"]' if name in NO_FEATURES else '["node"]'
    regression = name in ("shortest-path", "eccentricity", "diameter")
    recipe = read_recipe(
        "small_rev",
        [
            f"data.dataset={name}",
            f"data.node_features={features}",
            "data.generated.num_nodes=300",
            f"train.loss={'mse' if regression else 'cross_entropy'}",
        ],
    )
    assert recipe.to_json()["data"]["generated"] == {"range": 16, "num_nodes": 300, "seed": 0}
    assert recipe_graph(recipe)[0].shape == known_shape(recipe)


@pytest.mark.parametrize("name", TRANSFER)
@pytest.mark.parametrize("distance", [2, 3, 7])
def test_the_class_is_as_far_away_as_asked(name: str, distance: int) -> None:
    graph = load_graph(name, generated={"range": distance, "num_nodes": 400})
    assert graph.x is not None
    neighbors = rows(graph)
    sources, targets = (graph.x[:, NUM_CLASSES + i].nonzero().squeeze(1).tolist() for i in (0, 1))
    assert (graph.y >= 0).nonzero().squeeze(1).tolist() == targets
    for source, target in zip(sources, targets, strict=True):
        assert hops(neighbors, source)[target] == distance
        assert graph.x[source, :NUM_CLASSES].argmax() == graph.y[target]
    assert int(graph.x[:, :NUM_CLASSES].count_nonzero()) == len(sources)
    split = graph.splits[0]
    for nodes in (split.train, split.valid, split.test):
        assert torch.bincount(graph.y[nodes], minlength=NUM_CLASSES).unique().numel() == 1
    assert len(split.train) + len(split.valid) + len(split.test) == len(targets)
    if name.endswith("crossed-ring") and distance > 3:
        assert max(map(len, neighbors)) == 4


@pytest.mark.parametrize("name", ["shortest-path", "eccentricity", "diameter"])
def test_hops_are_those_of_a_breadth_first_search(name: str) -> None:
    graph = load_graph(name, generated={"range": 9, "num_nodes": 300, "seed": 3})
    neighbors = rows(graph)
    found = [hops(neighbors, node) for node in range(graph.num_nodes)]
    far = [max(each.values()) for each in found]
    assert max(far) <= 9
    if name == "shortest-path":
        assert graph.x is not None
        expected = [hop for source in graph.x[:, 0].nonzero().squeeze(1).tolist() for hop in found[source].values()]
        assert sorted(expected) == sorted(graph.y[:, 0].tolist())
        assert all(graph.x[node] == (graph.y[node] == 0) for node in range(graph.num_nodes))
    elif name == "eccentricity":
        assert graph.y[:, 0].tolist() == far
    else:
        assert graph.y[:, 0].tolist() == [max(far[node] for node in each) for each in found]
    # A small graph lies in one set as a whole.
    split = graph.splits[0]
    for nodes in (split.train, split.valid, split.test):
        inside = set(nodes.tolist())
        assert all(set(found[node]) <= inside for node in inside)


def test_the_label_of_a_junction_ranks_how_far_it_sees() -> None:
    graph = load_graph("road", generated={"range": 5, "num_nodes": 150})
    assert graph.edge_attr is not None
    neighbors, reach = rows(graph), np.zeros(graph.num_nodes)
    edges, lengths = directed_edges(graph)
    assert lengths is not None
    for node in range(graph.num_nodes):
        near = {each for each, hop in hops(neighbors, node).items() if hop <= 5}
        way = {node: 0.0}
        for _ in near:
            for (source, target), length in zip(edges.T.tolist(), lengths[:, 0].tolist(), strict=True):
                if source in way and target in near:
                    way[target] = min(way.get(target, np.inf), way[source] + length)
        reach[node] = max(way.values())
    assert len(hops(neighbors, 0)) == 150
    assert graph.y[np.argsort(reach)].tolist() == sorted(graph.y.tolist())
    assert torch.bincount(graph.y).tolist() == [15] * 10


def test_a_larger_range_gives_other_labels_on_the_same_roads() -> None:
    near, far = (load_graph("road", generated={"range": hops, "num_nodes": 150}) for hops in (4, 8))
    assert torch.equal(near.edge_index, far.edge_index)
    assert torch.equal(near.splits[0].test, far.splits[0].test)
    assert not torch.equal(near.y, far.y)


@pytest.mark.parametrize(
    ("name", "generated", "message"),
    [
        ("road", {"range": 1}, "road: generated: range: "),
        ("road", {"rang": 4}, "road: generated: rang: unknown key"),
        ("cora", {"range": 4}, "'generated' goes with graph-transfer-line, .* not with 'cora'"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, generated: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_graph(name, generated=generated)


def test_other_data_have_no_range() -> None:
    with pytest.raises(RecipeError, match=r"data.generated: it goes with graph-transfer-line, .* not with 'digits'"):
        read_recipe("small_rev", ["data.generated.range=5"])
    ring = read_recipe("small_rev", ["data.dataset=graph-transfer-ring", "data.generated.range=5"])
    assert read_recipe(ring, {"data.dataset": "digits"}).data.generated is None
