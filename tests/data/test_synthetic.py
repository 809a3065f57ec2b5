from pathlib import Path

import numpy as np
import pytest
import torch

from zoo.data.features import build_features
from zoo.data.graph import Graph, directed_edges
from zoo.data.metrics import rocauc
from zoo.data.ogb import load_ogb
from zoo.data.synthetic import (
    FULL_NODES,
    SPECIES,
    csv_ints,
    csv_milli,
    species_sizes,
    synthetic_graph,
    write_synthetic_proteins,
)
from zoo.errors import DataError
from zoo.workflows.baseline import linear_baseline


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    one, same = (write_synthetic_proteins(tmp_path / name, 80, seed=3) for name in "ab")
    other = write_synthetic_proteins(tmp_path / "c", 80, seed=4)
    assert content(one) == content(same)
    assert content(one)["raw/edge.csv.gz"] != content(other)["raw/edge.csv.gz"]


def test_sizes_follow_the_real_data_set(written_ogb: Path) -> None:
    assert species_sizes(FULL_NODES).tolist() == [nodes for _, nodes, _ in SPECIES]
    assert sum(nodes for _, nodes, split in SPECIES if split == "train") == 86_619
    graph = load_ogb("ogbn-proteins", root=written_ogb)
    assert (graph.num_nodes, graph.num_edges) == (300, 3000)
    split = graph.splits[0]
    # Splits are blocks of ids, and links of most kinds stay inside a species.
    assert torch.equal(torch.cat([split.train, split.valid, split.test]), torch.arange(300))
    assert graph.categories is not None
    source, target = graph.edge_index.long()
    assert bool((source < target).all())
    inside = graph.categories[source] == graph.categories[target]
    assert graph.edge_attr is not None
    homologous = graph.edge_attr[:, 0] > 0.5
    assert bool((inside | homologous).all())
    assert not bool((inside & homologous).any())


def test_no_evidence_is_one_thousandth_and_every_edge_has_some(written_ogb: Path) -> None:
    edge_attr = load_ogb("ogbn-proteins", root=written_ogb).edge_attr
    assert edge_attr is not None
    assert float(edge_attr.min()) == pytest.approx(0.001)
    assert float(edge_attr.max()) <= 1
    assert bool((edge_attr > 0.0011).any(1).all())


@pytest.fixture(scope="module")
def proteins(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    root = tmp_path_factory.mktemp("learnable")
    write_synthetic_proteins(root, 2000, mean_degree=60)
    return load_ogb("ogbn-proteins", root=root)


def neighbor_mean(graph: Graph, x: torch.Tensor, strong_only: bool) -> torch.Tensor:
    """[N, F] mean feature of the neighbors over all or the strong edges."""
    edge_index, edge_attr = directed_edges(graph)
    assert edge_attr is not None
    if strong_only:
        keep = (edge_attr[:, 5] > 0.3) | (edge_attr[:, 6] > 0.5) | (edge_attr[:, 0] > 0.1)
        edge_index = edge_index[:, keep]
    source, target = edge_index.long()
    count = torch.bincount(target, minlength=graph.num_nodes).clamp(min=1).unsqueeze(1)
    return torch.zeros_like(x).index_add_(0, target, x[source]) / count


def test_labels_need_several_messages_over_the_right_edges(proteins: Graph) -> None:
    """The labels of train nodes, spread over edges, tell those of a species without any."""
    split = proteins.splits[0]
    alone = linear_baseline(build_features(proteins, ["edge_sum"]), split, "rocauc")["test"]
    scores = {}
    for strong_only in (False, True):
        h = torch.zeros_like(proteins.y)
        h[split.train] = proteins.y[split.train] - proteins.y[split.train].mean(0)
        for hop in (1, 2, 3):
            h = neighbor_mean(proteins, h, strong_only)
            scores[strong_only, hop] = rocauc(proteins.y[split.test], h[split.test])
    best_of_all = max(scores[False, hop] for hop in (1, 2, 3))
    assert alone < 0.8
    assert scores[True, 3] > alone + 0.1
    assert scores[True, 3] > scores[True, 1] + 0.1
    assert scores[True, 3] > best_of_all + 0.02


def test_numbers_are_written_as_they_read(tmp_path: Path) -> None:
    values = np.array([[0, 7], [10, 99], [100, 12345]])
    assert csv_ints(values) == b"0,7\n10,99\n100,12345\n"
    assert csv_ints(np.zeros((2, 1), np.int64)) == b"0\n0\n"
    assert csv_milli(np.array([[0.001, 1.0], [0.0, 0.045]], np.float32)) == b"0.001,1.000\n0.000,0.045\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_nodes": 63}, "at least 64 nodes, not 63"),
        ({"seed": -1}, "seed must not be negative"),
        ({"num_nodes": 100, "mean_degree": 26}, r"the mean degree must lie in 1 \.\. 25"),
        ({"mean_degree": float("nan")}, "the mean degree must be a number"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_synthetic_proteins(tmp_path, **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_existing_data_are_never_overwritten(tmp_path: Path) -> None:
    write_synthetic_proteins(tmp_path, 64)
    with pytest.raises(DataError, match="exists already"):
        write_synthetic_proteins(tmp_path, 64)


def test_the_graph_is_the_one_that_is_written(written_ogb: Path) -> None:
    written, graph = load_ogb("ogbn-proteins", root=written_ogb), synthetic_graph(300, 3000)
    assert torch.equal(written.edge_index.long(), graph.edge_index.long())
    assert written.edge_attr is not None
    assert graph.edge_attr is not None
    assert torch.allclose(written.edge_attr, graph.edge_attr)
    assert torch.equal(written.y, graph.y)
    assert torch.equal(written.splits[0].test, graph.splits[0].test)
    assert graph.y.mean(0).min() > 0


def test_degrees_are_uneven_and_no_pair_occurs_twice() -> None:
    graph = synthetic_graph(2000, 40_000)
    assert torch.unique(graph.edge_index, dim=1).shape[1] == graph.num_edges == 40_000
    degree = torch.bincount(graph.edge_index.flatten().long(), minlength=2000)
    assert degree.max() > 5 * degree.float().mean()
    assert degree.float().median() < 0.8 * degree.float().mean()


def test_even_the_densest_graph_has_as_many_edges_as_asked_for() -> None:
    assert synthetic_graph(64, 64 * 16 // 2).num_edges == 512
