"""The reversible stack is a plain module to everyone around it, whatever its blocks do."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from tests.layers.graphs import gen_stack, gradients, plain, stack_inputs
from zoo.layers.block import Block
from zoo.layers.inputs import BlockInputs
from zoo.layers.reversible import ReversibleStack


class Mix(nn.Module):
    """A graph convolution that also counts how often it runs."""

    def __init__(self, channels: int, *extra: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.extra = nn.Sequential(*extra)
        self.calls = 0

    def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        self.calls += 1
        neighbors = torch.zeros_like(x).index_add(0, inputs.csr.col[: x.size(0)].long(), x)
        return self.extra(torch.tanh(self.linear(x + 0.1 * neighbors)))


def mix_stack(num_layers: int = 3, channels: int = 8, num_groups: int = 2, *, norm="layer", extra=list, **options):
    torch.manual_seed(0)
    width = channels // num_groups
    layers = [
        [Block(width, Mix(width, *extra()), norm=norm) for _ in range(num_groups)]
        for _ in range(options.pop("num_distinct", num_layers))
    ]
    return ReversibleStack(layers, num_steps=num_layers, **options).double()


def run(stack: nn.Module, x: torch.Tensor, inputs: BlockInputs, seed: int = 3) -> dict[str, torch.Tensor | None]:
    """Loss, output and gradients of a step, every random number drawn from ``seed``."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    out = stack(x, inputs)
    loss = out.square().mean()
    loss.backward()
    return {"loss": loss.detach(), "out": out.detach(), "x": x.grad, **gradients(stack)}


