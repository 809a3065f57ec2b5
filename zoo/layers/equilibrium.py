"""The equilibrium layer: as deep as it takes, in the memory of one block.

Forward solves z = f(z, x) without a tape. Backward evaluates f once with the tape on and solves another fixed-point
equation, w = w df/dz + grad, for the implicit gradient; how many iterations either takes costs no memory.

As in the reversible stack everything is ONE autograd.Function that changes nothing of the caller and returns the
gradients of parameters, so that it is a plain module to skip connections, frozen parameters, ``torch.autograd.grad``,
several backward passes, DDP and EMA.

Source: deep equilibrium models, arXiv 1909.01377; DEQ-GNN, arXiv 2106.07476, section 3.4.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.errors import ZooWarning
from zoo.layers.block import frozen_parametrizations
from zoo.layers.inputs import BlockInputs, full_precision
from zoo.layers.replay import GradientSums, Guard, exclusive
from zoo.layers.solvers import DampedState, Method, Solution, StateFn, as_fraction, solve, solve_reversibly
from zoo.ops.dispatch import uncompiled


@dataclass(frozen=True)
class FixedPoint:
    """Arguments of :func:`zoo.layers.solvers.solve`, for the states or for the implicit gradient."""

    method: Method = "anderson"
    tol: float = 1e-3
    max_iters: int = 30
    history: int = 5


@dataclass(frozen=True)
class Phantom:
    """The phantom gradient: ``num_steps`` terms of the damped Neumann series instead of a solve.

    Source: arXiv 2111.05177.
    """

    num_steps: int = 5
    damping: float = 0.5


@dataclass(frozen=True)
class Reversible:
    """Arguments of :func:`zoo.layers.solvers.solve_reversibly`, which is differentiated by running back."""

    beta: float = 0.8
    tol: float = 1e-3
    max_iters: int = 12


@dataclass
class SolveLog:
    """Figures of the solves of one direction, forward or backward, since the log was last taken."""

    direction: str
    num_solves: int = 0
    num_unconverged: int = 0
    num_iters: int = 0
    max_residual: float = 0.0
    warned: bool = False

    def add(self, solution: Solution) -> None:
        """Count a solve, and warn of the first that did not converge: a long run counts the others in its metrics.

        Raises:
            FloatingPointError: if no finite state was found.
        """
        if not math.isfinite(solution.residual):
            raise FloatingPointError(f"the {self.direction} solve met NaN or infinity in its first evaluation")
        self.num_solves += 1
        self.num_iters += solution.num_iters
        self.num_unconverged += not solution.converged
        self.max_residual = max(self.max_residual, solution.residual)
        if not solution.converged and not self.warned:
            self.warned = True
            warnings.warn(
                f"a {self.direction} solve stopped at a residual of {solution.residual:.2g} after {solution.num_iters} "
                "iterations without converging; later ones are only counted",
                ZooWarning,
                stacklevel=2,
            )

    def merge(self, other: SolveLog) -> None:
        """Count the solves of another log too."""
        self.num_solves += other.num_solves
        self.num_unconverged += other.num_unconverged
        self.num_iters += other.num_iters
        self.max_residual = max(self.max_residual, other.max_residual)

    def take(self) -> dict[str, float]:
        """The figures by metric name, none if there was no solve; the log starts anew."""
        figures: dict[str, float] = {}
        if self.num_solves:
            figures = {
                f"num_{self.direction}_solves": self.num_solves,
                f"num_{self.direction}_unconverged": self.num_unconverged,
                f"mean_{self.direction}_iters": self.num_iters / self.num_solves,
                f"max_{self.direction}_residual": self.max_residual,
            }
        self.num_solves = self.num_unconverged = self.num_iters = 0
        self.max_residual = 0.0
        return figures


class EquilibriumLayer(nn.Module):
    """The fixed point z = f(z, x) of a block f, solved from z = 0.

    Args:
        block: f, called as ``block(z, x, inputs)``. It must be a function of its arguments and parameters alone: no
            dropout but by ``inputs.mask``, no running statistics.
        solver: of the fixed point.
        backward: of the gradient; a reversible solver does without.
        num_warmup_epochs: see :func:`start_epoch`.
        num_warmup_steps: iterations of an epoch of warm-up.

    Attributes:
        forward_log: the solves since the last :func:`take_solve_metrics`; nothing here influences a result.
        backward_log: the same for gradients. After a reversible solve the residual is the norm of what running back
            leaves of states that began at zero; it has converged if this is zero, as it is unless f repeats itself
            only roughly.
    """

    def __init__(
        self,
        block: nn.Module,
        *,
        solver: FixedPoint | Reversible = FixedPoint(),
        backward: FixedPoint | Phantom = FixedPoint(),
        num_warmup_epochs: int = 0,
        num_warmup_steps: int = 3,
    ) -> None:
        super().__init__()
        self.block = block
        self.solver, self.backward_solver = solver, backward
        self.num_warmup_epochs, self.num_warmup_steps = num_warmup_epochs, num_warmup_steps
        self.warming_up = False
        self.forward_log, self.backward_log = SolveLog("forward"), SolveLog("backward")

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        backward = "" if isinstance(self.solver, Reversible) else f", backward={self.backward_solver}"
        return f"solver={self.solver}{backward}"

    @uncompiled
    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] injected input to [N, C] states.

        Raises:
            ValueError: if x is of half precision outside autocast, in which no solve converges.
            FloatingPointError: if no finite state was found.
        """
        x = full_precision(x, "an equilibrium layer")
        with exclusive(self), frozen_parametrizations(self.block):
            if self.training and self.warming_up:
                f, z = self._equation(x, inputs), torch.zeros_like(x)
                for _ in range(self.num_warmup_steps):
                    z = f(z)
                return z
            if not torch.is_grad_enabled():
                return self._solve(x, inputs, run_back=False)[0].z
            guard = Guard(self, [self.block], (x, inputs), x.device)
            return cast(Tensor, _Equilibrium.apply(self, guard, *guard.tensors((x, inputs))))  # type: ignore[no-untyped-call]

    def _equation(self, x: Tensor, inputs: BlockInputs) -> StateFn:
        return lambda z: cast(Tensor, self.block(z, x, inputs).to(x.dtype))

    def _solve(self, x: Tensor, inputs: BlockInputs, *, run_back: bool) -> tuple[Solution, tuple[Tensor, ...]]:
        """The solution and the states that backward starts from."""
        f, z0 = self._equation(x, inputs), torch.zeros_like(x)
        states: tuple[Tensor, ...]
        if isinstance(self.solver, Reversible):
            solution, y, z = solve_reversibly(f, z0, **asdict(self.solver), run_back=run_back)
            states = (*y, *z)
        else:
            solution = solve(f, z0, **asdict(self.solver))
            states = (solution.z,)
        self.forward_log.add(solution)
        return solution, states


