"""Layer norm, ReLU and mask in one pass compute the definition: values and gradients."""

import pytest
import torch
from torch.autograd import forward_ad, graph
from torch.nn import functional as F

from tests.ops.cases import assert_close
from zoo.errors import BackendError, DataError
from zoo.ops.dispatch import use_backend
from zoo.ops.norm_relu import cpu, norm_relu

# PyTorch's own forward-mode rules call what newer PyTorch warns about.
USES_JVP = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
SIZES = [(0, 8), (1, 8), (5, 1), (3, 7), (37, 9), (37, 40), (20, 112), (4, 2049)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make small inputs take every turn: several blocks, three threads."""
    monkeypatch.setattr(cpu, "BLOCK_NUMBERS", 200)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def make_inputs(N=37, C=40, *, masked=True, dtype=torch.float32, seed=0):
    """x and mask as slices of the columns of wider tensors, weight, bias, and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    mask = (draw(N, 2 * C)[:, C:] > -1).to(dtype) / 0.75 if masked else None
    return 2 * draw(N, 3 * C)[:, C : 2 * C] + 1, draw(C), draw(C), mask, draw(N, C)


def run(backend, x, weight, bias, mask, grad):
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    with use_backend(backend):
        out = norm_relu(*leaves, mask)
    names = ("output", "gradient of x", "gradient of weight", "gradient of bias")
    return dict(zip(names, (out.detach(), *torch.autograd.grad(out, leaves, grad)), strict=True))


def definition(x, weight, bias, mask, grad):
    """In float64, written out without the op."""
    x, weight, bias = (tensor.detach().double().requires_grad_() for tensor in (x, weight, bias))
    out = F.layer_norm(x, x.shape[1:], weight, bias).relu()
    out = out if mask is None else out * mask
    names = ("gradient of x", "gradient of weight", "gradient of bias")
    grads = torch.autograd.grad(out, (x, weight, bias), grad.double())
    return {"output": out.detach(), **dict(zip(names, grads, strict=True))}


@pytest.mark.parametrize("backend", ["numba", "chunked"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("N", "C"), SIZES)
class TestEqualsDefinition:
    def test_in_float32(self, backend, masked, N, C):
        inputs = make_inputs(N, C, masked=masked)
        assert_close(run(backend, *inputs), definition(*inputs), 1e-5)

    def test_in_float64(self, backend, masked, N, C):
        inputs = make_inputs(N, C, masked=masked, dtype=torch.float64)
        assert_close(run(backend, *inputs), definition(*inputs), 1e-12)


@pytest.mark.parametrize("level", [0.0, 0.1, -7.3, 1e4, 1e8])
@pytest.mark.parametrize("C", [9, 40])
def test_constant_rows_give_the_bias(level, C):
    x, weight, bias, _, grad = make_inputs(5, C)
    found = run("numba", torch.full_like(x, level), weight, bias, None, grad)
    assert torch.equal(found["output"], bias.relu().expand(5, C))
    expected = definition(torch.full_like(x, level), weight, bias, None, grad)
    # The definition leaves a rest of rounding where there is nothing.
    expected["gradient of weight"] = torch.zeros(C, dtype=torch.float64)
    assert_close(found, expected, 1e-5)


def test_a_row_with_one_large_first_number_keeps_its_digits():
    x, *rest = make_inputs(8, 112)
    x[:, 0] = 1e4
    inputs = (x, *rest)
    assert_close(run("numba", *inputs), definition(*inputs), 3e-5)


def test_rows_far_from_zero_keep_their_digits():
    x, *rest = make_inputs(8, 40)
    inputs = ((x + 1000).contiguous(), *rest)
    # The mean itself has no more digits than this.
    assert_close(run("numba", *inputs), definition(*inputs), 1e-4)


def test_swapped_strides_and_broadcast_gradients_are_read_rightly():
    x, weight, bias, mask, _ = make_inputs()
    swapped = (x.t().contiguous().t(), weight, bias, mask.t().contiguous().t(), torch.ones(()).expand(37, 40))
    expected = definition(x, weight, bias, mask, torch.ones(37, 40))
    assert_close(run("numba", *swapped), expected, 1e-5)


def test_results_do_not_depend_on_threads_gradients_or_what_memory_held(monkeypatch):
    inputs = make_inputs(C=43)
    clean = run("numba", *inputs)
    with use_backend("numba"), torch.no_grad():
        assert torch.equal(norm_relu(*inputs[:4]), clean["output"])
    real_empty = torch.empty
    monkeypatch.setattr(cpu.torch, "empty", lambda *args, **kwargs: real_empty(*args, **kwargs).fill_(torch.nan))
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        again = run("numba", *inputs)
        assert all(torch.equal(clean[name], again[name]) for name in clean)


def test_only_x_and_mask_are_kept_of_their_size():
    x, weight, bias, mask, _ = make_inputs()
    kept = []
    with use_backend("numba"), graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        norm_relu(x.requires_grad_(), weight, bias, mask)
    large = [tensor.data_ptr() for tensor in kept if tensor.numel() > len(x)]
    assert sorted(large) == sorted(t.data_ptr() for t in (x, mask, weight, bias) if t.numel() > len(x))


def test_nan_comes_through():
    x, weight, bias, _, _ = make_inputs()
    x[3, 2], x[5, 39], x[7, 0] = torch.nan, torch.inf, torch.nan
    with use_backend("numba"):
        found = norm_relu(x, weight, bias).isnan().all(1)
    assert found.nonzero().flatten().tolist() == [3, 5, 7]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x, weight, bias, mask, grad = make_inputs()
    found = run("numba", x.to(dtype), weight, bias, mask, grad.to(dtype))
    expected = run("numba", x.to(dtype).float(), weight, bias, mask, grad.to(dtype).float())
    assert found["gradient of weight"].dtype == torch.float32
    for name, value in expected.items():
        assert torch.equal(found[name], value.to(found[name].dtype)), name
    assert (found["output"].dtype, found["gradient of x"].dtype) == (dtype, dtype)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_autocast_leaves_numbers_as_they_are(backend):
    inputs = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(backend, *inputs)
    plain = run(backend, *inputs)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_derivatives_of_first_and_second_order_are_those_of_finite_differences():
    x, weight, bias, mask, _ = make_inputs(4, 9, dtype=torch.float64)
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    with use_backend("numba"):
        assert torch.autograd.gradcheck(lambda *args: norm_relu(*args, mask), leaves)
        assert torch.autograd.gradgradcheck(lambda *args: norm_relu(*args, mask), leaves)


def test_only_gradients_asked_for_are_returned():
    x, weight, bias, mask, grad = make_inputs()
    weight.requires_grad_()
    with use_backend("numba"):
        out = norm_relu(x, weight, bias, mask)
    (found,) = torch.autograd.grad(out, weight, grad, create_graph=True)
    torch.testing.assert_close(found.detach(), run("numba", x, weight.detach(), bias, mask, grad)["gradient of weight"])


@USES_JVP
def test_transforms_are_followed():
    x, weight, bias, mask, grad = make_inputs()
    expected = run("numba", x, weight, bias, mask, grad)
    found = torch.func.grad(lambda x: (norm_relu(x, weight, bias, mask) * grad).sum())(x)
    torch.testing.assert_close(found, expected["gradient of x"])
    _, slope = torch.func.jvp(lambda bias: norm_relu(x, weight, bias, mask), (bias,), (torch.ones_like(bias),))
    with forward_ad.dual_level():
        dual = norm_relu(x, weight, forward_ad.make_dual(bias, torch.ones_like(bias)), mask)
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, slope)
    assert torch.equal(slope, mask * (expected["output"] > 0))


def test_a_mask_may_have_a_gradient():
    x, weight, bias, mask, grad = make_inputs()
    mask = mask.clone().requires_grad_()
    (found,) = torch.autograd.grad(norm_relu(x, weight, bias, mask), mask, grad)
    torch.testing.assert_close(found, grad * norm_relu(x, weight, bias))


def test_a_compiled_call_equals_the_eager_one():
    inputs = make_inputs()
    compiled = torch.compile(norm_relu, fullgraph=True, backend="aot_eager")
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:3]]
    grads = torch.autograd.grad(compiled(*leaves, inputs[3]), leaves, inputs[4])
    expected = run("numba", *inputs)
    for found, name in zip(grads, list(expected)[1:], strict=True):
        torch.testing.assert_close(found, expected[name])
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.ones(2, 8, 1), "x: expected .N, C., got .2, 8, 1."),
        (0, torch.ones(2, 8, dtype=torch.int64), "x: expected floating point numbers, got torch.int64"),
        (1, torch.ones(7), "weight: expected .C. with C = 8 as in x, got .7."),
        (2, torch.ones(8, 1), "bias: expected .C. with C = 8 as in x, got .8, 1."),
        (3, torch.ones(3, 8), "mask: expected .2, 8. as x, got .3, 8."),
        (3, torch.ones(2, 8, device="meta"), "mask is on meta and x on cpu; expected one device"),
    ],
)
def test_arguments_that_do_not_fit_are_named(place, value, message):
    arguments = [torch.ones(2, 8), torch.ones(8), torch.ones(8), None]
    arguments[place] = value
    with pytest.raises(DataError, match=message) as caught:
        norm_relu(*arguments)
    assert "\n" not in str(caught.value)


def test_a_backend_for_another_device_is_refused():
    x, weight, bias, _, _ = make_inputs()
    with use_backend("triton"), pytest.raises(BackendError, match="serves cuda tensors, these are on cpu"):
        norm_relu(x, weight, bias)
