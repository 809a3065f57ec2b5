"""The GPU kernels compute the definition; run by test_interpreted.py."""

import pytest
import torch
from torch.nn import functional

from tests.ops.cases import AGGREGATIONS, assert_close, forward, make_case, run
from zoo.ops import triton_launch, work_items
from zoo.ops.csr import CSR, copy_into, empty_csr
from zoo.ops.dispatch import backend_for, use_backend
from zoo.ops.edges import EdgeInput
from zoo.ops.gen_aggregate import chunked, cuda
from zoo.ops.gen_aggregate.reference import Messages


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(triton_launch, "MAX_SEGMENT_EDGES", 18)
    torch.set_num_threads(1)


def equals_reference(case, aggr, **options):
    expected = run(case.to(torch.float64), "reference", aggr, **options)
    assert_close(run(case, "triton", aggr, **options), expected, 3e-5)


@pytest.mark.parametrize("aggr", AGGREGATIONS)
@pytest.mark.parametrize(("edges", "C"), [("projected", 18), ("embedded", 7), ("none", 1)])
def test_equals_reference(aggr, edges, C):
    equals_reference(make_case(8, 45, C=C, D=3, edges=edges), aggr)


@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_equals_reference_without_edges(aggr):
    equals_reference(make_case(5, 0, C=7), aggr)


def test_equals_reference_with_ties():
    equals_reference(make_case(8, 45, C=18, D=8, ties=True), "max")


def test_equals_reference_with_detached_weights():
    equals_reference(make_case(8, 30, C=7), "softmax", detach_weights=True)


@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_float64_is_exact(aggr):
    case = make_case(8, 30, C=7).to(torch.float64)
    assert_close(run(case, "triton", aggr), run(case, "reference", aggr), 1e-11)


@pytest.mark.parametrize("aggr", ["max", "sum", "softmax"])
def test_no_output_depends_on_gradients_or_on_what_memory_held(aggr, monkeypatch):
    case = make_case(8, 30, C=7)
    with use_backend("triton"), torch.no_grad():
        inferred = forward(case, aggr)
    clean = run(case, "triton", aggr)
    assert torch.equal(inferred, clean["output"])
    real_empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = real_empty(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else -77)

    monkeypatch.setattr(cuda.torch, "empty", poisoned)
    dirty = run(case, "triton", aggr)
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


@pytest.mark.parametrize("aggr", ["max", "softmax"])
def test_nan_comes_through(aggr):
    case = make_case(8, 40, C=7)
    case.x[3, 2] = torch.nan
    with use_backend("reference"):
        expected = forward(case, aggr).isnan()
    with use_backend("triton"):
        assert torch.equal(forward(case, aggr).isnan(), expected)


def test_half_precision_strides_and_long_indices_are_read_in_place():
    case = make_case(8, 40, C=7)
    wide = torch.full((8, 20), torch.nan, dtype=torch.bfloat16)
    wide[:, 5:12] = case.x
    rows = cuda._Call(_messages(case._replace(x=wide[:, 5:12])))
    assert rows.inputs[1].data_ptr() == wide[:, 5:12].data_ptr()
    out, _ = cuda.max_forward(_messages(case._replace(x=wide[:, 5:12])), None, needs_grad=False)
    rounded = case._replace(x=wide[:, 5:12].float(), csr=CSR(case.csr.rowptr, case.csr.col.int()))
    assert_close({"output": out}, {"output": run(rounded, "reference", "max")["output"]}, 3e-5)


@pytest.mark.parametrize(("backend", "edges"), [(cuda, "projected"), (chunked, "projected"), (chunked, "embedded")])
def test_edge_features_in_half_precision_are_read_in_place(backend, edges):
    case = make_case(8, 45, C=7, D=3, edges=edges)
    half = case._replace(edge_attr=case.edge_attr.half())
    if backend is cuda:
        assert cuda._Call(_messages(half)).inputs[3].data_ptr() == half.edge_attr.data_ptr()
    found = []
    for one in (half, half._replace(edge_attr=half.edge_attr.float())):
        messages = _messages(one._replace(edge_attr=one.edge_attr.clone().requires_grad_()))
        out, state = backend.max_forward(messages, None, needs_grad=True)
        found.append([out, *state, *backend.max_backward(one.grad, messages, None, *state)])
        out, state = backend.softmax_forward(messages, one.factor, needs_grad=True)
        found[-1] += [
            out,
            *state,
            *backend.softmax_backward(one.grad, messages, one.factor, *state, detach_weights=False),
        ]
    assert all(a is b or torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_deterministic_mode_keeps_to_what_pytorch_promises():
    case = make_case(6, 20, C=3)
    torch.use_deterministic_algorithms(True)
    try:
        equals_reference(case, "max")
        equals_reference(case, "softmax")
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_interpreter_serves_the_cpu():
    with use_backend("triton"):
        assert backend_for("cpu") == ("triton", "named by the user")


def _messages(case):
    return Messages(case.x, case.csr, EdgeInput(case.edge_attr, case.weight, case.bias), 1e-7)


def test_segments_cover_every_edge_once_and_have_shapes_that_edges_do_not_decide():
    one, other = make_case(8, 60, C=7).csr, make_case(8, 60, C=7, seed=5).csr
    assert not torch.equal(one.rowptr, other.rowptr)
    for csr in (one, other):
        segments = triton_launch.segments_of(csr)
        assert [len(tensor) for tensor in segments[:4]] == [8 + 60 // 18, 8 + 60 // 18, 60 // 18, 9]
        covered = [edge for start, end in zip(segments.start, segments.end, strict=True) for edge in range(start, end)]
        assert sorted(covered) == list(range(60))
        assert int((segments.end - segments.start).max()) <= 18
        for segment, row in enumerate(segments.row.tolist()):
            for edge in range(segments.start[8 + segment], segments.end[8 + segment]):
                assert csr.rowptr[row] <= edge < csr.rowptr[row + 1]


def test_a_large_graph_is_cut_into_fewer_segments_rather_than_more(monkeypatch):
    monkeypatch.setattr(work_items, "MAX_FURTHER_SEGMENTS", 2)
    case = make_case(8, 120, C=7, D=3)
    segments = triton_launch.segments_of(case.csr)
    assert segments.row.numel() == 120 // 72
    assert int((segments.end - segments.start).max()) > 18
    equals_reference(case, "max")


@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_a_csr_in_a_larger_buffer_gives_the_same_and_its_segments_stay_where_they_are(aggr):
    buffer = empty_csr(10, 70, make_case(8, 45, C=7).csr)
    copy_into(buffer, make_case(9, 70, C=7).csr)
    segments = triton_launch.segments_of(buffer)
    case = make_case(8, 45, C=7, D=3, seed=3)
    copy_into(buffer, case.csr)
    padded = case._replace(
        csr=buffer,
        x=functional.pad(case.x, (0, 0, 0, 2)),
        edge_attr=functional.pad(case.edge_attr, (0, 0, 0, 25)),
        grad=functional.pad(case.grad, (0, 0, 0, 2)),
    )
    found = run(padded, "triton", aggr)
    assert triton_launch.segments_of(buffer) is segments
    lengths = {"output": 8, "gradient of x": 8, "gradient of edge_attr": 45}
    own = {name: value[: lengths[name]] if name in lengths else value for name, value in found.items()}
    assert_close(own, run(case.to(torch.float64), "reference", aggr), 3e-5)
