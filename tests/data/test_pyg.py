import doctest
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zoo.data.pyg
from tests.pyg import NUM_NODES, EdgeIndex, HeteroData, ToSparseTensor, ToUndirected, some_data
from zoo.data.arrays import save_graph
from zoo.data.datasets import load_graph
from zoo.data.graph import Graph, directed_edges, directed_weights, with_self_loops
from zoo.data.partition import RandomParts
from zoo.data.pyg import graph_from_pyg, graph_to_pyg
from zoo.errors import DataError, ZooWarning
from zoo.ops.csr import edge_targets


def messages(graph: Graph) -> list[tuple[float, ...]]:
    """Source, target, features and weight of every message, sorted."""
    edge_index, edge_attr = directed_edges(graph)
    weight = directed_weights(graph)
    values = (edge_attr, None if weight is None else weight[:, None])
    columns = [edge_index.T.double(), *(value.double() for value in values if value is not None)]
    return sorted(map(tuple, torch.cat(columns, 1).tolist()))


def test_examples_run() -> None:
    assert doctest.testmod(zoo.data.pyg).failed == 0
    assert doctest.testmod(zoo.data.pyg).attempted > 4


def test_an_undirected_graph_is_read_as_it_is() -> None:
    data = some_data()
    graph = Graph.from_pyg(data)
    assert graph.undirected
    assert graph.num_edges == data.num_edges // 2
    expected = torch.cat([data.edge_index.T.double(), data.edge_attr.double()], 1)
    assert messages(graph) == sorted(map(tuple, expected.tolist()))
    assert graph.x is not None
    assert torch.equal(graph.x, data.x)
    assert (graph.task, graph.num_tasks) == ("multiclass", 3)
    assert torch.equal(graph.splits[0].valid, data.val_mask.nonzero().squeeze(1))


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "[N]": lambda mask: mask[:, 0],
    "[N, S]": lambda mask: mask,
    "[S, N]": lambda mask: mask.T,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["val_mask", "valid_mask"])
def test_masks_of_every_form_are_read(form: str, name: str) -> None:
    data = some_data(num_splits=4)
    masks = {key: FORMS[form](data[key]) for key in ("train_mask", "val_mask", "test_mask")}
    valid = {"val_mask": None} | {name: masks.pop("val_mask")}
    splits = graph_from_pyg(some_data(**masks, **valid)).splits
    assert len(splits) == (1 if form == "[N]" else 4)
    for index, split in enumerate(splits):
        assert torch.equal(split.train, data.train_mask[:, index].nonzero().squeeze(1))
        assert torch.equal(split.valid, data.val_mask[:, index].nonzero().squeeze(1))


