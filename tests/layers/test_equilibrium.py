"""Implicit gradients equal unrolled ones, in the memory of one block, and solves that fail are seen."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrize

from tests.layers.graphs import gradients, stack_inputs
from tests.layers.memory import peak_bytes
from zoo.errors import ZooWarning
from zoo.layers.block import EquilibriumBlock
from zoo.layers.conv import GATConv, GCNConv, GENConv, SAGEConv
from zoo.layers.equilibrium import (
    EquilibriumLayer,
    FixedPoint,
    Phantom,
    Reversible,
    start_epoch,
    take_solve_metrics,
)
from zoo.layers.inputs import BlockInputs
from zoo.ops.edges import EdgeInput

CHANNELS = 8
CONVS = {
    "gen": lambda: GENConv(CHANNELS, embedding_channels=CHANNELS),
    "softmax": lambda: GENConv(CHANNELS, aggr="softmax", learn_temperature=True),
    "gcn": lambda: GCNConv(CHANNELS),
    "sage": lambda: SAGEConv(CHANNELS),
    "gat": lambda: GATConv(CHANNELS, num_heads=2),
}
# Some tests stop a solve before it has converged, or ask for more than the precision gives.
UNCONVERGED = pytest.mark.filterwarnings("ignore:a (forward|backward) solve stopped")
EXACT = {"tol": 1e-12, "max_iters": 100, "history": 20}


def block(conv: str = "gen", *, weight_norm: str = "none", scale: float = 0.5) -> EquilibriumBlock:
    """A block that contracts: the smaller the scale of its last norm, the more."""
    torch.manual_seed(0)
    made = EquilibriumBlock(CHANNELS, [CONVS[conv]() for _ in range(2)], weight_norm=weight_norm).double()
    nn.init.constant_(made.norms[1].weight, 0.25 * scale)
    return made


def layer(conv: str = "gen", *, method: str = "anderson", weight_norm: str = "none", **options) -> EquilibriumLayer:
    exact = FixedPoint(method=method, **EXACT)
    return EquilibriumLayer(block(conv, weight_norm=weight_norm), **{"solver": exact, "backward": exact} | options)


class Unrolled(nn.Module):
    """The same equation iterated many times under plain autograd."""

    def __init__(self, solved: EquilibriumLayer, num_steps: int = 40) -> None:
        super().__init__()
        self.block, self.num_steps = solved.block, num_steps

    def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        z = torch.zeros_like(x)
        for _ in range(self.num_steps):
            z = self.block(z, x, inputs)
        return z


class Damped(Unrolled):
    """The reversible solver's iterations under plain autograd."""

    def __init__(self, solved: EquilibriumLayer) -> None:
        super().__init__(solved, solved.solver.max_iters)
        self.beta = solved.solver.beta

    def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        y = z = torch.zeros_like(x)
        for _ in range(self.num_steps):
            y = (1 - self.beta) * y + self.beta * self.block(z, x, inputs)
            z = (1 - self.beta) * z + self.beta * self.block(y, x, inputs)
        return z


def leaves() -> tuple[torch.Tensor, BlockInputs, list[torch.Tensor]]:
    """Inputs that all require gradients: x, edge features, their encoder, the dropout mask."""
    x, inputs = stack_inputs()
    wanted = [t.clone().requires_grad_() for t in (x, *inputs.edges, inputs.mask)]
    return wanted[0], inputs._replace(edges=EdgeInput(*wanted[1:4]), mask=wanted[4]), wanted


def loss(out: torch.Tensor) -> torch.Tensor:
    """Sums over channels would not do: the last norm makes them constant."""
    return (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)).sum()


def run(module: nn.Module) -> dict[str, torch.Tensor | None]:
    x, inputs, wanted = leaves()
    out = module(x, inputs)
    loss(out).backward()
    grads = {name.removeprefix("block."): grad for name, grad in gradients(module).items()}
    return {"out": out.detach(), **{f"in{i}": t.grad for i, t in enumerate(wanted)}, **grads}


def assert_same(actual: dict, expected: dict, tol: float = 1e-9) -> None:
    assert actual.keys() == expected.keys()
    scale = max(float(value.abs().max()) for value in expected.values() if value is not None)
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(actual[name], value, rtol=tol, atol=tol * scale, msg=name)


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("method", ["anderson", "broyden", "picard"])
def test_implicit_gradients_equal_unrolled_ones(conv: str, method: str) -> None:
    solved = layer(conv, method=method)
    actual = run(solved)
    metrics = take_solve_metrics(solved)
    assert metrics["num_forward_unconverged"] == metrics["num_backward_unconverged"] == 0
    assert_same(actual, run(Unrolled(solved)))


