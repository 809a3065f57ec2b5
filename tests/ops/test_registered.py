"""Compiled graphs compute what eager calls do."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.ops.cases import AGGREGATIONS, forward, make_case
from zoo.ops.backend import use_backend
from zoo.ops.csr import CSR
from zoo.ops.gen_aggregate import gen_aggregate, registered


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _arguments(case, *more):
    leaves = [None if t is None else t.clone().requires_grad_() for t in case[1:5]]
    return (leaves[0], *case.csr, *leaves[1:], 1e-7, *more)


@pytest.mark.parametrize("edges", ["projected", "embedded", "none"])
def test_operators_pass_the_checks_of_pytorch(edges):
    case = make_case(9, 40, C=5, edges=edges)
    factor = case.factor.clone().requires_grad_()
    calls = [
        (torch.ops.zoo.gen_max, _arguments(case)),
        (torch.ops.zoo.gen_max_arg, _arguments(case)),
        (torch.ops.zoo.gen_sum, _arguments(case, factor)),
        (torch.ops.zoo.gen_softmax, _arguments(case, factor, False)),
        (torch.ops.zoo.gen_softmax, _arguments(case, factor, True)),
    ]
    with use_backend("chunked"):
        for operator, arguments in calls:
            # Of gen_max no gradient is asked for: gen_max_arg takes its place then.
            checks = ["test_schema", "test_faketensor"]
            if operator is not torch.ops.zoo.gen_max:
                checks += ["test_autograd_registration"]
            torch.library.opcheck(operator, arguments, test_utils=checks)


@pytest.mark.parametrize("aggr", AGGREGATIONS)
def test_a_compiled_call_equals_the_eager_one(aggr):
    case = make_case()
    results = []
    for compiled in (False, True):
        leaves = {name: getattr(case, name).clone().requires_grad_() for name in ("x", "weight", "bias", "factor")}

        def function(leaves):
            return forward(case._replace(**leaves), aggr)

        out = torch.compile(function, fullgraph=True, backend="aot_eager")(leaves) if compiled else function(leaves)
        out.backward(case.grad)
        results.append([out.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)])
    assert len(results[0]) == len(results[1])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_one_compiled_graph_serves_graphs_of_any_size():
    function = torch.compile(
        lambda x, rowptr, col: gen_aggregate(x, CSR(rowptr, col)), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for num_nodes, num_edges in ((20, 90), (33, 70), (9, 0)):
        case = make_case(num_nodes, num_edges, edges="none")
        with torch.no_grad():
            assert torch.equal(function(case.x, *case.csr), gen_aggregate(case.x, case.csr))


def test_a_compiled_reference_is_the_reference():
    case = make_case()
    with use_backend("reference"):
        compiled = torch.compile(lambda x: forward(case._replace(x=x), "max"), backend="aot_eager")(case.x)
        assert torch.equal(compiled, forward(case, "max"))


def test_fake_tensors_of_any_device_get_their_shapes():
    with FakeTensorMode():
        x = torch.empty(5, 3, device="cuda", dtype=torch.bfloat16)
        rowptr, col = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (6, 9))
        out = torch.ops.zoo.gen_max(x, rowptr, col, None, None, None, 0.0)
        assert (out.shape, out.dtype, out.device.type) == ((5, 3), torch.float32, "cuda")


def test_a_second_derivative_is_refused():
    case = make_case()
    x = case.x.clone().requires_grad_()
    out = registered.max_aggregate(_messages(case, x))
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def _messages(case, x):
    from zoo.ops.gen_aggregate.interface import Messages

    return Messages(x, case.csr, case.edge_attr, case.weight, case.bias, 1e-7)
