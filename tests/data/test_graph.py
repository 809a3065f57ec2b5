import pytest
import torch

from tests.data.conftest import small_graph
from zoo.data.graph import Graph, Part, Split, directed_edges, validate
from zoo.data.partition import RandomParts
from zoo.errors import DataError

NAN = float("nan")


def test_a_whole_graph_is_valid(small: Graph) -> None:
    validate(small)


def test_a_graph_with_one_output_per_label_is_valid() -> None:
    y = torch.tensor([[0.0, 1.0], [1.0, NAN], [0.0, 0.0], [1.0, 1.0], [NAN, 1.0], [0.0, 0.0]])
    validate(small_graph(y=y, task="multilabel", num_tasks=2))
    validate(small_graph(y=torch.tensor([0, 1, 0, 1, 1, -1]), task="binary", num_tasks=1))


def test_shape_counts_inputs_and_outputs(small: Graph) -> None:
    shape = small.shape
    assert (shape.num_node_features, shape.num_edge_features, shape.num_tasks) == (2, 2, 3)
    assert shape.num_node_categories == 0
    assert small_graph(edge_attr=None).shape.num_edge_features == 0


def test_shape_without_node_features_is_an_error() -> None:
    with pytest.raises(DataError, match="no node features"):
        _ = small_graph(x=None).shape


def test_moving_reaches_every_tensor(small: Graph) -> None:
    moved = small.to("meta")
    for name in ("edge_index", "x", "categories", "edge_attr", "y"):
        assert getattr(moved, name).device.type == "meta"
    assert all(ids.device.type == "meta" for s in moved.splits for ids in (s.train, s.valid, s.test))
    part = next(iter(RandomParts(small, 1, torch.Generator().manual_seed(0)))).to("meta")
    assert isinstance(part, Part)
    assert part.edge_attr is not None
    for tensor in (part.nodes, part.x, part.csr.rowptr, part.csr.col, part.edge_attr):
        assert tensor.device.type == "meta"


def test_an_undirected_edge_is_followed_by_its_inverse(small: Graph) -> None:
    edge_index, edge_attr = directed_edges(small)
    assert edge_attr is not None
    assert edge_index[:, :4].tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert edge_attr[:4].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
    directed = small_graph(undirected=False)
    assert directed_edges(directed)[0] is directed.edge_index


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values)


FAULTS = {
    "negative": ({"edge_index": torch.tensor([[0, -1], [1, -2]]), "edge_attr": None}, "2 negative node ids"),
    "beyond": ({"edge_index": torch.tensor([[0, 6], [1, 2]]), "edge_attr": None}, "1 node ids above 5"),
    "float edges": ({"edge_index": torch.tensor([[0.0], [1.0]]), "edge_attr": None}, "int32 or int64 node ids"),
    "edge shape": ({"edge_index": torch.zeros(7, 2, dtype=torch.int64)}, r"edge_index must be \[2, E\]"),
    "edge_attr length": ({"edge_attr": torch.zeros(6, 2)}, r"E = 7, not \[6, 2\]"),
    "edge_attr NaN": ({"edge_attr": torch.full((7, 2), NAN)}, "edge_attr holds 14 values that are NaN"),
    "edge_attr dtype": ({"edge_attr": torch.zeros(7, 2, dtype=torch.float64)}, "edge_attr must be float32"),
    "x length": ({"x": torch.zeros(5, 2)}, "N = 6"),
    "x infinite": ({"x": torch.tensor([[float("inf")]] + [[0.0]] * 5)}, "x holds 1 values"),
    "x dtype": ({"x": torch.zeros(6, 2, dtype=torch.int64)}, "x must be float32"),
    "x without columns": ({"x": torch.zeros(6, 0)}, "x has no columns"),
    "x too wide": ({"x": torch.zeros(1).expand(6, 1_000_001)}, "x has 1,000,001 columns, more than 1,000,000"),
    "edge_attr without columns": ({"edge_attr": torch.zeros(7, 0)}, "edge_attr has no columns"),
    "edge_attr too wide": ({"edge_attr": torch.zeros(7, 65_537)}, "edge_attr has 65,537 columns, more than 65,536"),
    "one-hot wider than x": ({"num_categories": 3}, "only 2 columns"),
    "categories negative": ({"categories": torch.tensor([0, -1, 0, 0, 0, 0])}, "1 negative values"),
    "categories shape": ({"categories": torch.zeros(5, dtype=torch.int64)}, "categories must be int64"),
    "categories too large": (
        {"categories": torch.tensor([0, 10**9, 10**6, 999_999, 0, 0])},
        "categories holds 2 values above 999,999",
    ),
    "classes too many": (
        {"y": torch.tensor([0, 10**12, 2_000_000, 999_999, 1, -1]), "num_tasks": 10**12 + 1},
        "y holds 2 labels above 999,999",
    ),
    "labels too wide": (
        {"task": "multilabel", "num_tasks": 1_000_001, "y": torch.zeros(1).expand(6, 1_000_001)},
        "y has 1,000,001 columns, more than 1,000,000",
    ),
    "label too large": ({"y": torch.tensor([0, 1, 3, 0, 1, -1])}, r"1 labels outside 0 \.\. 2"),
    "label too small": ({"y": torch.tensor([0, 1, -2, 0, 1, -1])}, "1 labels outside"),
    "label dtype": ({"y": torch.zeros(6)}, "y must be int64"),
    "label length": ({"y": torch.zeros(5, dtype=torch.int64)}, "y must be int64"),
    "binary with classes": ({"task": "binary"}, "1 output per node, not 3"),
    "multilabel shape": ({"task": "multilabel"}, "for a multilabel task"),
    "multilabel value": (
        {"task": "multilabel", "y": torch.full((6, 3), 0.5)},
        "18 labels other than 0, 1 and NaN",
    ),
    "no split": ({"splits": ()}, "no split"),
    "empty set": ({"splits": (Split(ids(0), torch.empty(0, dtype=torch.int64), ids(1)),)}, "valid has no nodes"),
    "overlap": ({"splits": (Split(ids(0, 1), ids(1), ids(2)),)}, "1 nodes are in both train and valid"),
    "repeated": ({"splits": (Split(ids(0, 0), ids(1), ids(2)),)}, "train repeats 1 nodes"),
    "split out of range": ({"splits": (Split(ids(0), ids(1), ids(6)),)}, "test holds 1 node ids outside"),
    "float split": ({"splits": (Split(torch.zeros(1), ids(1), ids(2)),)}, "train must be int64"),
    "unlabeled": ({"splits": (Split(ids(0), ids(1), ids(5)),)}, "none of the 1 test nodes has a label"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_named_and_counted(case: str) -> None:
    changes, message = FAULTS[case]
    with pytest.raises(DataError, match=message) as caught:
        validate(small_graph(**changes))
    assert str(caught.value).startswith("small: ")
    assert "\n" not in str(caught.value)


def test_all_faults_come_in_one_report() -> None:
    with pytest.raises(DataError, match=r"negative node ids; x must be float32, .*; .*no split"):
        validate(small_graph(edge_index=torch.tensor([[-1] * 7, [0] * 7]), x=torch.zeros(6, 2).double(), splits=()))