@UNCONVERGED
@pytest.mark.parametrize("weight_norm", ["weight", "spectral"])
@pytest.mark.parametrize("method", ["anderson", "reversible"])
def test_gradients_reach_normalised_weights(weight_norm: str, method: str) -> None:
    solver = Reversible(tol=1e-30) if method == "reversible" else FixedPoint(**EXACT)
    solved = layer(weight_norm=weight_norm, solver=solver)
    actual = run(solved)
    twin = Damped(solved) if method == "reversible" else Unrolled(solved)
    # The weights of that pass: no step of the power iteration more.
    assert_same(actual, run(twin.eval()))


def test_power_iteration_takes_one_step_in_a_training_pass_and_none_in_eval() -> None:
    solved = layer("sage", weight_norm="spectral")
    linear = solved.block.convs[0].root
    reference = copy.deepcopy(linear)
    x, inputs = stack_inputs()
    for _ in range(3):
        _ = reference.weight
        loss(solved(x, inputs)).backward()
        assert torch.equal(linear.parametrizations.weight[0]._u, reference.parametrizations.weight[0]._u)
    reference.eval()
    solved.eval()(x, inputs)
    torch.testing.assert_close(linear.weight, reference.weight, rtol=0, atol=0)
    assert torch.linalg.matrix_norm(linear.weight, 2) < 1.2


def test_every_linear_map_is_normalised() -> None:
    for module in block(weight_norm="weight").modules():
        assert not isinstance(module, nn.Linear) or parametrize.is_parametrized(module, "weight")


@UNCONVERGED
@pytest.mark.parametrize("beta", [0.5, 0.8])
@pytest.mark.parametrize("conv", CONVS)
def test_reversible_gradients_are_those_of_its_iterations(conv: str, beta: float) -> None:
    """After three iterations, far from the fixed point."""
    solved = layer(conv, solver=Reversible(beta=beta, max_iters=3, tol=1e-30))
    actual = run(solved)
    assert take_solve_metrics(solved)["max_backward_residual"] == 0
    assert_same(actual, run(Damped(solved)))


@UNCONVERGED
def test_reversible_iterations_run_back_exactly_in_float32() -> None:
    solved = layer("gcn", solver=Reversible(max_iters=20, tol=1e-30)).float()
    nn.init.constant_(solved.block.norms[1].weight, 3.0)  # where the equation does not contract
    x, inputs = stack_inputs(dtype=torch.float32)
    loss(solved(x, inputs)).backward()
    metrics = take_solve_metrics(solved)
    assert metrics["num_forward_unconverged"] == 1
    assert metrics["max_forward_residual"] > 0.1
    assert metrics["num_backward_unconverged"] == metrics["max_backward_residual"] == 0


@pytest.mark.parametrize(("num_steps", "damping"), [(1, 1.0), (4, 0.5), (7, 0.9)])
def test_phantom_gradient_is_that_of_damped_steps_from_the_fixed_point(num_steps: int, damping: float) -> None:
    solved = layer(backward=Phantom(num_steps=num_steps, damping=damping))

    class DampedSteps(Unrolled):
        def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
            with torch.no_grad():
                z = super().forward(x, inputs)
            for _ in range(num_steps):
                z = (1 - damping) * z + damping * self.block(z, x, inputs)
            return z

    assert_same(run(solved), run(DampedSteps(solved)))
    assert "num_backward_solves" not in take_solve_metrics(solved)


@pytest.mark.parametrize("solver", [FixedPoint(), Reversible()])
def test_all_evaluations_of_a_solve_use_one_dropout_mask(solver: FixedPoint | Reversible) -> None:
    solved = layer(solver=solver)
    masks = []
    solved.block.register_forward_pre_hook(lambda module, args: masks.append(args[2].mask))
    x, inputs = stack_inputs()
    loss(solved(x.requires_grad_(), inputs)).backward()
    assert len(masks) > 5
    assert all(torch.equal(mask, inputs.mask) for mask in masks)


@UNCONVERGED
@pytest.mark.parametrize("solver", [FixedPoint("anderson"), FixedPoint("broyden"), FixedPoint("picard"), Reversible()])
def test_memory_does_not_grow_with_the_iterations(solver: FixedPoint | Reversible) -> None:
    x, inputs = stack_inputs(300)

    def peak(max_iters: int) -> int:
        endless = type(solver)(**{**vars(solver), "tol": 1e-30, "max_iters": max_iters})
        backward = FixedPoint() if isinstance(solver, Reversible) else endless
        solved = layer(solver=endless, backward=backward)
        bytes_ = peak_bytes(lambda: loss(solved(x.requires_grad_(), inputs)).backward())
        assert take_solve_metrics(solved)["mean_forward_iters"] == max_iters
        return bytes_

    peak(12)  # what is made once for a graph is made
    assert peak(22) <= peak(12) + 0.1 * x.numel() * x.element_size()


