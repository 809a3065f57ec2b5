"""The GPU kernels of the weighted sum compute the definition; run by test_interpreted.py."""

import pytest
import torch

from tests.ops.cases import assert_close
from tests.ops.test_weighted_sum import make_case, run, same
from zoo.ops import triton_launch


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(triton_launch, "MAX_SEGMENT_EDGES", 18)
    torch.set_num_threads(1)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", [(18,), (2, 70)])
def test_equals_reference(weighted, shape):
    case = make_case(8, 45, shape, weighted=weighted)
    assert_close(run(case, "triton"), run(case.to(torch.float64), "reference"), 3e-5)


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(0, 0), (5, 0), (1, 1), (1, 40)])
def test_equals_reference_at_odd_sizes(num_nodes, num_edges):
    for shape in ((3,), (2, 0)):
        case = make_case(num_nodes, num_edges, shape)
        assert_close(run(case, "triton"), run(case.to(torch.float64), "reference"), 3e-5)


def test_float64_is_exact():
    case = make_case(8, 45).to(torch.float64)
    assert_close(run(case, "triton"), run(case, "reference"), 1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    case = make_case(8, 45).to(dtype)
    found, expected = run(case, "triton"), run(case.to(torch.float32), "triton")
    assert same(found, {name: value.to(dtype) for name, value in expected.items()})


def test_no_output_depends_on_what_memory_held(monkeypatch):
    case = make_case(8, 45)
    clean = run(case, "triton")
    real_empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = real_empty(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else -77)

    monkeypatch.setattr(torch, "empty", poisoned)
    assert torch.empty(3).isnan().all()
    assert same(run(case, "triton"), clean)


def test_strided_rows_are_read_rightly():
    case = make_case(8, 45, (3, 8))
    wide = torch.full((8, 2, 3, 8), torch.nan)
    wide[:, 1] = case.x
    assert same(run(case._replace(x=wide[:, 1]), "triton"), run(case, "triton"))
