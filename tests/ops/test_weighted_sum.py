"""Every backend that runs here computes the definition of the weighted sum: values and gradients."""

import gc
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.layers.memory import peak_bytes
from tests.ops.cases import assert_close, graph
from zoo.errors import BackendError, DataError
from zoo.ops import work_items
from zoo.ops.csr import CSR
from zoo.ops.dispatch import use_backend
from zoo.ops.weighted_sum import weighted_sum

BACKENDS = ("chunked", "numba")
F32, F64 = 3e-5, 1e-11
SHAPES = ((1,), (7,), (40,), (112,), (1, 5), (3, 8), (2, 72))


class Case(NamedTuple):
    """What one call gets; ``grad`` is the gradient of its output."""

    csr: CSR
    x: Tensor
    weight: Tensor | None
    grad: Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        return Case(self.csr, *(None if t is None else t.to(dtype) for t in self[1:]))


def make_case(num_nodes=50, num_edges=700, shape=(3, 7), *, weighted=True, seed=0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    no_graph = CSR(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    csr = graph(num_nodes, num_edges, seed=seed) if num_nodes else no_graph
    weight = draw(num_edges, *shape[:-1]) if weighted else None
    return Case(csr, draw(num_nodes, *shape), weight, draw(num_nodes, *shape))


def run(case: Case, backend: str) -> dict[str, Tensor]:
    """The output, and the gradients of x and the weights."""
    x = case.x.clone().requires_grad_()
    weight = None if case.weight is None else case.weight.clone().requires_grad_()
    with use_backend(backend):
        out = weighted_sum(x, case.csr, weight)
    leaves = {"x": x} if weight is None else {"x": x, "weight": weight}
    grads = torch.autograd.grad(out, list(leaves.values()), case.grad)
    return {"output": out.detach(), **dict(zip(leaves, grads, strict=True))}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    """Make small graphs take every turn: rows in segments, several work items, three threads."""
    monkeypatch.setattr(work_items, "CHUNK_NUMBERS", 2000)
    monkeypatch.setattr(work_items, "MAX_SEGMENT_EDGES", 45)
    monkeypatch.setattr(work_items, "MIN_ITEM_EDGES", 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_the_definition_is_the_product_with_a_matrix():
    case = make_case(shape=(5,)).to(torch.float64)
    matrix = torch.zeros(50, 50, dtype=torch.float64)
    target = torch.repeat_interleave(case.csr.rowptr.diff())
    matrix.index_put_((target, case.csr.col.long()), case.weight, accumulate=True)
    found = run(case, "reference")
    torch.testing.assert_close(found["output"], matrix @ case.x)
    torch.testing.assert_close(found["x"], matrix.t() @ case.grad)
    torch.testing.assert_close(found["weight"], (case.grad @ case.x.t())[target, case.csr.col.long()])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [True, False])
class TestEqualsReference:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_at_odd_widths(self, backend, weighted, shape):
        case = make_case(shape=shape, weighted=weighted)
        assert_close(run(case, backend), run(case.to(torch.float64), "reference"), F32)
        exact = case.to(torch.float64)
        assert_close(run(exact, backend), run(exact, "reference"), F64)

    @pytest.mark.parametrize("shape", [(7,), (2, 7), (0,), (2, 0)])
    @pytest.mark.parametrize(("num_nodes", "num_edges"), [(0, 0), (1, 0), (6, 0), (1, 1), (1, 70), (3, 2)])
    def test_at_odd_sizes(self, backend, weighted, shape, num_nodes, num_edges):
        case = make_case(num_nodes, num_edges, shape, weighted=weighted)
        assert_close(run(case, backend), run(case.to(torch.float64), "reference"), F32)


@pytest.mark.parametrize("backend", BACKENDS)
class TestBackend:
    def test_gradients_are_those_of_finite_differences(self, backend):
        case = make_case(6, 20, (2, 3)).to(torch.float64)
        with use_backend(backend):
            assert torch.autograd.gradcheck(
                lambda x, weight: weighted_sum(x, case.csr, weight),
                (case.x.requires_grad_(), case.weight.requires_grad_()),
            )

    def test_a_node_without_edges_gets_zeros(self, backend):
        case = make_case()
        empty = case.csr.rowptr.diff() == 0
        assert empty.any()
        assert (run(case, backend)["output"][empty] == 0).all()

    def test_runs_repeat_bit_for_bit_whatever_the_number_of_threads(self, backend):
        case = make_case(shape=(2, 40))
        first = run(case, backend)
        if backend == "numba":
            torch.set_num_threads(1)
        assert same(run(case, backend), first)

    def test_no_output_depends_on_gradients_or_on_what_memory_held(self, backend, monkeypatch):
        case = make_case()
        clean = run(case, backend)
        with use_backend(backend), torch.no_grad():
            assert torch.equal(weighted_sum(case.x, case.csr, case.weight), clean["output"])
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
        assert torch.empty(3).isnan().all()
        assert same(run(case, backend), clean)

    def test_strided_views_are_read_rightly(self, backend):
        case = make_case(shape=(3, 8))
        wide = torch.full((50, 2, 3, 8), torch.nan)
        wide[:, 1] = case.x
        apart = torch.full((50, 3, 16), torch.nan)
        apart[..., 8:] = case.x
        turned = case.x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        weight, grad = (t.t().contiguous().t() for t in (case.weight, case.grad.flatten(1)))
        expected = run(case, backend)
        for x in (wide[:, 1], apart[..., 8:], turned):
            assert same(run(Case(case.csr, x, weight, grad.view(50, 3, 8)), backend), expected)

    def test_a_broadcast_gradient_is_read_rightly(self, backend):
        case = make_case()
        expected = run(case._replace(grad=torch.ones(50, 3, 7)), backend)
        assert same(run(case._replace(grad=torch.ones(1, 1, 1).expand(50, 3, 7)), backend), expected)

    def test_both_index_types_agree(self, backend):
        case = make_case()
        rowptr, col = case.csr
        found, expected = (run(case._replace(csr=CSR(rowptr, ids)), backend) for ids in (col.int(), col.long()))
        assert same(found, expected)

    def test_nan_comes_through(self, backend):
        case = make_case()
        case.x[3, 1, 2] = torch.nan
        case.weight[5, 0] = torch.nan
        found, expected = run(case, backend), run(case, "reference")
        assert all(torch.equal(found[name].isnan(), expected[name].isnan()) for name in expected)
        assert 0 < expected["output"].isnan().sum() < expected["output"].numel()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_summed_in_float32(self, backend, dtype):
        case = make_case().to(dtype)
        found, expected = run(case, backend), run(case.to(torch.float32), backend)
        assert same(found, {name: value.to(dtype) for name, value in expected.items()})

    def test_under_autocast_each_gradient_keeps_its_precision(self, backend):
        case = make_case()
        x, weight = case.x.to(torch.bfloat16).requires_grad_(), case.weight.clone().requires_grad_()
        with use_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
            out = weighted_sum(x, case.csr, weight)
            out.backward(case.grad.to(torch.bfloat16))
        rounded = Case(case.csr, x.detach().float(), case.weight, case.grad.to(torch.bfloat16).float())
        expected = run(rounded, backend)
        found = {"output": out, "x": x.grad, "weight": weight.grad}
        assert same(found, {**{k: v.to(torch.bfloat16) for k, v in expected.items()}, "weight": expected["weight"]})

    @pytest.mark.parametrize("weighted", [True, False])
    def test_only_the_gradients_asked_for_are_given(self, backend, weighted):
        case = make_case()
        expected = run(case, backend)
        x, weight = case.x.clone(), case.weight.clone()
        leaf = weight.requires_grad_() if weighted else x.requires_grad_()
        with use_backend(backend):
            weighted_sum(x, case.csr, weight).backward(case.grad)
        assert torch.equal(leaf.grad, expected["weight" if weighted else "x"])
        assert (x if weighted else weight).grad is None

    def test_a_backward_pass_can_be_repeated_and_the_output_changed_in_place(self, backend):
        for shape in ((3, 7), (8,), (3, 8)):
            case = make_case(shape=shape)
            x = case.x.clone().requires_grad_()
            with use_backend(backend):
                out = weighted_sum(x, case.csr, case.weight).mul_(2)
            first, second = (torch.autograd.grad(out, x, case.grad, retain_graph=True)[0] for _ in range(2))
            assert torch.equal(first, second)
            torch.testing.assert_close(first, 2 * run(case, backend)["x"])

    def test_a_second_derivative_is_refused(self, backend):
        case = make_case()
        x = case.x.clone().requires_grad_()
        with use_backend(backend):
            out = weighted_sum(x, case.csr, case.weight)
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()

    @pytest.mark.filterwarnings(
        "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
    )  # by torch.func.jvp itself
    def test_functional_transforms_are_refused(self, backend):
        case = make_case()

        def total(x):
            return weighted_sum(x, case.csr, case.weight).sum()

        with use_backend(backend):
            for transform in (
                torch.func.grad(total),
                lambda x: torch.vmap(total)(x[None]),
                lambda x: torch.func.jvp(total, (x,), (x,)),
            ):
                with pytest.raises(BackendError, match=r"weighted_sum: .* 'reference'|weighted_sum: .*\('reference'\)"):
                    transform(case.x)
            with forward_ad.dual_level(), pytest.raises(BackendError, match="weighted_sum"):
                total(forward_ad.make_dual(case.x, case.x))

    def test_memory_does_not_grow_with_edges_times_channels(self, backend):
        num_edges, shape = 6_000, (2, 40)
        case = make_case(40, num_edges, shape)
        run(case, backend)  # builds what is cached of the graph
        needed = peak_bytes(lambda: run(case, backend))
        # A few [E, H] and [N, H, C] tensors; the messages alone would take 1.9 MB.
        assert needed < 8 * 4 * (num_edges * 2 + 40 * 80)

    def test_sage_and_gcn_keep_nothing_but_the_graph_for_the_backward_pass(self, backend):
        case = make_case(shape=(8,), weighted=False)
        x = case.x.clone().requires_grad_()
        with use_backend(backend):
            hidden = x * 1
            gone = weakref.ref(hidden)
            out = weighted_sum(hidden, case.csr)
        del hidden
        gc.collect()
        assert gone() is None
        out.backward(case.grad)
        assert torch.equal(x.grad, run(case, backend)["x"])


def _poisoned(function):
    def wrapped(*args, **kwargs):
        tensor = function(*args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else -77)

    return wrapped


def test_the_reference_can_be_differentiated_twice():
    case = make_case(5, 12, (2, 3)).to(torch.float64)
    with use_backend("reference"):
        assert torch.autograd.gradgradcheck(
            lambda x, weight: weighted_sum(x, case.csr, weight), (case.x.requires_grad_(), case.weight.requires_grad_())
        )


def test_a_changed_graph_is_looked_at_again():
    case = make_case()
    before = run(case, "numba")
    case.csr.col.copy_(case.csr.col.flip(0))
    after = run(case, "numba")
    assert not torch.equal(before["x"], after["x"])
    assert_close(after, run(case.to(torch.float64), "reference"), F32)


def test_a_graph_is_freed_with_its_tensors():
    case = make_case()
    run(case, "numba")
    gone = weakref.ref(case.csr.rowptr)
    del case
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(49, 3, 7)}, r"x: expected .* N = 50 as in the CSR, got \[49, 3, 7\]"),
        ({"x": torch.zeros(50)}, r"x: expected \[N, C\] or \[N, H, C\]"),
        ({"x": torch.zeros(50, 3, 7, dtype=torch.int64)}, "x: expected floating point numbers, got torch.int64"),
        ({"weight": torch.zeros(700)}, r"weight: expected \[700, 3\] to fit the CSR and x, got \[700\]"),
        ({"weight": torch.zeros(700, 3, dtype=torch.bool)}, "weight: expected floating point numbers, got torch.bool"),
        ({"weight": torch.zeros(700, 3, device="meta")}, "weight is on meta and the CSR on cpu; expected one device"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message):
    case = make_case()._replace(**change)
    with pytest.raises(DataError, match=message) as caught:
        weighted_sum(case.x, case.csr, case.weight)
    assert "\n" not in str(caught.value)


def test_a_compiled_call_equals_the_eager_one():
    torch.compiler.reset()
    for weighted in (True, False):
        case = make_case(weighted=weighted)
        x = case.x.clone().requires_grad_()
        weight = case.weight.clone().requires_grad_() if weighted else None
        function = torch.compile(
            lambda x, rowptr, col, weight: weighted_sum(x, CSR(rowptr, col), weight), backend="aot_eager"
        )
        out = function(x, *case.csr, weight)
        out.backward(case.grad)
        expected = run(case, "numba")
        assert torch.equal(out, expected["output"])
        assert torch.equal(x.grad, expected["x"])
        assert weight is None or torch.equal(weight.grad, expected["weight"])
    torch.compiler.reset()
