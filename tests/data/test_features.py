import numpy as np
import pytest
import torch

from tests.data.conftest import small_graph
from tests.data.test_partition import random_graph
from zoo.data import features
from zoo.data.features import build_features
from zoo.data.graph import Graph, directed_edges
from zoo.errors import DataError


@pytest.mark.parametrize("undirected", [True, False])
def test_edge_sum_adds_the_edges_that_leave_a_node(undirected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "EDGE_CHUNK", 64)
    graph = random_graph(undirected=undirected)
    edge_index, edge_attr = directed_edges(graph)
    assert edge_attr is not None
    expected = torch.zeros(60, 3).index_add_(0, edge_index[0].long(), edge_attr)
    built = build_features(graph, ["edge_sum"])
    torch.testing.assert_close(built.x, expected)
    assert built.num_categories == 0


def test_the_one_hot_code_comes_last(small: Graph) -> None:
    built = build_features(small, ["species_one_hot", "node", "constant"])
    assert built.x is not None
    assert built.x.dtype == torch.float32
    assert built.x[1].tolist() == [2, 3, 1, 0, 1, 0]
    assert built.num_categories == built.shape.num_node_categories == 3


def test_a_one_hot_code_beyond_memory_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small_graph(categories=torch.tensor([0, 0, 0, 0, 0, 999_998]))
    monkeypatch.setattr(features, "MAX_ONE_HOT_BYTES", 4 * 6 * 999_999 - 1)
    with pytest.raises(DataError, match=r"6 nodes in 999,999 categories would need 0\.0 GB"):
        build_features(graph, ["constant", "species_one_hot"])
    monkeypatch.setattr(features, "MAX_ONE_HOT_BYTES", 4 * 6 * 999_999)
    built = build_features(graph, ["constant", "species_one_hot"])
    assert built.shape.num_node_features == 1_000_000
    with pytest.raises(DataError, match="constant, degree, species_one_hot have 1,000,001 columns, over 1,000,000"):
        build_features(graph, ["constant", "degree", "species_one_hot"])


def test_no_names_keep_the_features_of_the_data_set(small: Graph) -> None:
    assert build_features(small, []).x is small.x


@pytest.mark.parametrize("undirected", [True, False])
def test_degree_counts_incoming_edges(undirected: bool) -> None:
    graph = random_graph(undirected=undirected)
    count = torch.bincount(directed_edges(graph)[0][1].long(), minlength=60)
    torch.testing.assert_close(build_features(graph, ["degree"]).x, count.float().log1p().unsqueeze(1))


@pytest.mark.parametrize("num_nodes", [60, 300])
def test_laplacian_columns_are_its_smoothest_eigenvectors(num_nodes: int) -> None:
    graph = random_graph(num_nodes=num_nodes, num_edges=2000)
    x = build_features(graph, ["laplacian"]).x
    assert x is not None
    adjacency = np.zeros((num_nodes, num_nodes))
    source, target = graph.edge_index.numpy()
    np.add.at(adjacency, (source, target), 1)
    adjacency = adjacency + adjacency.T
    scale = 1 / np.sqrt(adjacency.sum(1))
    operator = np.eye(num_nodes) - scale[:, None] * adjacency * scale
    smallest = np.linalg.eigvalsh(operator)[:32]
    vectors = x.double().numpy()
    np.testing.assert_allclose(operator @ vectors, vectors * smallest, atol=1e-4)
    np.testing.assert_allclose((vectors**2).mean(0), 1, rtol=1e-4)
    assert (vectors[np.abs(vectors).argmax(0), np.arange(32)] > 0).all()
    assert torch.equal(x, build_features(graph, ["laplacian"]).x)


def test_laplacian_of_a_tiny_graph_has_fewer_columns(small: Graph) -> None:
    built = build_features(small, ["laplacian"])
    assert built.x is not None
    assert built.x.shape == (6, 5)
    assert torch.isfinite(built.x).all()


@pytest.mark.parametrize(
    ("names", "lacking", "message"),
    [
        (["node"], "x", "needs node features.* use edge_sum, degree"),
        ([], "x", "needs node features"),
        (["edge_sum"], "edge_attr", "needs edge features"),
        (["node", "species_one_hot"], "categories", "needs categories"),
    ],
)
def test_missing_ingredients_are_named(names: list[str], lacking: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_features(small_graph(**{lacking: None}), names)


def test_impossible_choices_are_refused(small: Graph) -> None:
    with pytest.raises(DataError, match="unknown node feature 'nodes'; there are node, edge_sum"):
        build_features(small, ["nodes"])
    with pytest.raises(DataError, match="named twice"):
        build_features(small, ["node", "node"])
    with pytest.raises(DataError, match="another node feature beside"):
        build_features(small, ["species_one_hot"])


def test_a_single_feature_stays_where_it_is(small: Graph) -> None:
    assert build_features(small, ["node"]).x is small.x
