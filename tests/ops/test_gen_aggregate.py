"""Every backend that runs here computes the definition: values and gradients."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.cases import AGGREGATIONS, Case, assert_close, forward, graph, make_case, run
from zoo.errors import BackendError
from zoo.ops import vectors, work_items
from zoo.ops.csr import CSR, csr_from_edge_index
from zoo.ops.dispatch import use_backend
from zoo.ops.edges import EdgeInput
from zoo.ops.gen_aggregate import cpu, gen_aggregate

PARITY = Path(__file__).parents[1] / "parity"
BACKENDS = ("chunked", "numba")
F32, F64 = 3e-5, 1e-11
# PyTorch's own forward-mode rules call what newer PyTorch warns about.
USES_JVP = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """Make small graphs take every turn: rows in segments, several work items, three threads."""
    monkeypatch.setattr(work_items, "CHUNK_NUMBERS", 2000)
    monkeypatch.setattr(work_items, "MAX_SEGMENT_EDGES", 45)
    monkeypatch.setattr(work_items, "MIN_ITEM_EDGES", 64)
    monkeypatch.setattr(cpu, "ROWS_PER_SUM", 16)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aggr", AGGREGATIONS)
@pytest.mark.parametrize("edges", ["projected", "embedded", "none"])
class TestEqualsReference:
    @pytest.mark.parametrize("C", [1, 7, 40, 112])
    def test_at_odd_widths(self, backend, aggr, edges, C):
        case = make_case(C=C, edges=edges)
        assert_close(run(case, backend, aggr), run(case.to(torch.float64), "reference", aggr), F32)

    @pytest.mark.parametrize(("num_nodes", "num_edges"), [(1, 0), (6, 0), (1, 1), (1, 70), (3, 2)])
    def test_at_odd_sizes(self, backend, aggr, edges, num_nodes, num_edges):
        case = make_case(num_nodes, num_edges, C=7, edges=edges)
        assert_close(run(case, backend, aggr), run(case.to(torch.float64), "reference", aggr), F32)

    def test_with_ties(self, backend, aggr, edges):
        case = make_case(ties=True, edges=edges)
        assert_close(run(case, backend, aggr), run(case.to(torch.float64), "reference", aggr), F32)


@pytest.mark.parametrize("backend", BACKENDS)
class TestBackend:
    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_equals_reference_in_float64(self, backend, aggr):
        case = make_case(C=12, D=3).to(torch.float64)
        assert_close(run(case, backend, aggr), run(case, "reference", aggr), F64)

    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_gradients_are_those_of_finite_differences(self, backend, aggr):
        case = make_case(7, 40, C=3, D=3).to(torch.float64)
        leaves = [case.x, case.edge_attr, case.weight, case.bias, case.factor]

        def function(*tensors):
            return forward(Case(case.csr, *tensors, grad=case.grad), aggr)

        # Kernels of softmax serve edge features that need no gradient.
        for edge_gradient in (True, False):
            inputs = [leaf.detach().requires_grad_(leaf is not case.edge_attr or edge_gradient) for leaf in leaves]
            with use_backend(backend):
                assert torch.autograd.gradcheck(function, inputs)

    @pytest.mark.parametrize("factor", [1.0, 0.3, -2.0, 20.0])
    @pytest.mark.parametrize("detach_weights", [False, True])
    def test_softmax_holds_at_any_temperature(self, backend, factor, detach_weights):
        case = make_case(factor=factor)
        found = run(case, backend, "softmax", detach_weights=detach_weights)
        expected = run(case.to(torch.float64), "reference", "softmax", detach_weights=detach_weights)
        # Rounding of a message is multiplied by the temperature, and so is the exponential's.
        assert_close(found, expected, 2e-3 if factor == 20.0 else F32)
        assert ("gradient of factor" in found) == (not detach_weights)

    @pytest.mark.parametrize("factor", [1.0, 2.5, -1.0])
    def test_powermean_holds_at_any_power(self, backend, factor):
        case = make_case(factor=factor)
        assert_close(run(case, backend, "powermean"), run(case.to(torch.float64), "reference", "powermean"), F32)

    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_output_is_the_same_with_and_without_gradients(self, backend, aggr):
        case = make_case()
        with use_backend(backend), torch.no_grad():
            inferred = forward(case, aggr)
        assert torch.equal(inferred, run(case, backend, aggr)["output"])

    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_output_is_the_same_in_any_grad_mode_when_edge_features_require_a_gradient(self, backend, aggr):
        # A reversible stack evaluates a block without a tape, and again with one in backward: the bits must agree.
        case = make_case()
        case = case._replace(edge_attr=case.edge_attr.requires_grad_())
        with use_backend(backend):
            recorded = forward(case, aggr)
            with torch.no_grad():
                assert torch.equal(forward(case, aggr), recorded)

    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_runs_repeat_bit_for_bit(self, backend, aggr):
        case = make_case()
        first, second = run(case, backend, aggr), run(case, backend, aggr)
        assert all(torch.equal(first[name], second[name]) for name in first)

    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_no_output_depends_on_what_memory_held(self, backend, aggr, monkeypatch):
        case = make_case(C=7)
        clean = run(case, backend, aggr)
        _poison_new_tensors(monkeypatch)
        dirty = run(case, backend, aggr)
        assert torch.empty(3).isnan().all()
        assert all(torch.equal(clean[name], dirty[name]) for name in clean)

    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_strided_views_are_read_in_place(self, backend, aggr):
        case = make_case()
        wide = torch.full((50, 100), torch.nan)
        wide[:, 30:70] = case.x
        tall = torch.full((700, 9), torch.nan)
        tall[:, 1:] = case.edge_attr
        view = case._replace(x=wide[:, 30:70], edge_attr=tall[:, 1:], weight=case.weight.t().contiguous().t())
        swapped = case._replace(x=case.x.t().contiguous().t(), edge_attr=case.edge_attr.t().contiguous().t())
        expected = run(case, backend, aggr)
        for other in (view, swapped):
            with use_backend(backend):
                assert_close({"output": forward(other, aggr)}, {"output": expected["output"]}, 1e-6)
            assert_close(run(other, backend, aggr), expected, 1e-6)

    def test_a_broadcast_gradient_is_read_rightly(self, backend):
        case = make_case()
        x = case.x.clone().requires_grad_()
        with use_backend(backend):
            forward(case._replace(x=x), "max").sum().backward()
        expected = run(case._replace(grad=torch.ones_like(case.grad)), "reference", "max")["gradient of x"]
        torch.testing.assert_close(x.grad, expected)

    def test_both_index_types_agree(self, backend):
        case = make_case()
        long = case._replace(csr=CSR(case.csr.rowptr, case.csr.col.long()))
        short = case._replace(csr=CSR(case.csr.rowptr, case.csr.col.int()))
        found, expected = run(short, backend, "max"), run(long, backend, "max")
        assert all(torch.equal(found[name], expected[name]) for name in found)

    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_nan_comes_through(self, backend, aggr):
        case = make_case(C=8)
        case.x[3, 2] = torch.nan
        with use_backend("reference"):
            expected = forward(case, aggr).isnan()
        with use_backend(backend):
            found = forward(case, aggr).isnan()
        assert expected.any()
        assert not expected.all()
        assert torch.equal(found, expected)

    @pytest.mark.parametrize("aggr", ["max", "mean", "sum"])
    def test_infinity_comes_through(self, backend, aggr):
        case = make_case(C=8)
        case.x[3, 2] = torch.inf
        with use_backend("reference"):
            expected = forward(case, aggr).isinf()
        with use_backend(backend):
            found = forward(case, aggr)
        assert 0 < expected.sum() < expected.numel()
        assert torch.equal(found.isinf(), expected)
        assert not found.isnan().any()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_half_precision_is_computed_in_float32(self, backend, aggr, dtype):
        case = make_case().to(dtype)
        found = run(case, backend, aggr)
        expected = run(case.to(torch.float32), backend, aggr)
        for name, value in found.items():
            assert value.dtype == dtype
            assert torch.equal(value, expected[name].to(dtype)), name

    def test_mixed_precision_under_autocast_keeps_the_gradients_of_parameters_in_float32(self, backend):
        case = make_case()
        weight, bias = (t.clone().requires_grad_() for t in (case.weight, case.bias))
        x = case.x.to(torch.bfloat16).requires_grad_()
        with use_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
            out = forward(case._replace(x=x, weight=weight, bias=bias), "softmax")
            out.float().sum().backward()
        assert (out.dtype, x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        exact = case._replace(x=x.detach().float(), grad=torch.ones_like(case.grad))
        expected = run(exact, backend, "softmax")
        torch.testing.assert_close(weight.grad, expected["gradient of weight"])

    @pytest.mark.parametrize("aggr", AGGREGATIONS)
    def test_a_second_derivative_is_refused(self, backend, aggr):
        x = make_case().x.requires_grad_()
        with use_backend(backend):
            out = forward(make_case()._replace(x=x), aggr)
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()

    def test_a_backward_pass_can_be_repeated(self, backend):
        x = make_case().x.requires_grad_()
        with use_backend(backend):
            out = forward(make_case()._replace(x=x), "max").sum()
        first = torch.autograd.grad(out, x, retain_graph=True)
        assert torch.equal(first[0], torch.autograd.grad(out, x)[0])

    def test_the_output_may_be_changed_in_place(self, backend):
        x = make_case().x.requires_grad_()
        with use_backend(backend):
            forward(make_case()._replace(x=x), "max").mul_(2).sum().backward()
        assert x.grad is not None

    @pytest.mark.filterwarnings(
        "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
    )  # by torch.func.jvp itself
    def test_functional_transforms_are_refused(self, backend):
        case = make_case()

        def total(x):
            return forward(case._replace(x=x), "max").sum()

        with use_backend(backend):
            transforms = (
                torch.func.grad(total),
                lambda x: torch.vmap(total)(x[None]),
                lambda x: torch.func.jvp(total, (x,), (x,)),
            )
            for transform in transforms:
                with pytest.raises(BackendError, match="'reference'"):
                    transform(case.x)
            with forward_ad.dual_level(), pytest.raises(BackendError, match="'reference'"):
                total(forward_ad.make_dual(case.x, case.x))


def _poison_new_tensors(monkeypatch):
    def poisoned(function):
        def wrapped(*args, **kwargs):
            tensor = function(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else -77)

        return wrapped

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


class _Sizes(TorchDispatchMode):
    """Notes the size of the largest tensor that PyTorch makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_no_tensor_of_all_messages_is_ever_made(backend, aggr):
    num_edges, C = 5000, 40
    case = make_case(40, num_edges, C=C)
    case = case._replace(x=case.x.requires_grad_(), weight=case.weight.requires_grad_())
    with use_backend(backend), _Sizes() as sizes:
        forward(case, aggr).backward(case.grad)
    assert 0 < sizes.largest < num_edges * C // 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_only_the_gradients_asked_for_are_given(backend, aggr):
    case = make_case()
    full = run(case, backend, aggr)
    for name in ("x", "weight", "bias"):
        leaf = getattr(case, name).clone().requires_grad_()
        with use_backend(backend):
            forward(case._replace(**{name: leaf}), aggr).backward(case.grad)
        assert_close({name: leaf.grad}, {name: full[f"gradient of {name}"]}, 1e-6)


