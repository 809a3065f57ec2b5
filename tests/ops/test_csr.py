import pytest
import torch

from zoo.errors import DataError
from zoo.ops.csr import CSR, check_csr, csr_from_edge_index, remembered


def test_rows_hold_the_edges_of_each_target_in_the_given_order():
    edge_index = torch.tensor([[5, 4, 3, 2, 1, 0], [1, 0, 1, 3, 1, 0]])
    csr, perm = csr_from_edge_index(edge_index, 6)
    assert csr.rowptr.tolist() == [0, 2, 5, 5, 6, 6, 6]
    assert csr.col.tolist() == [4, 0, 5, 3, 1, 2]
    assert perm.tolist() == [1, 5, 0, 2, 4, 3]
    assert (csr.num_nodes, csr.num_edges) == (6, 6)


def test_a_graph_without_edges_has_empty_rows():
    csr, perm = csr_from_edge_index(torch.empty(2, 0, dtype=torch.int64), 3)
    check_csr(csr)
    assert csr.rowptr.tolist() == [0, 0, 0, 0]
    assert perm.numel() == 0


@pytest.mark.parametrize(
    ("rowptr", "col", "message"),
    [
        ([0, 1, 3], [0, 1], "0 to the number of edges"),
        ([1, 1, 2], [0, 1], "0 to the number of edges"),
        ([0, 3, 2], [0, 1], "ascending"),
        ([0, 1, 2], [0, 2], "node 2 does not exist; expected 0 to 1"),
        ([0, 1, 2], [0, -1], "node -1 does not exist"),
    ],
)
def test_rows_that_would_read_foreign_memory_are_refused(rowptr, col, message):
    with pytest.raises(DataError, match=message):
        check_csr(CSR(torch.tensor(rowptr), torch.tensor(col)))


@pytest.mark.parametrize(
    ("rowptr", "col"),
    [
        (torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0])),
        (torch.tensor([0, 1]), torch.tensor([0.0])),
        (torch.tensor([[0, 1]]), torch.tensor([0])),
        (torch.tensor([0, 1]), torch.tensor([[0]])),
        (torch.tensor([]).long(), torch.tensor([0])),
    ],
)
def test_tensors_of_the_wrong_kind_are_refused(rowptr, col):
    with pytest.raises(DataError, match="expected"):
        check_csr(CSR(rowptr, col))


def test_an_edge_to_a_node_that_does_not_exist_is_refused():
    for edge in ([[0], [9]], [[9], [0]], [[0], [-1]]):
        csr, _ = csr_from_edge_index(torch.tensor(edge), 3)
        with pytest.raises(DataError):
            check_csr(csr)


def test_what_is_made_of_a_graph_is_made_once_until_the_graph_changes():
    csr, _ = csr_from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
    calls = []

    def build(graph):
        calls.append(graph.col.tolist())
        return len(calls)

    assert [remembered(csr, "a", build), remembered(CSR(*csr), "a", build)] == [1, 1]
    csr.col[0] = 0
    assert remembered(csr, "a", build) == 2
    assert remembered(CSR(csr.rowptr, csr.col.clone()), "a", build) == 3
    assert remembered(csr, "b", build) == 4


def test_a_graph_made_in_inference_mode_can_be_checked():
    with torch.inference_mode():
        csr, _ = csr_from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
        check_csr(csr)
