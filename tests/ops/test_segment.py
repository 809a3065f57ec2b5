"""What attention and GCN ask of a graph."""

import torch

from tests.ops.cases import graph
from zoo.layers.conv import GCNConv
from zoo.layers.inputs import BlockInputs
from zoo.ops.csr import CSR
from zoo.ops.segment import edge_targets, out_degrees, segment_softmax, without_loops


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