def start_epoch(model: nn.Module, epoch: int) -> None:
    """Set the epoch that begins, the first being 1, in the equilibrium layers of a model.

    In their first ``num_warmup_epochs`` a training pass is ``num_warmup_steps`` plain iterations under plain autograd,
    as in a weight-tied network, which brings f to where solves converge. In eval mode they always solve.
    """
    for layer in _layers(model):
        layer.warming_up = epoch <= layer.num_warmup_epochs


def take_solve_metrics(model: nn.Module) -> dict[str, float]:
    """Figures of a model's solves since they were last taken, as metrics; empty for models that solve nothing.

    Returns:
        For each direction, forward and backward: ``num_DIRECTION_solves``, ``num_DIRECTION_unconverged``,
        ``mean_DIRECTION_iters`` and ``max_DIRECTION_residual``.
    """
    return {name: figure for log in solve_logs(model) for name, figure in log.take().items()}


def solve_logs(model: nn.Module) -> list[SolveLog]:
    """The logs of a model's solves, always in the same order; a run that is saved carries them on."""
    return [log for layer in _layers(model) for log in (layer.forward_log, layer.backward_log)]


def _layers(model: nn.Module) -> Iterator[EquilibriumLayer]:
    return (module for module in model.modules() if isinstance(module, EquilibriumLayer))


