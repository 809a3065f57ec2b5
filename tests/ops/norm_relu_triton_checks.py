"""The GPU kernels of norm_relu compute the definition; run by test_interpreted.py."""

import pytest
import torch

from tests.ops.cases import assert_close
from tests.ops.test_norm_relu import definition, make_inputs, run
from zoo.ops.dispatch import use_backend
from zoo.ops.norm_relu import cuda, norm_relu


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of rows, and several of them to a program."""
    monkeypatch.setattr(cuda, "TILE_NUMBERS", 64)
    monkeypatch.setattr(cuda, "MAX_PROGRAMS", 3)
    torch.set_num_threads(1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("N", "C"), [(0, 8), (1, 8), (3, 7), (37, 13), (9, 80)])
def test_equals_the_definition(masked, N, C):
    inputs = make_inputs(N, C, masked=masked)
    assert_close(run("triton", *inputs), definition(*inputs), 1e-5)


def test_float64_is_exact():
    inputs = make_inputs(9, 12, dtype=torch.float64)
    assert_close(run("triton", *inputs), definition(*inputs), 1e-12)


def test_constant_rows_give_the_bias():
    x, weight, bias, _, grad = make_inputs(5, 12)
    found = run("triton", torch.full_like(x, 0.5), weight, bias, None, grad)
    assert torch.equal(found["output"], bias.relu().expand(5, 12))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_place_and_computed_in_float32(dtype):
    x, weight, bias, mask, grad = make_inputs(9, 12)
    x, grad = x.to(dtype), grad.to(dtype)
    rows = cuda.forward(x[:, 2:], weight[2:], bias[2:], mask[:, 2:], 1e-5)[0]
    expected = definition(x[:, 2:], weight[2:], bias[2:], mask[:, 2:], grad[:, 2:])["output"]
    torch.testing.assert_close(rows, expected.to(dtype))
    found, exact = run("triton", x, weight, bias, mask, grad), definition(x, weight, bias, mask, grad)
    assert (found["output"].dtype, found["gradient of x"].dtype) == (dtype, dtype)
    assert found["gradient of weight"].dtype == torch.float32
    assert_close(found, exact, 5e-3 if dtype == torch.bfloat16 else 1e-3)


def test_no_output_depends_on_gradients_or_on_what_memory_held(monkeypatch):
    inputs = make_inputs(9, 12)
    clean = run("triton", *inputs)
    with use_backend("triton"), torch.no_grad():
        assert torch.equal(norm_relu(*inputs[:4]), clean["output"])
    real_empty = torch.empty
    monkeypatch.setattr(cuda.torch, "empty", lambda *args, **kwargs: real_empty(*args, **kwargs).fill_(torch.nan))
    dirty = run("triton", *inputs)
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


def test_nan_comes_through():
    x, weight, bias, _, _ = make_inputs(9, 12)
    x[3, 2] = torch.nan
    with use_backend("triton"):
        assert norm_relu(x, weight, bias).isnan().all(1).nonzero().flatten().tolist() == [3]
