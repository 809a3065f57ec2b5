"""Oscillators: exact inversion, gradients of plain autograd and constant memory over a thousand steps."""

import copy
import math

import pytest
import torch
from torch import nn

from tests.layers.graphs import stack_inputs
from tests.layers.memory import peak_bytes
from zoo.layers.block import Block
from zoo.layers.conv import GENConv, SAGEConv
from zoo.layers.inputs import BlockInputs
from zoo.layers.oscillator import OscillatorStack

CALM = {"step_size": 0.1, "damping": 0.3}


def sage_stack(num_steps: int, *, channels: int = 8, num_distinct: int = 1, **options) -> OscillatorStack:
    torch.manual_seed(0)
    half = channels // 2
    blocks = [Block(half, SAGEConv(half), norm=options.pop("norm", "layer")) for _ in range(num_distinct)]
    return OscillatorStack(blocks, num_steps=num_steps, **options)


def sage_inputs(**options) -> tuple[torch.Tensor, BlockInputs]:
    x, inputs = stack_inputs(**options)
    return x, inputs._replace(edges=None)


def outcome(stack: OscillatorStack, x: torch.Tensor, inputs: BlockInputs) -> list[torch.Tensor]:
    """Output, gradient of the input, gradients of the parameters."""
    h = x.clone().requires_grad_()
    out = stack(h, inputs)
    found = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), [h, *stack.parameters()])
    return [out.detach(), *found]


def test_a_step_is_its_formula() -> None:
    stack, (x, inputs) = sage_stack(2, damping=0.25, step_size=0.4, stiffness=0.7).double(), sage_inputs(mask=False)
    position, velocity = x.chunk(2, dim=1)
    for _ in range(2):
        force = stack.blocks[0](position, inputs).tanh()
        velocity = velocity + 0.4 * (force - 0.7 * position - 0.25 * velocity)
        position = position + 0.4 * velocity
    expected = torch.cat([position, velocity], dim=1)
    torch.testing.assert_close(stack(x, inputs), expected, rtol=0, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(stack(x, inputs), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("options", [CALM, {"damping": 0.0, "step_size": 0.1}])
def test_gradients_of_a_thousand_steps_are_those_of_plain_autograd(options: dict) -> None:
    stack, (x, inputs) = sage_stack(1000, **options).double(), sage_inputs(num_nodes=6)
    stack.inversion_error = 1.0
    ours = outcome(stack, x, inputs)
    assert stack.inversion_error <= 2.0**-44
    stack.reversible = False
    for mine, expected in zip(ours, outcome(stack, x, inputs), strict=True):
        assert float((mine - expected).norm() / expected.norm()) < 1e-9


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_blocks_of_their_own_edge_features_and_masks(norm: str) -> None:
    torch.manual_seed(0)
    blocks = [Block(4, GENConv(4, embedding_channels=8, norm=norm), norm=norm, dropout=0.3) for _ in range(3)]
    stack = OscillatorStack(blocks, num_steps=7, **CALM).double()
    twin = copy.deepcopy(stack)
    twin.reversible = False
    x, inputs = stack_inputs()
    for leaf in (inputs.edges.attr, inputs.edges.weight):
        leaf.requires_grad_()
    found = []
    for module in (stack, twin):
        torch.manual_seed(5)
        h = x.clone().requires_grad_()
        sources = [h, inputs.edges.attr, inputs.edges.weight, *module.parameters()]
        found.append([*torch.autograd.grad(module(h, inputs).square().sum(), sources), *module.buffers()])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_float32_states_are_restored_to_the_last_bit(damping: float) -> None:
    stack = sage_stack(300, step_size=0.1, damping=damping)
    x, inputs = sage_inputs(dtype=torch.float32)
    seen: list[torch.Tensor] = []
    stack.blocks[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].detach().clone()))
    stack(x.requires_grad_(), inputs).sum().backward()
    assert len(seen) == 600
    assert all(torch.equal(a, b) for a, b in zip(seen[:300], seen[300:][::-1], strict=True))


def test_memory_of_a_thousand_steps_is_that_of_ten() -> None:
    def peak(num_steps: int, *, reversible: bool = True) -> int:
        stack = sage_stack(num_steps, channels=16, reversible=reversible, **CALM)
        x, inputs = sage_inputs(num_nodes=100, channels=16, dtype=torch.float32)
        return peak_bytes(lambda: stack(x.requires_grad_(), inputs).sum().backward())

    ten = peak(10)
    assert peak(1000) <= 1.1 * ten
    assert peak(40, reversible=False) > 3 * ten


def test_two_backward_passes_give_the_same() -> None:
    stack, (x, inputs) = sage_stack(5), sage_inputs(dtype=torch.float32)
    out = stack(x.requires_grad_(), inputs).sum()
    first = torch.autograd.grad(out, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out, x)[0])


def test_frozen_blocks_and_blocks_that_ignore_their_input_pass_gradients_on() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
            return torch.ones_like(x)

    x, inputs = sage_inputs()
    for stack in (sage_stack(4).double().requires_grad_(False), OscillatorStack([Constant()], num_steps=4)):
        found = []
        for stack.reversible in (True, False):
            h = x.clone().requires_grad_()
            found.append(torch.autograd.grad(stack(h, inputs).square().sum(), h)[0])
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e7])
def test_values_out_of_range_make_the_output_nan(value: float) -> None:
    stack, (x, inputs) = sage_stack(3), sage_inputs(dtype=torch.float32)
    x[0, 0] = value
    assert stack(x.requires_grad_(), inputs).isnan().all()


def test_what_does_not_fit_is_refused() -> None:
    x, inputs = sage_inputs(dtype=torch.float32)
    stack = sage_stack(1000, damping=0.1)
    with pytest.raises(ValueError, match="at most 348 with 1/10 as step_size"):
        stack(x, inputs)
    with torch.no_grad():
        assert stack(x, inputs).isfinite().all()
    with pytest.raises(ValueError, match="even C"):
        stack(x[:, :7], inputs)
    with pytest.raises(ValueError, match="oscillator stack needs float32"):
        stack(x.half(), inputs)
    for blocks, damping in (([], 0.1), ([nn.Identity()], 1.0), ([nn.Identity()], -0.1)):
        with pytest.raises(ValueError, match="0 <= step_size"):
            OscillatorStack(blocks, damping=damping)