class _Equilibrium(torch.autograd.Function):
    """Forward without a tape; backward by a rule that needs only the last states."""

    @staticmethod
    def forward(ctx: Any, layer: EquilibriumLayer, guard: Guard, *tensors: Any) -> Tensor:
        with guard.recorded(tensors) as (x, inputs):
            solution, states = layer._solve(x, inputs, run_back=True)
        ctx.layer, ctx.guard = layer, guard
        ctx.num_iters, ctx.num_states = solution.num_iters, len(states)
        ctx.save_for_backward(*states, *tensors)
        return solution.z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer: EquilibriumLayer = ctx.layer
        saved: list[Any] = list(ctx.saved_tensors)  # raises if anything was changed in place
        states, tensors = saved[: ctx.num_states], saved[ctx.num_states :]
        with ctx.guard.restored(tensors, ctx.needs_input_grad[2:]) as ((x, inputs), aliases):
            sources = {id(alias): alias for alias in aliases if alias is not None and alias.requires_grad}
            f, tensors = layer._equation(x, inputs), list(sources.values())
            if isinstance(layer.solver, Reversible):
                grads = _reverse_iterations(layer, f, states, ctx.num_iters, grad, tensors)
            else:
                grads = _implicit_gradients(layer, f, states[0], grad, tensors)
        by_source = dict(zip(sources, grads, strict=True))
        return (None, None, *(by_source.pop(id(alias), None) for alias in aliases))


def _implicit_gradients(
    layer: EquilibriumLayer, f: StateFn, z: Tensor, grad: Tensor, sources: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Gradients w df of the sources of f at a fixed point z; w = w df/dz + grad, or a few terms of that series."""
    z = z.detach().requires_grad_()
    value = f(z)

    def vjp(w: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(value, z, w, retain_graph=True, allow_unused=True)
        return torch.zeros_like(w) if result is None else result

    rule = layer.backward_solver
    if isinstance(rule, Phantom):
        term, total = grad, grad.clone()
        for _ in range(rule.num_steps - 1):
            term = (1 - rule.damping) * term + rule.damping * vjp(term)
            total += term
        w = rule.damping * total
    else:
        solution = solve(lambda w: vjp(w) + grad, grad, **asdict(rule))
        layer.backward_log.add(solution)
        w = solution.z
    return torch.autograd.grad(value, sources, w, allow_unused=True)


def _reverse_iterations(
    layer: EquilibriumLayer,
    f: StateFn,
    last: Sequence[Tensor],
    num_iters: int,
    grad: Tensor,
    sources: Sequence[Tensor],
) -> Sequence[Tensor | None]:
    """Gradients of the reversible solver's iterations: each evaluation restores a state and has the tape of it.

    ``last`` holds value and dropped digits of the last states y and z; the gradient [N, C] is that of z.
    """
    fraction = as_fraction(cast(Reversible, layer.solver).beta)
    beta = float(fraction)
    states = [DampedState(*last[:2]).clone(), DampedState(*last[2:]).clone()]
    grad_states = [torch.zeros_like(grad), grad.clone()]
    sums = GradientSums(sources)
    for _ in range(num_iters):
        # z' = (1 - beta) z + beta f(y') is undone before y' = (1 - beta) y + beta f(z).
        for changed, read in ((1, 0), (0, 1)):
            state = states[read].read(grad.dtype).requires_grad_()
            value = f(state)
            states[changed].backward(value.detach().double() * beta, 1 - fraction)
            grad_state, *grads = torch.autograd.grad(
                value, [state, *sources], beta * grad_states[changed], allow_unused=True
            )
            grad_states[changed].mul_(1 - beta)
            if grad_state is not None:
                grad_states[read].add_(grad_state)
            sums.add(sources, grads)
    # Both states began at zero: any remainder is an error.
    missed = max(float(torch.linalg.vector_norm(state.read(grad.dtype))) for state in states)
    layer.backward_log.add(Solution(states[1].read(grad.dtype), missed, num_iters, missed == 0))
    return sums.take(sources)