def assert_same(actual: dict, expected: dict, rtol: float = 1e-10) -> None:
    assert actual.keys() == expected.keys()
    # A bias before a norm has a gradient of zero, of which rounding leaves something.
    atol = rtol * max(float(value.abs().max()) for value in expected.values() if value is not None)
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(actual[name], value, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("num_groups", [2, 4])
@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_plain_autograd(num_groups: int, norm: str, training: bool) -> None:
    stack = gen_stack(num_groups=num_groups, norm=norm).double().train(training)
    x, inputs = stack_inputs()
    twin = plain(copy.deepcopy(stack))
    assert_same(run(stack, x, inputs), run(twin, x, inputs))


def test_output_equals_plain_autograd_to_the_last_bit() -> None:
    stack, (x, inputs) = gen_stack(), stack_inputs(dtype=torch.float32)
    assert torch.equal(stack(x, inputs), plain(stack)(x, inputs))
    with torch.no_grad():
        assert torch.equal(stack(x, inputs), plain(stack)(x, inputs))


def test_everything_the_blocks_read_gets_its_gradient() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    tensors = [inputs.edges.attr, inputs.edges.weight, inputs.edges.bias, inputs.mask]

    def step(module: nn.Module) -> list[torch.Tensor]:
        attr, weight, bias, mask = leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        edges = inputs.edges._replace(attr=attr, weight=weight, bias=bias)
        module(x, inputs._replace(edges=edges, mask=mask)).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for actual, expected in zip(step(stack), step(plain(stack)), strict=True):
        torch.testing.assert_close(actual, expected)


def test_dropout_inside_a_block_is_replayed() -> None:
    stack = mix_stack(extra=lambda: [nn.Dropout(0.5)])
    x, inputs = stack_inputs()
    assert_same(run(stack, x, inputs), run(plain(stack), x, inputs))
    # The replay leaves the generator where a plain backward would.
    torch.manual_seed(0)
    out = stack(x.requires_grad_(), inputs)
    before = torch.get_rng_state()
    out.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_norm_statistics_are_counted_once() -> None:
    stack = mix_stack(norm="batch")
    twin = plain(copy.deepcopy(stack))
    x, inputs = stack_inputs()
    for module in (stack, twin):
        run(module, x, inputs)
    assert int(stack.layers[0][0].norm.num_batches_tracked) == 1
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(dict(stack.named_buffers())[name], buffer, rtol=0, atol=0)


def test_statistics_that_move_before_backward_do_not_matter() -> None:
    stack = mix_stack(norm="batch").eval()
    x, inputs = stack_inputs()
    expected = run(stack, x, inputs)
    state = x.clone().requires_grad_()
    loss = stack(state, inputs).square().mean()
    stack.train()(torch.randn_like(x) * 5, inputs)
    loss.backward()
    assert_same({"x": state.grad, **gradients(stack)}, {k: v for k, v in expected.items() if k not in ("loss", "out")})
    assert stack.training


def test_input_may_be_used_again() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()

    def step(module: nn.Module) -> torch.Tensor:
        state = x.clone().requires_grad_()
        (state + module(state, inputs) * state).sum().backward()
        return state.grad

    torch.testing.assert_close(step(stack), step(plain(stack)))


def test_relu_right_before_the_stack() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    for inplace in (True, False):
        relu = nn.ReLU(inplace=inplace)

        def step(module: nn.Module, relu: nn.Module = relu) -> torch.Tensor:
            state = x.clone().requires_grad_()
            module(relu(state * 1), inputs).square().sum().backward()
            return state.grad

        torch.testing.assert_close(step(stack), step(plain(stack)))


def test_nothing_of_the_caller_is_changed() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    wide = torch.randn(x.size(0), 2 * x.size(1), dtype=x.dtype)
    view = wide[:, ::2]
    tensors = [x, wide, inputs.mask, *inputs.edges, *inputs.csr]
    before = [tensor.clone() for tensor in tensors]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out = stack.train(grad)(x, inputs), stack(view, inputs)
        if grad:
            (out[0].sum() + out[1].sum()).backward()
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


def test_a_single_node_is_not_changed_either() -> None:
    stack = mix_stack(norm="layer")
    x, inputs = stack_inputs(num_nodes=2)
    x, inputs = x[:1], BlockInputs(inputs.csr._replace(rowptr=inputs.csr.rowptr[:2], col=inputs.csr.col[:1] * 0))
    before = x.clone()
    stack(x, inputs)
    assert torch.equal(x, before)


def test_frozen_and_unused_parameters() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    stack.layers[1][0].unused = nn.Parameter(torch.ones(3, dtype=x.dtype))
    for parameter in stack.layers[0].parameters():
        parameter.requires_grad_(False)
    actual, expected = run(stack, x, inputs), run(plain(stack), x, inputs)
    assert_same(actual, expected)
    assert actual["layers.0.0.norm.weight"] is None
    assert actual["layers.1.0.unused"] is None
    stack.requires_grad_(False)
    assert_same(run(stack, x, inputs), run(plain(stack), x, inputs))


def test_blocks_without_parameters() -> None:
    class Wave(nn.Module):
        def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
            return torch.sin(x)

    stack, (x, inputs) = ReversibleStack([[Wave(), Wave()]] * 3), stack_inputs()
    assert_same(run(stack, x, inputs), run(plain(stack), x, inputs))


def test_a_block_that_ignores_its_input() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
            return torch.ones_like(x)

    stack, (x, inputs) = ReversibleStack([[Constant(), Mix(4).double()]]), stack_inputs()
    assert_same(run(stack, x, inputs), run(plain(stack), x, inputs))


def test_autocast_recomputes_in_the_same_precision() -> None:
    stack, (x, inputs) = gen_stack(num_layers=6), stack_inputs(dtype=torch.float32)
    seen = []
    for block in stack._blocks():
        block.conv.mlp[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))

    def step(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        state = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(state, inputs)
        out.square().sum().backward()
        return out.detach(), state.grad, *(p.grad.clone() for p in module.parameters())

    actual = step(stack)
    assert set(seen) == {torch.bfloat16}
    assert len(seen) == 2 * 6 * 2
    stack.zero_grad()
    assert actual[0].dtype == torch.float32
    for mine, theirs in zip(actual, step(plain(stack)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))


def test_the_stream_is_full_precision_under_autocast() -> None:
    stack, (x, inputs) = gen_stack(num_layers=2), stack_inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = stack(x.bfloat16(), inputs)
    assert out.dtype == torch.float32
    # An output of bfloat16 states would hold 8 bits; the stream holds more.
    assert not torch.equal(out, out.bfloat16().float())


def test_half_precision_outside_autocast_is_refused() -> None:
    stack, (x, inputs) = gen_stack(), stack_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"float32 or float64 states, got torch\.bfloat16"):
        stack(x.bfloat16(), inputs)