def test_more_edge_features_than_registers_fit():
    case = make_case(D=40)
    assert_close(run(case, "numba", "max"), run(case.to(torch.float64), "reference", "max"), F32)


def test_kernels_need_no_place_to_be_kept(monkeypatch):
    real_njit = vectors.njit

    def njit(form, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real_njit(form, **options)

    monkeypatch.setattr(vectors, "njit", njit)
    cpu.max_forward_kernel.cache_clear()
    case = make_case()
    assert_close(run(case, "numba", "max"), run(case.to(torch.float64), "reference", "max"), F32)
    cpu.max_forward_kernel.cache_clear()


def test_rows_with_equal_messages_give_the_gradient_to_their_first_edge():
    csr = CSR(torch.tensor([0, 3, 3, 5]), torch.tensor([1, 0, 2, 2, 1]))
    x = torch.tensor([[2.0], [2.0], [2.0]])
    for backend in ("reference", *BACKENDS):
        leaf = x.clone().requires_grad_()
        with use_backend(backend):
            out = gen_aggregate(leaf, csr, eps=0.0)
        out.backward(torch.tensor([[1.0], [10.0], [100.0]]))
        assert out.tolist() == [[2.0], [0.0], [2.0]]
        assert leaf.grad.tolist() == [[0.0], [1.0], [100.0]]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("digits", ["f32", "f64"])
def test_ties_give_the_numbers_recorded_from_the_authors_code(backend, digits):
    record = load_file(PARITY / f"genconv_ties_max_{digits}.safetensors")
    x, embedding = (record[f"in/{name}"].clone().requires_grad_() for name in ("x", "edge_emb"))
    csr, perm = csr_from_edge_index(record["in/edge_index"], len(x))
    with use_backend(backend):
        hidden = x + gen_aggregate(x, csr, EdgeInput(embedding[perm]))
    hidden = F.linear(hidden, record["state/mlp.0.weight"], record["state/mlp.0.bias"])
    hidden = F.layer_norm(hidden, hidden.shape[1:], record["state/mlp.1.weight"], record["state/mlp.1.bias"]).relu()
    out = F.linear(hidden, record["state/mlp.3.weight"], record["state/mlp.3.bias"])
    (out * record["in/w"]).sum().backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if digits == "f32" else {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(out, record["out/out"], **tolerance)
    torch.testing.assert_close(x.grad, record["first/grad_in/x"], **tolerance)
    torch.testing.assert_close(embedding.grad, record["first/grad_in/edge_emb"], **tolerance)


def test_reference_can_be_differentiated_twice():
    case = make_case(7, 40, C=3, D=3).to(torch.float64)
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(
            lambda x: forward(case._replace(x=x), "softmax"), case.x.clone().requires_grad_()
        )


@USES_JVP
@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_reference_follows_functional_transforms(aggr):
    case = make_case(7, 40, C=3, D=3).to(torch.float64)

    def total(x):
        return (forward(case._replace(x=x), aggr) * case.grad).sum()

    with use_backend("reference"):
        gradient = torch.func.grad(total)(case.x)
        _, along = torch.func.jvp(total, (case.x,), (gradient,))
    torch.testing.assert_close(gradient, run(case, "reference", aggr)["gradient of x"])
    torch.testing.assert_close(along, gradient.square().sum())


def test_results_do_not_depend_on_the_number_of_threads():
    found = []
    for num_threads in (1, 2, 4):
        torch.set_num_threads(num_threads)
        found.append(run(make_case(), "numba", "max"))
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)


def test_a_changed_graph_is_looked_at_again():
    case = make_case()
    before = run(case, "numba", "max")["output"]
    case.csr.col.copy_(case.csr.col.flip(0))
    after = run(case, "numba", "max")["output"]
    assert not torch.equal(before, after)
    assert_close({"output": after}, {"output": run(case, "reference", "max")["output"]}, F32)


def test_a_graph_is_freed_with_its_tensors():
    import gc
    import weakref

    csr = graph(50, 700)
    gone = weakref.ref(csr.rowptr)
    with use_backend("numba"):
        gen_aggregate(torch.randn(50, 8), csr)
    del csr
    gc.collect()
    assert gone() is None


# The compiler itself looks at the gradient of every tensor that enters a graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_a_compiled_call_equals_the_eager_one(aggr):
    case = make_case()
    results = []
    torch.compiler.reset()
    for compiled in (False, True):
        leaves = {name: getattr(case, name).clone().requires_grad_() for name in ("x", "weight", "bias", "factor")}

        def function(leaves):
            return forward(case._replace(**leaves), aggr) * 2

        out = torch.compile(function, backend="aot_eager")(leaves) if compiled else function(leaves)
        out.backward(case.grad)
        results.append([out.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(eager, compiled) for eager, compiled in zip(*results, strict=True))
    torch.compiler.reset()