def test_unrolling_needs_memory_for_every_iteration() -> None:
    """What the check above would see if there were something to see."""
    x, inputs = stack_inputs(300)

    def peak(num_steps: int) -> int:
        return peak_bytes(lambda: loss(Unrolled(layer(), num_steps)(x.requires_grad_(), inputs)).backward())

    assert peak(22) > peak(6) + 16 * 5 * x.numel() * x.element_size()


@pytest.mark.parametrize("solver", [FixedPoint(tol=1e-30, max_iters=4), Reversible(tol=1e-30, max_iters=4)])
def test_solves_that_do_not_converge_are_counted_and_warned_of_once(solver: FixedPoint | Reversible) -> None:
    solved = nn.Sequential(layer(solver=solver, backward=FixedPoint(tol=1e-30, max_iters=6)))
    x, inputs = stack_inputs()
    with pytest.warns(ZooWarning, match="a forward solve stopped at a residual of .* after 4 iterations"):
        out = solved[0](x, inputs)
    if isinstance(solver, Reversible):
        loss(out).backward()
    else:
        with pytest.warns(ZooWarning, match="a backward solve stopped at a residual of .* after 6 iterations"):
            loss(out).backward()
    # Later ones are only counted: a warning would be an error here.
    for _ in range(2):
        loss(solved[0](x, inputs)).backward()
    metrics = take_solve_metrics(solved)
    assert metrics["num_forward_solves"] == metrics["num_forward_unconverged"] == 3
    assert metrics["mean_forward_iters"] == 4
    assert 1e-30 < metrics["max_forward_residual"] < 1
    reversible = isinstance(solver, Reversible)
    assert metrics["num_backward_solves"] == 3
    assert metrics["num_backward_unconverged"] == (0 if reversible else 3)
    assert metrics["mean_backward_iters"] == (4 if reversible else 6)
    assert take_solve_metrics(solved) == {}


def test_converged_solves_are_counted_without_a_warning() -> None:
    solved = layer(solver=FixedPoint(), backward=FixedPoint())
    x, inputs = stack_inputs()
    with torch.no_grad():
        solved.eval()(x, inputs)
    metrics = take_solve_metrics(solved)
    assert metrics.keys() == {f"{n}" for n in metrics if "forward" in n}
    assert (metrics["num_forward_solves"], metrics["num_forward_unconverged"]) == (1, 0)
    assert metrics["max_forward_residual"] <= 1e-3


@pytest.mark.parametrize("solver", [FixedPoint(), Reversible()])
def test_states_that_are_not_finite_stop_the_pass(solver: FixedPoint | Reversible) -> None:
    solved = layer(solver=solver)
    x, inputs = stack_inputs()
    with pytest.raises(FloatingPointError, match="forward solve met NaN or infinity"):
        solved(x * math.nan, inputs)
    out = solved(x.requires_grad_(), inputs)
    if isinstance(solver, FixedPoint):
        with pytest.raises(FloatingPointError, match="backward solve met NaN or infinity"):
            (out * math.inf).sum().backward()


def test_warm_up_unrolls_in_training_and_solves_in_eval() -> None:
    solved = layer(num_warmup_epochs=2, num_warmup_steps=3)
    warm, cold = run(Unrolled(solved, 3)), run(Unrolled(solved))
    for epoch, expected in ((1, warm), (2, warm), (3, cold)):
        start_epoch(nn.Sequential(solved), epoch)
        assert_same(run(solved), expected)
    start_epoch(solved, 1)
    assert take_solve_metrics(solved)["num_forward_solves"] == 1
    assert_same({"out": run(solved.eval())["out"]}, {"out": cold["out"]})
    assert take_solve_metrics(solved)["num_forward_solves"] == 1


PLAIN = [{}, {"solver": Reversible(max_iters=4, tol=1e-30)}, {"backward": Phantom()}]