def test_a_list_of_one_direction_stays_so_and_that_is_said() -> None:
    data = some_data()
    half = data.edge_index[:, : data.num_edges // 2]
    with pytest.warns(ZooWarning, match="no edge is listed in both directions"):
        graph = graph_from_pyg(some_data(edge_index=half, edge_attr=None))
    assert not graph.undirected
    assert torch.equal(graph.edge_index, half)
    graph = graph_from_pyg(some_data(edge_index=half, edge_attr=None), undirected=True)
    assert messages(graph) == sorted(map(tuple, data.edge_index.T.double().tolist()))


def test_a_directed_graph_is_read_without_a_word() -> None:
    edge_index = torch.tensor([[0, 1, 2, 3], [1, 0, 1, 3]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = graph_from_pyg(some_data(edge_index=edge_index, edge_attr=None))
    assert not graph.undirected
    assert torch.equal(graph.edge_index, edge_index)
    with pytest.raises(DataError, match=r"lists 1 edges in both directions and others in one; .*ToUndirected"):
        graph_from_pyg(some_data(edge_index=edge_index, edge_attr=None), undirected=True)


def test_direction_can_be_kept() -> None:
    data = some_data()
    graph = graph_from_pyg(data, undirected=False)
    assert not graph.undirected
    assert torch.equal(graph.edge_index, data.edge_index)


class SparseTensor:
    """The part of ``torch_sparse.SparseTensor`` that is read."""

    def __init__(self, adj_t: torch.Tensor) -> None:
        self.adj_t = adj_t

    def sparse_sizes(self) -> tuple[int, ...]:
        return tuple(self.adj_t.shape)

    def csr(self) -> tuple[torch.Tensor, torch.Tensor, None]:
        return self.adj_t.crow_indices(), self.adj_t.col_indices(), None

    def coo(self) -> None:
        raise NotImplementedError


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", ["csr", "coo", "csc", "SparseTensor", "edge_index", "EdgeIndex"])
def test_edges_in_other_forms_are_the_same(form: str) -> None:
    expected = graph_from_pyg(some_data())
    data = ToSparseTensor()(some_data())
    adj_t = data.adj_t
    if form == "SparseTensor":
        data.adj_t = SparseTensor(adj_t)
    elif form == "EdgeIndex":
        data = some_data()
        data.edge_index = EdgeIndex(data.edge_index, sparse_size=(NUM_NODES, NUM_NODES))
    elif form == "edge_index":
        data.edge_index, data.adj_t = adj_t, None
    elif form != "csr":
        data.adj_t = adj_t.to_sparse_coo() if form == "coo" else adj_t.to_sparse_csc()
    found = graph_from_pyg(data)
    assert found.undirected
    assert messages(found) == messages(expected)


def test_labels_of_every_kind_are_read() -> None:
    y = torch.arange(NUM_NODES)
    kinds = {
        "binary": y % 2,
        "multiclass": (y % 4)[:, None],
        "multilabel": torch.stack([y % 2, y % 3 == 0], 1).float(),
        "regression": torch.linspace(-3, 7, NUM_NODES),
    }
    for task, labels in kinds.items():
        assert graph_from_pyg(some_data(y=labels)).task == task
    assert graph_from_pyg(some_data(y=kinds["binary"].float())).task == "binary"
    assert graph_from_pyg(some_data(y=y % 4), task="regression").y.tolist() == (y % 4).float()[:, None].tolist()


def test_unknown_labels_may_be_nan_or_minus_one() -> None:
    y = torch.arange(NUM_NODES) % 3
    y[::7] = -1
    floats = y.float()
    floats[::7] = torch.nan
    assert torch.equal(graph_from_pyg(some_data(y=y)).y, y)
    assert torch.equal(graph_from_pyg(some_data(y=floats), task="multiclass").y, y)


def test_missing_features_stay_missing() -> None:
    graph = graph_from_pyg(some_data(x=None))
    assert graph.x is None
    assert graph.num_nodes == NUM_NODES


def test_single_columns_may_be_flat() -> None:
    data = some_data()
    graph = graph_from_pyg(some_data(x=data.x[:, 0].double(), edge_attr=data.edge_attr[:, 0].half()))
    assert graph.shape.num_node_features == graph.shape.num_edge_features == 1


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"y": None}, r"mine\.y is missing; expected a label for each node"),
    "no edges": ({"edge_index": None}, r"mine\.edge_index is missing"),
    "no mask": ({"val_mask": None}, r"mine\.val_mask is missing; expected bool .*RandomNodeSplit"),
    "label of the graph": ({"y": torch.tensor([1])}, r"mine\.y has shape \[1\]; expected a row for each node"),
    "mask": ({"train_mask": torch.ones(7, dtype=torch.bool)}, r"mine: train_mask must be \[N\].* not \[7\]"),
    "x": ({"x": torch.full((NUM_NODES, 2), torch.nan)}, "mine: x holds 60 values that are NaN"),
    "edge_attr": ({"edge_attr": torch.ones(3, 1)}, r"mine: edge_attr must be \[E, D\] with E = "),
    "ids": ({"edge_index": torch.full((2, 4), 99), "edge_attr": None}, "mine: edge_index holds 8 node ids above 29"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_errors_name_the_attribute(case: str) -> None:
    changes, message = FAULTS[case]
    with pytest.raises(DataError, match=message) as caught:
        graph_from_pyg(some_data(**changes), name="mine")
    assert "\n" not in str(caught.value)


def test_graphs_of_several_kinds_are_refused() -> None:
    data = HeteroData()
    data["a", "to", "b"].edge_index = torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(DataError, match="to_homogeneous"):
        graph_from_pyg(data)


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("y", [torch.arange(NUM_NODES) % 4, torch.linspace(0, 1, NUM_NODES), torch.eye(NUM_NODES, 4)])
def test_a_graph_comes_back(num_splits: int, y: torch.Tensor) -> None:
    categories = torch.arange(NUM_NODES) % 2
    graph = graph_from_pyg(some_data(num_splits=num_splits, y=y, categories=categories))
    data = graph.to_pyg()
    assert data.validate()
    assert data.is_undirected()
    again = graph_from_pyg(data)
    assert repr(again) == repr(graph)
    assert messages(again) == messages(graph)
    for name in ("x", "y", "categories", "edge_index", "edge_attr"):
        assert torch.equal(getattr(again, name), getattr(graph, name))
    for one, other in zip(again.splits, graph.splits, strict=True):
        assert torch.equal(one.test, other.test)


def weighted_data(**changes: Any) -> Any:
    data = some_data(**changes)
    half = torch.rand(data.num_edges // 2) + 0.5
    data.edge_weight = torch.cat([half, half])
    return data


@pytest.mark.filterwarnings("ignore:Sparse")
def test_weights_of_edges_are_read_saved_and_given_back(tmp_path: Path) -> None:
    data = weighted_data(edge_attr=None)
    graph = graph_from_pyg(data, name="own")
    assert graph.undirected
    expected = torch.cat([data.edge_index.T.double(), data.edge_weight[:, None].double()], 1)
    assert messages(graph) == sorted(map(tuple, expected.tolist()))
    assert messages(graph_from_pyg(graph.to_pyg())) == messages(graph)
    assert messages(load_graph("file", path=save_graph(graph, tmp_path / "own.npz"))) == messages(graph)
    sparse = ToSparseTensor(attr="edge_weight")(data.clone())
    assert messages(graph_from_pyg(sparse)) == messages(graph)
    data.edge_weight[0] += 1
    assert not graph_from_pyg(data).undirected
    with pytest.raises(DataError, match="its edges have weights, and self-loops would have none"):
        with_self_loops(graph)
    for weight, message in ((torch.ones(3), r"edge_weight must be float32 \[E\]"), (data.x, "must have one dimension")):
        data.edge_weight = weight
        with pytest.raises(DataError, match=message):
            graph_from_pyg(data)
    data.edge_weight = torch.full((data.num_edges,), torch.nan)
    with pytest.raises(DataError, match=f"edge_weight holds {data.num_edges} values that are NaN"):
        graph_from_pyg(data)


def test_parts_carry_the_weights_of_their_edges() -> None:
    graph = graph_from_pyg(weighted_data(), undirected=True)
    graph = replace(graph, x=torch.arange(NUM_NODES)[:, None].float())
    of_edge = {(source, target): weight for source, target, *_, weight in messages(graph)}
    for num_parts in (1, 3):
        total = 0
        for part in RandomParts(graph, num_parts, torch.Generator().manual_seed(0)):
            assert part.edge_weight is not None
            sources = part.nodes[part.csr.col.long()].tolist()
            targets = part.nodes[edge_targets(part.csr)].tolist()
            found = [of_edge[pair] for pair in zip(sources, targets, strict=True)]
            assert part.to("cpu").edge_weight.tolist() == found  # type: ignore[union-attr]
            total += len(found)
        assert (total == 2 * graph.num_edges) == (num_parts == 1)


def test_a_graph_is_saved_and_loaded(tmp_path: Path) -> None:
    for data in (some_data(num_splits=2), some_data(x=None, edge_attr=None, y=torch.linspace(0, 1, NUM_NODES))):
        graph = graph_from_pyg(data, name="own", undirected=None if data.num_edge_features else False)
        again = load_graph("file", path=save_graph(graph, tmp_path / "own.npz"))
        assert repr(again) == repr(graph)
        assert messages(again) == messages(graph)
        assert torch.equal(again.y, graph.y)
        for one, other in zip(again.splits, graph.splits, strict=True):
            assert torch.equal(one.valid, other.valid)
    with pytest.raises(DataError, match=r"only a graph without data\.self_loops"):
        save_graph(with_self_loops(replace(graph, edge_attr=None)), tmp_path / "loops.npz")


def test_self_loops_and_directed_edges_come_back() -> None:
    data = ToUndirected()(some_data(edge_index=torch.tensor([[0, 1, 2], [1, 0, 2]]), edge_attr=None))
    graph = graph_from_pyg(data)
    again = graph_from_pyg(graph_to_pyg(graph))
    assert not again.undirected
    assert messages(again) == messages(graph) == [(0, 1), (1, 0), (2, 2)]


def test_reading_needs_no_pytorch_geometric() -> None:
    code = (
        "import sys; sys.modules['torch_geometric'] = None; import types, torch, zoo.data.pyg as p;"
        "m = torch.eye(3, dtype=torch.bool);"
        "d = types.SimpleNamespace(edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.arange(3),"
        " train_mask=m[0], val_mask=m[1], test_mask=m[2]);"
        "print(p.graph_from_pyg(d).num_edges)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "1"


def test_arrays_may_stand_in_for_tensors() -> None:
    data = some_data()
    graph = graph_from_pyg(some_data(y=np.asarray(data.y), x=data.x.numpy()))
    assert messages(graph) == messages(graph_from_pyg(data))
