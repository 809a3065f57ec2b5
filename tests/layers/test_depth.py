"""What depth does to gradients and to memory, at the recipes' real depths."""

import torch
from torch import nn

from tests.layers.graphs import gen_stack, plain, random_csr
from zoo.layers.coupling import couple
from zoo.layers.inputs import BlockInputs
from zoo.layers.reversible import ReversibleStack
from zoo.ops.edges import EdgeInput


def float32_stream(stack: ReversibleStack, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
    """The textbook form: everything in the dtype of x under plain autograd, no float64 stream."""
    groups = [inputs.group(index, stack.num_groups, slice_edges=False) for index in range(stack.num_groups)]
    state = list(x.chunk(stack.num_groups, dim=1))
    for blocks, block_inputs in stack._steps(groups):
        state = couple(blocks, state, block_inputs, x.dtype)
    return torch.cat(state, dim=1)


def test_1001_layers_are_inverted_and_their_gradient_error_stays_that_of_plain_float32() -> None:
    """Block inputs in backward are those of forward to the last bit, but for a handful of last bits in millions."""
    num_nodes, channels, num_layers = 24, 16, 1001
    stack = gen_stack(num_layers=num_layers, channels=channels)
    csr = random_csr(num_nodes, 6 * num_nodes)
    x, attr = torch.randn(num_nodes, channels), torch.rand(csr.num_edges, 8)
    mask = torch.empty(num_nodes, channels).bernoulli_(0.9) / 0.9
    encoder = nn.Linear(8, channels)
    head = torch.randn(channels)

    def step(run, dtype: torch.dtype) -> list[torch.Tensor]:
        stack.to(dtype).zero_grad()
        edges = EdgeInput(attr.to(dtype), encoder.weight.detach().to(dtype), encoder.bias.detach().to(dtype))
        state = x.to(dtype, copy=True).requires_grad_()
        out = run(state, BlockInputs(csr, edges, mask.to(dtype)))
        (nn.functional.layer_norm(out, (channels,)) @ head.to(dtype)).sigmoid().sum().backward()
        return [state.grad.double(), *(parameter.grad.double() for parameter in stack.parameters())]

    # Weights of float32 survive float64.
    exact = step(plain(stack.double()), torch.float64)
    stack.float()
    textbook = step(lambda state, inputs: float32_stream(stack, state, inputs), torch.float32)
    seen: list[torch.Tensor] = []
    for block in stack._blocks():
        block.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    ours = step(stack, torch.float32)

    def error(found: list[torch.Tensor]) -> float:
        difference = sum(float((a - b).square().sum()) for a, b in zip(found, exact, strict=True))
        return (difference / sum(float(b.square().sum()) for b in exact)) ** 0.5

    assert error(textbook) > 0
    assert error(ours) <= 3 * error(textbook)
    forward, backward = seen[: 2 * num_layers], seen[2 * num_layers :][::-1]
    differing = sum(int((a != b).sum()) for a, b in zip(forward, backward, strict=True))
    assert differing <= 1e-4 * sum(a.numel() for a in forward)


def test_stored_activations_do_not_grow_with_depth() -> None:
    """Everything autograd keeps for backward, beside the parameters, counted at 4 and at 64 layers."""

    def stored_bytes(num_layers: int, *, reversible: bool) -> int:
        stack = gen_stack(num_layers=num_layers, channels=16, reversible=reversible)
        csr = random_csr(200, 1200)
        attr = torch.rand(csr.num_edges, 16)
        own = {p.data_ptr() for p in stack.parameters()} | {attr.data_ptr(), csr.rowptr.data_ptr(), csr.col.data_ptr()}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in own:
                kept[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            stack(torch.randn(200, 16, requires_grad=True), BlockInputs(csr, EdgeInput(attr)))
        return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())

    shallow, deep = (stored_bytes(num_layers, reversible=True) for num_layers in (4, 64))
    assert deep == shallow == 200 * 16 * 8
    assert stored_bytes(64, reversible=False) > 10 * stored_bytes(4, reversible=False)