def test_two_backward_passes_with_retain_graph() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    x.requires_grad_()
    loss = stack(x, inputs).square().sum()
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * first)


def test_autograd_grad_leaves_no_grad() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    found = torch.autograd.grad(stack(x, inputs).square().mean(), list(stack.parameters()))
    assert all(parameter.grad is None for parameter in stack.parameters())
    expected = run(plain(stack), x, inputs)
    for (name, _), gradient in zip(stack.named_parameters(), found, strict=True):
        torch.testing.assert_close(gradient, expected[name])


def test_changing_the_output_in_place_gives_the_right_gradient() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()

    def step(module: nn.Module) -> torch.Tensor:
        state = x.clone().requires_grad_()
        out = module(state, inputs)
        out.mul_(2)
        out.sum().backward()
        return state.grad

    torch.testing.assert_close(step(stack), step(plain(stack)))


@pytest.mark.parametrize("which", ["mask", "weight", "parameter"])
def test_changing_what_backward_needs_in_place_is_an_error(which: str) -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    loss = stack(x.requires_grad_(), inputs).sum()
    with torch.no_grad():
        {
            "mask": inputs.mask,
            "weight": inputs.edges.weight,
            "parameter": next(stack.parameters()),
        }[which].mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_double_backward_is_a_clear_error() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(stack(x, inputs).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_each_block_runs_twice_per_step() -> None:
    stack, (x, inputs) = mix_stack(), stack_inputs()
    run(stack, x, inputs)
    assert {block.conv.calls for block in stack._blocks()} == {2}


def test_weight_tying_and_hooks() -> None:
    stack, (x, inputs) = mix_stack(num_layers=6, num_distinct=2), stack_inputs()
    assert len(list(stack.parameters())) == 2 * 2 * 4
    fired = []
    stack.layers[0][0].conv.linear.weight.register_hook(lambda grad: fired.append(1))
    actual = run(stack, x, inputs)
    assert fired == [1]
    assert_same(actual, run(plain(stack), x, inputs))


def test_one_parameter_in_two_places() -> None:
    stack, (x, inputs) = mix_stack(), stack_inputs()
    stack.layers[2][1].conv.linear.weight = stack.layers[0][0].conv.linear.weight
    assert_same(run(stack, x, inputs), run(plain(stack), x, inputs))


def test_functional_call_with_averaged_weights() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    own = dict(stack.named_parameters())
    average = {name: (parameter.detach() * 0.9).requires_grad_() for name, parameter in own.items()}
    derived = {name: tensor * 1.0 for name, tensor in average.items()}
    loss = torch.func.functional_call(stack, derived, (x, inputs)).square().mean()
    loss.backward()
    assert all(isinstance(parameter, nn.Parameter) for parameter in stack.parameters())
    assert all(parameter.grad is None for parameter in stack.parameters())
    twin = copy.deepcopy(stack)
    twin.load_state_dict(average)
    expected = run(plain(twin), x, inputs)
    for name, tensor in average.items():
        torch.testing.assert_close(tensor.grad, expected[name])


def test_func_grad_takes_the_plain_path() -> None:
    stack, (x, inputs) = mix_stack(), stack_inputs()
    found = torch.func.grad(lambda state: stack(state, inputs).square().mean())(x)
    torch.testing.assert_close(found, run(stack, x, inputs)["x"])


def test_deepcopy_is_independent() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    twin = copy.deepcopy(stack)
    expected = run(stack, x, inputs)
    with torch.no_grad():
        next(stack.parameters()).add_(1)
    assert_same(run(twin, x, inputs), expected)


def test_exception_in_forward_and_backward() -> None:
    class Fuse(nn.Module):
        countdown = 10**9

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Fuse.countdown -= 1
            if Fuse.countdown == 0:
                raise RuntimeError("blown")
            return x

    stack, (x, inputs) = mix_stack(extra=lambda: [Fuse()]), stack_inputs()
    expected = run(stack, x, inputs)
    before = x.clone()
    Fuse.countdown = 4
    with pytest.raises(RuntimeError, match="blown"):
        stack(x, inputs)
    assert torch.equal(x, before)
    state = x.clone().requires_grad_()
    loss = stack(state, inputs).square().mean()
    Fuse.countdown = 4
    with pytest.raises(RuntimeError, match="blown"):
        loss.backward(retain_graph=True)
    assert state.grad is None
    assert all(parameter.grad is None for parameter in stack.parameters())
    assert all(isinstance(parameter, nn.Parameter) for parameter in stack.parameters())
    loss.backward()
    assert_same({"x": state.grad, **gradients(stack)}, {k: v for k, v in expected.items() if k not in ("loss", "out")})


def test_forward_without_backward_is_freed_at_once() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    gc.disable()
    try:
        out = stack(x.requires_grad_(), inputs)
        ghost = weakref.ref(out.grad_fn)
        del out
        assert ghost() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_modes_and_saved_tensor_hooks() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()
    expected = run(stack, x, inputs)
    with torch.autograd.graph.save_on_cpu():
        assert_same(run(stack, x, inputs), expected)
    with torch.autograd.detect_anomaly(check_nan=True):
        assert_same(run(stack, x, inputs), expected)
    with torch.inference_mode():
        torch.testing.assert_close(stack(x, inputs), expected["out"])
    state = x.clone().requires_grad_()
    out = torch.utils.checkpoint.checkpoint(stack, state, inputs, use_reentrant=False)
    out.square().mean().backward()
    torch.testing.assert_close(state.grad, expected["x"])


# The compiler itself looks at .grad of what it hands over at the break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_torch_compile_goes_around_the_stack() -> None:
    stack, (x, inputs) = gen_stack().double(), stack_inputs()

    def step(state: torch.Tensor) -> torch.Tensor:
        return stack(state * 2, inputs) * 3

    def gradient(function) -> tuple[torch.Tensor, torch.Tensor]:
        state = x.clone().requires_grad_()
        out = function(state)
        out.square().sum().backward()
        return out.detach(), state.grad

    torch._dynamo.reset()
    compiled = gradient(torch.compile(step, backend="eager"))
    for actual, expected in zip(compiled, gradient(step), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_block_may_write_to_its_input(dtype: torch.dtype) -> None:
    class Inplace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
            return self.linear(x.relu_())

    class Outplace(Inplace):
        def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
            return self.linear(x.relu())

    x, inputs = stack_inputs(dtype=dtype)
    results = []
    for block in (Inplace, Outplace):
        torch.manual_seed(0)
        stack = ReversibleStack([[block(), block()] for _ in range(3)]).to(dtype)
        results += [run(stack, x, inputs), run(plain(stack), x, inputs)]
    for found in results[1:]:
        assert_same(found, results[0], rtol=1e-5)


def test_inverse_restores_the_input() -> None:
    stack, (x, inputs) = gen_stack(num_layers=12), stack_inputs(dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(stack.inverse(stack(x, inputs), inputs), x, rtol=1e-5, atol=1e-5)


def test_threads_share_a_stack() -> None:
    stack, (x, inputs) = gen_stack(num_layers=8).double(), stack_inputs()
    parameters = list(stack.parameters())
    expected = torch.autograd.grad(stack(x, inputs).square().mean(), parameters)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(10):
            found = torch.autograd.grad(stack(x, inputs).square().mean(), parameters, allow_unused=True)
            same = (a is not None and torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            if not all(same):
                wrong.append("a gradient differs")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_cached_parametrizations_are_seen_through() -> None:
    stack, (x, inputs) = mix_stack(), stack_inputs()
    for block in stack._blocks():
        nn.utils.parametrizations.weight_norm(block.conv.linear)
    expected = run(stack, x, inputs)
    with nn.utils.parametrize.cached():
        assert_same(run(stack, x, inputs), expected)


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        ReversibleStack([[nn.Identity()]])
    stack, (x, inputs) = gen_stack(channels=8), stack_inputs()
    for wrong in (x[:, :7], x[0]):
        with pytest.raises(ValueError, match=r"divisible by num_groups \(2\), got \["):
            stack(wrong, inputs)
    with pytest.raises(ValueError, match=r"float32 or float64 states, got torch\.int64$"):
        stack(x.long(), inputs)


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training: bool) -> None:
    stack = mix_stack(num_layers=2).train(training)
    x, inputs = stack_inputs(num_nodes=4)
    assert torch.autograd.gradcheck(lambda state: stack(state, inputs), x.requires_grad_())
