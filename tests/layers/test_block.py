"""Blocks fuse norm, ReLU and mask where nobody can tell, and only there."""

import pytest
import torch
from torch import nn
from torch.autograd import graph
from torch.nn.utils import parametrizations

from tests.layers.graphs import random_csr
from zoo.layers.block import Block, normed_relu
from zoo.layers.conv import GENConv
from zoo.layers.inputs import BlockInputs

N, C = 23, 16


def make_block(norm="layer", **options):
    torch.manual_seed(0)
    block = Block(C, GENConv(C, norm=norm, **options), norm=norm)
    for module in (block.norm, block.conv.mlp[1]):
        nn.init.normal_(module.weight)
        nn.init.normal_(module.bias)
    return block


def make_inputs(*, masked=True):
    torch.manual_seed(1)
    mask = (torch.rand(N, 2 * C) < 0.8).float()[:, C:] / 0.8
    return torch.randn(N, C), BlockInputs(random_csr(N, 4 * N, seed=2), None, mask if masked else None)


def results(block, x, inputs):
    x = x.clone().requires_grad_()
    out = block(x, inputs)
    learned = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *learned])]


def watch(block):
    """Hooks that do nothing, at every module: each is then called as a module."""
    for module in block.modules():
        module.register_forward_hook(lambda *args: None)
    return block


@pytest.mark.parametrize("aggr", ["max", "mean", "softmax", "powermean"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_watched_block_computes_the_same(aggr, masked):
    x, inputs = make_inputs(masked=masked)
    options = {"aggr": aggr, "scale_by_degree": True, "message_norm": True}
    fused, watched = make_block(**options), watch(make_block(**options))
    for found, expected in zip(results(fused, x, inputs), results(watched, x, inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_tape_of_a_block_holds_each_state_once():
    x, inputs = make_inputs()
    block, sizes = make_block(), []
    with graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() if t.numel() >= N * C else 0) or t, lambda t: t):
        block(x.requires_grad_(), inputs)
    # x and mask, winning edges, the MLP's input, and twice as wide its layer before and after the norm.
    assert sum(sizes) - sum(p.numel() for p in block.parameters() if p.numel() >= N * C) == (4 + 2 * 2) * N * C


@pytest.mark.parametrize("which", ["norm", "conv.mlp.1", "conv.mlp.2", "conv.mlp", "conv.mlp.3"])
def test_hooks_of_every_module_are_called(which):
    x, inputs = make_inputs()
    block, seen = make_block(), []
    module = block.get_submodule(which)
    module.register_forward_pre_hook(lambda module, args: seen.append("before"))
    module.register_forward_hook(lambda module, args, out: seen.append(out.shape[0]))
    module.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("gradient"))
    results(block, x, inputs)
    assert seen == ["before", N, "gradient"]


def test_hooks_of_all_modules_are_called():
    x, inputs = make_inputs()
    block, seen = make_block(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(type(module)))
    try:
        block(x, inputs)
    finally:
        handle.remove()
    assert seen.count(nn.LayerNorm) == 2
    assert seen.count(nn.ReLU) == 1


class Doubled(nn.LayerNorm):
    """A norm of somebody else's."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "norm",
    [
        Doubled(C),
        nn.LayerNorm(C, elementwise_affine=False),
        nn.LayerNorm(C, bias=False),
        nn.BatchNorm1d(C),
        nn.Identity(),
        nn.Sequential(nn.LayerNorm(C), nn.Dropout(0.0)),
        parametrizations.weight_norm(nn.LayerNorm(C), dim=None),
    ],
)
def test_other_norms_are_called_as_they_are(norm):
    x, inputs = make_inputs()
    before = x.clone()
    torch.testing.assert_close(normed_relu(norm, x, inputs.mask), norm(x).relu() * inputs.mask)
    assert torch.equal(x, before)


def test_a_forward_put_in_place_of_the_own_is_called():
    x, inputs = make_inputs()
    norm = nn.LayerNorm(C)
    norm.forward = lambda x: x + 1
    assert torch.equal(normed_relu(norm, x, inputs.mask), (x + 1).relu() * inputs.mask)


def test_eps_of_the_norm_is_kept():
    x, _ = make_inputs()
    norm = nn.LayerNorm(C, eps=0.5)
    torch.testing.assert_close(normed_relu(norm, x), norm(x).relu())


def test_weights_of_a_parametrised_mlp_get_gradients():
    x, inputs = make_inputs()
    block = make_block()
    for index in (0, 3):
        parametrizations.weight_norm(block.conv.mlp[index])
    grads = results(block, x, inputs)[1:]
    assert all(grad.isfinite().all() for grad in grads)
    assert any("original1" in name for name, _ in block.named_parameters())


def test_the_input_of_a_block_is_left_as_it_is():
    x, inputs = make_inputs()
    before = x.clone()
    results(make_block(), x, inputs)
    assert torch.equal(x, before)


def test_autocast_gives_the_mlp_what_it_did():
    x, inputs = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = make_block()(x, inputs), watch(make_block())(x, inputs)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * float(expected.detach().abs().max()))
