"""The residual stack: its formula, its own dropout masks, tied layers, and checkpointing that changes nothing."""

import pytest
import torch
from torch import nn

from tests.layers.graphs import gradients, stack_inputs
from tests.layers.memory import peak_bytes
from zoo.layers.block import Block
from zoo.layers.conv import GENConv
from zoo.layers.inputs import BlockInputs
from zoo.layers.residual import ResidualStack


def res_stack(num_layers: int = 4, channels: int = 8, *, norm="layer", dropout=0.0, **options) -> ResidualStack:
    torch.manual_seed(0)
    layers = [
        Block(channels, GENConv(channels, embedding_channels=channels, norm=norm), norm=norm, dropout=dropout)
        for _ in range(options.pop("num_distinct", num_layers))
    ]
    return ResidualStack(layers, num_steps=num_layers, **options).double()


def run(stack: nn.Module, x: torch.Tensor, inputs: BlockInputs, seed: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    out = stack(x, inputs)
    out.square().sum().backward()
    return {"out": out.detach(), "x": x.grad, **gradients(stack)}


def test_layers_apply_as_the_formula_says() -> None:
    stack = res_stack(3)
    x, inputs = stack_inputs(mask=False)
    first, second, third = stack.layers
    h = first.conv(x, inputs)
    h = h + second.conv(second.norm(h).relu(), inputs)
    h = h + third.conv(third.norm(h).relu(), inputs)
    torch.testing.assert_close(stack(x, inputs), first.norm(h))


def test_tied_layers_take_turns_and_the_last_norm_is_the_next_ones() -> None:
    stack = res_stack(5, num_distinct=2)
    x, inputs = stack_inputs(mask=False)
    a, b = stack.layers
    h = a.conv(x, inputs)
    for layer in (b, a, b, a):
        h = h + layer.conv(layer.norm(h).relu(), inputs)
    torch.testing.assert_close(stack(x, inputs), b.norm(h))
    assert len(list(stack.parameters())) == len(list(res_stack(2).parameters()))


def test_single_layer_is_a_convolution_and_a_norm() -> None:
    stack = res_stack(1)
    x, inputs = stack_inputs(mask=False)
    torch.testing.assert_close(stack(x, inputs), stack.layers[0].norm(stack.layers[0].conv(x, inputs)))


def test_every_layer_draws_a_dropout_mask_of_its_own() -> None:
    stack, masks = res_stack(4, dropout=0.5), []
    x, inputs = stack_inputs(mask=False)
    for layer in stack.layers:
        layer.conv.register_forward_pre_hook(lambda module, args: masks.append(args[0] == 0))
    run(stack, x, inputs)
    assert len(masks) == 4
    assert not masks[0].any()
    dropped = [mask.double().mean() for mask in masks[1:]]
    assert all(0.55 < share < 0.95 for share in dropped)  # half of those that ReLU has let through, too
    assert not torch.equal(masks[1], masks[2])
    assert not torch.equal(masks[2], masks[3])


def test_nothing_is_dropped_in_eval_mode() -> None:
    x, inputs = stack_inputs(mask=False)
    stack = res_stack(dropout=0.5).eval()
    assert torch.equal(stack(x, inputs), stack(x, inputs))
    torch.testing.assert_close(stack(x, inputs), res_stack(dropout=0.0)(x, inputs))


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("num_distinct", [2, 5])
def test_checkpointing_changes_no_number(norm: str, num_distinct: int) -> None:
    x, inputs = stack_inputs(mask=False)
    plain, kept = (
        res_stack(5, norm=norm, dropout=0.3, num_distinct=num_distinct, checkpoint=checkpoint)
        for checkpoint in (False, True)
    )
    expected, actual = run(plain, x, inputs), run(kept, x, inputs)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None
        else:
            assert torch.equal(actual[name], value), name
    for name, buffer in plain.state_dict().items():
        assert torch.equal(kept.state_dict()[name], buffer), name


def test_checkpointing_keeps_one_state_for_a_layer() -> None:
    x, inputs = stack_inputs(400, 16, mask=False)
    state = x.numel() * x.element_size()

    def growth(checkpoint: bool) -> float:
        short, long = (
            peak_bytes(lambda n=n: run(res_stack(n, 16, dropout=0.2, num_distinct=1, checkpoint=checkpoint), x, inputs))
            for n in (4, 12)
        )
        return (long - short) / (8 * state)

    assert growth(True) < 1.2
    assert growth(False) > 5


def test_residual_stream_stays_at_full_precision_under_autocast() -> None:
    stack = res_stack(3).float()
    x, inputs = stack_inputs(mask=False, dtype=torch.float32)
    seen = []
    stack.layers[2].norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stack(x, inputs)
    assert seen == [torch.float32]


def test_stack_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        ResidualStack([])
