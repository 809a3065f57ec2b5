import pytest
import torch

from tests.ops.cases import graph
from zoo.errors import DataError
from zoo.layers.conv import GCNConv
from zoo.layers.inputs import BlockInputs
from zoo.ops.csr import (
    CSR,
    cached,
    check_csr,
    copy_into,
    csr_from_edge_index,
    edge_targets,
    empty_csr,
    out_degrees,
    segment_softmax,
    without_loops,
)


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

    assert [cached(csr, "a", build), cached(CSR(*csr), "a", build)] == [1, 1]
    csr.col[0] = 0
    assert cached(csr, "a", build) == 2
    assert cached(CSR(csr.rowptr, csr.col.clone()), "a", build) == 3
    assert cached(csr, "b", build) == 4


def test_a_graph_made_in_inference_mode_can_be_checked():
    with torch.inference_mode():
        csr, _ = csr_from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
        check_csr(csr)


def test_a_csr_written_into_a_larger_one_keeps_its_rows():
    buffer = empty_csr(8, 20, random_rows(1, 1))
    place = buffer.rowptr.data_ptr(), buffer.col.data_ptr()
    for num_nodes, num_edges in ((7, 20), (3, 5), (5, 0), (6, 11)):
        csr = random_rows(num_nodes, num_edges)
        copy_into(buffer, csr)
        assert torch.equal(buffer.rowptr[: num_nodes + 1], csr.rowptr)
        assert torch.equal(buffer.col[:num_edges], csr.col)
        # What is left of the edges belongs to the rows that are left, about as many to each, and comes from many nodes.
        degrees = buffer.rowptr[num_nodes:].diff()
        assert (int(buffer.rowptr[num_nodes]), int(degrees.sum())) == (num_edges, 20 - num_edges)
        assert degrees.max() - degrees.min() <= 1
        assert buffer.col[num_edges:].tolist() == [k % 8 for k in range(20 - num_edges)]
        check_csr(CSR(buffer.rowptr.clone(), buffer.col.clone()))
    assert place == (buffer.rowptr.data_ptr(), buffer.col.data_ptr())


def test_cached_values_of_a_refilled_buffer_are_refreshed_or_dropped():
    class Degrees:
        def __init__(self, csr):
            self.values = csr.rowptr.diff()

        def refresh(self, csr):
            self.values.copy_(csr.rowptr.diff())

    buffer = empty_csr(6, 10, random_rows(1, 1))
    copy_into(buffer, random_rows(4, 9))
    degrees, count = cached(buffer, "degrees", Degrees), cached(buffer, "count", lambda csr: object())
    values = degrees.values
    copy_into(buffer, random_rows(5, 3))
    assert cached(buffer, "degrees", Degrees) is degrees
    assert degrees.values is values
    assert torch.equal(values, buffer.rowptr.diff())
    assert cached(buffer, "count", lambda csr: object()) is not count


def test_a_csr_that_does_not_fit_or_is_damaged_is_not_written():
    buffer = empty_csr(4, 10, random_rows(1, 1))
    for csr in (random_rows(4, 5), random_rows(2, 11)):
        with pytest.raises(DataError, match="do not fit into a CSR of 4 nodes and 10 edges"):
            copy_into(buffer, csr)
    with pytest.raises(DataError, match="node 9 does not exist"):
        copy_into(buffer, CSR(torch.tensor([0, 1]), torch.tensor([9])))


def random_rows(num_nodes: int, num_edges: int) -> CSR:
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=torch.Generator().manual_seed(num_edges))
    return csr_from_edge_index(edge_index, num_nodes)[0]


def test_softmax_is_that_of_every_row_by_itself():
    csr = graph(20, 90)
    scores = torch.randn(90, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = segment_softmax(scores, csr)
    rows = scores.split(csr.rowptr.diff().tolist())
    expected = torch.cat([row.softmax(0) for row in rows])
    torch.testing.assert_close(found, expected)
    grad = torch.arange(270, dtype=torch.float64).view(90, 3)
    torch.testing.assert_close(*(torch.autograd.grad(out, scores, grad)[0] for out in (found, expected)))


def test_softmax_gives_dropped_edges_no_weight_even_where_a_row_has_no_other():
    csr = CSR(torch.tensor([0, 2, 2, 5]), torch.tensor([0, 1, 0, 1, 2]))
    scores = torch.tensor([[-torch.inf], [-torch.inf], [1.0], [-torch.inf], [1.0]])
    assert segment_softmax(scores, csr).flatten().tolist() == [0.0, 0.0, 0.5, 0.0, 0.5]
    assert segment_softmax(torch.zeros(0, 2), CSR(torch.zeros(4, dtype=torch.int64), csr.col[:0])).shape == (0, 2)


def test_degrees_and_edges_between_different_nodes():
    csr = graph(20, 90)
    target = edge_targets(csr)
    assert torch.equal(out_degrees(csr), torch.tensor([int((csr.col == node).sum()) for node in range(20)]))
    others = without_loops(csr)
    kept = csr.col != target
    assert 0 < kept.sum() < 90
    assert torch.equal(others.col, csr.col[kept])
    assert torch.equal(edge_targets(others), target[kept])
    assert without_loops(others) is others


def test_what_inference_worked_out_serves_training():
    csr = graph(20, 90)
    conv, x = GCNConv(4), torch.ones(20, 4)
    with torch.inference_mode():
        inferred = conv(x, BlockInputs(csr))
    out = conv(x, BlockInputs(csr))
    out.sum().backward()
    assert torch.equal(out, inferred)
    assert conv.linear.weight.grad is not None