@UNCONVERGED
@pytest.mark.parametrize("options", PLAIN)
class TestIsAPlainModule:
    def test_to_autograd_grad(self, options: dict) -> None:
        solved = layer(**options)
        expected = run(solved)
        x, inputs, _ = leaves()
        names, parameters = zip(*solved.named_parameters(), strict=True)
        found = torch.autograd.grad(loss(solved(x, inputs)), [x, *parameters])
        assert_same(
            dict(zip(["in0", *names], found, strict=True)),
            {"in0": expected["in0"], **{name: expected[name.removeprefix("block.")] for name in names}},
        )
        assert all(parameter.grad is None for parameter in parameters)

    def test_to_frozen_parameters(self, options: dict) -> None:
        solved = layer(**options)
        expected = run(solved)
        solved.block.convs[0].requires_grad_(False)
        actual = run(solved)
        for name, value in actual.items():
            if name.startswith("convs.0"):
                assert value is None
        kept = {name: value for name, value in actual.items() if value is not None}
        assert_same(kept, {name: expected[name] for name in kept})
        solved.requires_grad_(False)
        torch.testing.assert_close(run(solved)["in0"], expected["in0"])

    def test_to_several_backward_passes(self, options: dict) -> None:
        solved = layer(**options)
        x, inputs = stack_inputs()
        out = loss(solved(x.requires_grad_(), inputs))
        out.backward(retain_graph=True)
        once = x.grad.clone()
        out.backward()
        torch.testing.assert_close(x.grad, 2 * once)

    def test_to_skip_connections_and_the_callers_tensors(self, options: dict) -> None:
        solved = layer(**options)
        x, inputs = stack_inputs()
        before, mask = x.clone(), inputs.mask.clone()
        x.requires_grad_()
        (x.sum() + loss(solved(x, inputs))).backward()
        with_skip, x.grad = x.grad, None
        loss(solved(x, inputs)).backward()
        torch.testing.assert_close(with_skip, 1 + x.grad)
        assert torch.equal(x, before)
        assert torch.equal(inputs.mask, mask)

    def test_to_double_backward_which_is_refused(self, options: dict) -> None:
        solved = layer(**options)
        x, inputs = stack_inputs()
        x.requires_grad_()
        (grad,) = torch.autograd.grad(loss(solved(x, inputs)).square(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()

    @pytest.mark.parametrize("what", ["parameter", "input"])
    def test_to_changes_in_place_which_are_refused(self, options: dict, what: str) -> None:
        solved = layer(**options)
        x, inputs = stack_inputs()
        out = loss(solved(x, inputs))
        with torch.no_grad():
            (solved.block.norms[0].weight if what == "parameter" else x).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()

    def test_to_hooks_which_fire_once(self, options: dict) -> None:
        solved, fired = layer(**options), []
        solved.block.norms[0].weight.register_hook(lambda grad: fired.append(1))
        run(solved)
        assert fired == [1]

    def test_to_modes_and_weights_of_later(self, options: dict) -> None:
        solved = layer(weight_norm="spectral", **options)
        other = copy.deepcopy(solved)
        x, inputs = stack_inputs()
        x.requires_grad_()
        loss(solved(x, inputs)).backward()
        expected, x.grad = x.grad, None
        out = loss(other(x, inputs))
        other(x, inputs)  # moves the power iteration on
        other.eval()
        out.backward()
        torch.testing.assert_close(x.grad, expected, rtol=1e-10, atol=1e-12)
        assert not other.block.training

    def test_to_ddp(self, options: dict) -> None:
        solved = layer(**options)
        expected = run(solved)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            parallel = nn.parallel.DistributedDataParallel(solved)
            actual = run(parallel)
        finally:
            dist.destroy_process_group()
        assert_same({name.removeprefix("module.block."): value for name, value in actual.items()}, expected)

    def test_to_autocast(self, options: dict) -> None:
        rough = FixedPoint(tol=1e-3)
        solved = layer(**{"solver": rough, "backward": rough} | options).float()
        x, inputs = stack_inputs(dtype=torch.float32)
        x.requires_grad_()
        grads = []
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                out = solved(x, inputs)
            assert out.dtype == torch.float32
            loss(out).backward()
            grads.append(x.grad)
            x.grad = None
        assert 0 < (grads[1] - grads[0]).norm() < 0.1 * grads[0].norm()


def test_half_precision_states_are_refused_outside_autocast() -> None:
    x, inputs = stack_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match="needs float32 or float64 states, got"):
        layer().bfloat16()(x.bfloat16(), inputs)


@pytest.mark.parametrize("conv", CONVS)
def test_solves_of_a_fresh_block_converge_whatever_the_convolution(conv: str) -> None:
    torch.manual_seed(1)
    solved = EquilibriumLayer(EquilibriumBlock(CHANNELS, [CONVS[conv]() for _ in range(2)]))
    x, inputs = stack_inputs(40, dtype=torch.float32)
    loss(solved(x, inputs)).backward()
    metrics = take_solve_metrics(solved)
    assert metrics["num_forward_unconverged"] == metrics["num_backward_unconverged"] == 0
