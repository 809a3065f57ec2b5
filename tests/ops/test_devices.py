"""On every device at hand what is chosen for it computes the definition: here the CPU, elsewhere GPUs too."""

import copy

import pytest
import torch

from tests.layers.graphs import gen_stack, stack_inputs
from tests.ops.cases import AGGREGATIONS, assert_close, forward, make_case, run
from zoo.layers.capture import capture_layers, capture_report
from zoo.layers.inputs import BlockInputs
from zoo.ops.csr import CSR
from zoo.ops.dispatch import use_backend
from zoo.ops.edges import EdgeInput
from zoo.ops.norm_relu import norm_relu
from zoo.ops.weighted_sum import weighted_sum

DEVICES = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
TOLERANCE = 1e-4

pytestmark = pytest.mark.parametrize("device", DEVICES)


def moved(value, device):
    """Tensors, and tuples of them at any depth, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return type(value)(*(moved(item, device) for item in value))
    return value


def chosen(function, leaves, grad, device):
    """Output and gradients by whatever the device chooses, brought back."""
    leaves = {name: leaf.to(device).requires_grad_() for name, leaf in leaves.items()}
    with use_backend(None):
        out = function(*leaves.values())
    grads = torch.autograd.grad(out, list(leaves.values()), grad.to(device), allow_unused=True)
    found = {f"gradient of {name}": g.cpu() for name, g in zip(leaves, grads, strict=True) if g is not None}
    return {"output": out.detach().cpu(), **found}


def exact(function, leaves, grad):
    """Output and gradients by the definition in float64."""
    leaves = {name: leaf.double().requires_grad_() for name, leaf in leaves.items()}
    with use_backend("reference"):
        out = function(*leaves.values())
    grads = torch.autograd.grad(out, list(leaves.values()), grad.double())
    return {"output": out.detach(), **{f"gradient of {name}": g for name, g in zip(leaves, grads, strict=True)}}


@pytest.mark.parametrize("aggr", AGGREGATIONS)
@pytest.mark.parametrize("edges", ["projected", "embedded", "none"])
@pytest.mark.parametrize("sizes", [(50, 700, 40), (700, 9000, 112), (3, 2, 7), (6, 0, 5)])
def test_aggregation(device, aggr, edges, sizes):
    num_nodes, num_edges, channels = sizes
    case = make_case(num_nodes, num_edges, C=channels, edges=edges)
    names = [name for name in ("x", "edge_attr", "weight", "bias", "factor") if getattr(case, name) is not None]
    there = moved(case.csr, device)

    def function(*tensors):
        return forward(case._replace(csr=there, **dict(zip(names, tensors, strict=True))), aggr)

    found = chosen(function, {name: getattr(case, name) for name in names}, case.grad, device)
    assert_close(found, run(case.to(torch.float64), "reference", aggr), TOLERANCE)


@pytest.mark.parametrize("shape", [(40,), (112,), (3, 8), (2, 72)])
def test_weighted_sum(device, shape):
    case = make_case(700, 9000)
    generator = torch.Generator().manual_seed(2)
    x, grad = (torch.randn(700, *shape, generator=generator) for _ in range(2))
    leaves = {"x": x, "weight": torch.randn(9000, *shape[:-1], generator=generator)}
    there: CSR = moved(case.csr, device)
    found = chosen(lambda x, weight: weighted_sum(x, there, weight), leaves, grad, device)
    expected = exact(lambda x, weight: weighted_sum(x, case.csr, weight), leaves, grad)
    assert_close(found, expected, TOLERANCE)


@pytest.mark.parametrize("channels", [9, 40, 112, 448])
def test_norm_relu(device, channels):
    generator = torch.Generator().manual_seed(3)
    weight, bias, x, grad = (torch.randn(*rows, channels, generator=generator) for rows in ((), (), (300,), (300,)))
    mask = (torch.rand(300, channels, generator=generator) > 0.2).float() / 0.8
    leaves = {"x": x, "weight": weight, "bias": bias}
    found = chosen(lambda x, weight, bias: norm_relu(x, weight, bias, mask.to(device)), leaves, grad, device)
    assert_close(found, exact(lambda *tensors: norm_relu(*tensors, mask.double()), leaves, grad), TOLERANCE)


@pytest.mark.parametrize("num_groups", [2, 4])
@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.filterwarnings("ignore:the layers are not captured. the states are on the cpu")
def test_reversible_stack(device, num_groups, capture):
    stack = gen_stack(num_layers=5, channels=32, num_groups=num_groups)
    plain = copy.deepcopy(stack).double()
    plain.reversible = False
    stack = stack.to(device)
    if capture:
        capture_layers(stack)
    # Parts of several sizes in turn, the first one again at the end.
    for num_nodes in (60, 300, 45, 60):
        x, inputs = stack_inputs(num_nodes, 32, dtype=torch.float32)
        there = moved(inputs, device)
        leaves, grad = {"x": x}, torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
        found = chosen(lambda x, there=there: stack(x, there), leaves, grad, device)
        double = BlockInputs(inputs.csr, EdgeInput(*(t.double() for t in inputs.edges)), inputs.mask.double())
        assert_close(found, exact(lambda x, double=double: plain(x, double), leaves, grad), TOLERANCE)
    if capture:
        assert (capture_report(stack)[""] == "captured") == device.startswith("cuda")
