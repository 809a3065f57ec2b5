"""The equilibrium layer: as deep as it takes, in the memory of one block.

Forward solves z = f(z, x) without a tape. Backward evaluates f once with the tape on and solves another fixed-point
equation, w = w df/dz + grad, for the implicit gradient; how many iterations either takes costs no memory.

As in the reversible stack everything is ONE autograd.Function that changes nothing of the caller and returns the
gradients of parameters, so that it is a plain module to skip connections, frozen parameters, ``torch.autograd.grad``,
several backward passes, DDP and EMA.

Source: deep equilibrium models, arXiv 1909.01377; DEQ-GNN, arXiv 2106.07476, section 3.4.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from zoo.layers.compiling import uncompiled
from zoo.layers.equilibrium_block import frozen_parametrizations
from zoo.layers.inputs import BlockInputs
from zoo.layers.replay import Slot, collect, exclusive, modes, replaced
from zoo.layers.reversible_solver import DampedState, as_fraction, solve_reversibly
from zoo.layers.solvers import Method, Solution, StateFn, solve

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FixedPoint:
    """Settings of :func:`zoo.layers.solvers.solve`, for the states or for the implicit gradient."""

    method: Method = "anderson"
    tol: float = 1e-3
    max_iters: int = 30
    history: int = 5

    def __call__(self, f: StateFn, z0: Tensor) -> Solution:
        """Solve z = f(z) from z0."""
        return solve(f, z0, method=self.method, tol=self.tol, max_iters=self.max_iters, history=self.history)


@dataclass(frozen=True)
class Phantom:
    """The phantom gradient: ``num_steps`` terms of the damped Neumann series instead of a solve.

    Source: arXiv 2111.05177.
    """

    num_steps: int = 5
    damping: float = 0.5


@dataclass(frozen=True)
class Reversible:
    """Settings of :func:`zoo.layers.reversible_solver.solve_reversibly`, which is differentiated by running back."""

    beta: float = 0.8
    tol: float = 1e-3
    max_iters: int = 12


@dataclass
class SolveLog:
    """What happened in the solves of one kind since the log was last taken."""

    kind: str
    num_solves: int = 0
    num_unconverged: int = 0
    num_iters: int = 0
    max_residual: float = 0.0
    warned: bool = False

    def add(self, solution: Solution) -> None:
        """Count a solve; the first that did not converge is also logged as a warning.

        Raises:
            FloatingPointError: if no finite state was found.
        """
        if not math.isfinite(solution.residual):
            raise FloatingPointError(f"the {self.kind} solve met NaN or infinity in its first evaluation")
        self.num_solves += 1
        self.num_iters += solution.num_iters
        self.num_unconverged += not solution.converged
        self.max_residual = max(self.max_residual, solution.residual)
        if not solution.converged and not self.warned:
            self.warned = True
            _LOGGER.warning(
                "a %s solve stopped at a residual of %.2g after %d iterations without converging; "
                "later ones are only counted",
                self.kind,
                solution.residual,
                solution.num_iters,
            )

    def take(self) -> dict[str, float]:
        """The figures by metric name, none if there was no solve; the log starts anew."""
        figures: dict[str, float] = {}
        if self.num_solves:
            figures = {
                f"num_{self.kind}_solves": self.num_solves,
                f"num_{self.kind}_unconverged": self.num_unconverged,
                f"mean_{self.kind}_iters": self.num_iters / self.num_solves,
                f"max_{self.kind}_residual": self.max_residual,
            }
        self.num_solves = self.num_unconverged = self.num_iters = 0
        self.max_residual = 0.0
        return figures


class EquilibriumLayer(nn.Module):
    """Node states that a block leaves as they are, found from zero.

    Args:
        block: f, called as ``block(z, x, inputs)``. It must be a function of its arguments and parameters alone: no
            dropout but by ``inputs.mask``, no running statistics.
        solver: how z is found.
        backward: how the gradient is found; a reversible solver does without.
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

    @uncompiled
    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] injected input to [N, C] states.

        Raises:
            ValueError: if x is of half precision outside autocast, in which no solve converges.
            FloatingPointError: if no finite state was found.
        """
        if x.dtype not in (torch.float32, torch.float64):
            if not torch.is_autocast_enabled(x.device.type):
                raise ValueError(
                    f"an equilibrium layer needs float32 or float64 states, got {x.dtype}; for speed use torch.autocast"
                )
            x = x.float()
        with exclusive(self), frozen_parametrizations(self.block):
            if self.training and self.warming_up:
                return self._unroll(x, inputs)
            if not torch.is_grad_enabled():
                return self._solve(x, inputs)[0].z
            leaves, tree = tree_flatten(inputs)
            parameters, slots = collect([self.block], "_parameters")
            call = _Call(self, tree, len(leaves), slots)
            return cast(Tensor, _Equilibrium.apply(call, x, *leaves, *parameters))  # type: ignore[no-untyped-call]

    def _unroll(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        f, z = self._equation(x, inputs), torch.zeros_like(x)
        for _ in range(self.num_warmup_steps):
            z = f(z)
        return z

    def _equation(self, x: Tensor, inputs: BlockInputs) -> StateFn:
        def f(z: Tensor) -> Tensor:
            return cast(Tensor, self.block(z, x, inputs).to(x.dtype))

        return f

    def _solve(self, x: Tensor, inputs: BlockInputs) -> tuple[Solution, tuple[Tensor, ...]]:
        """The solution and the states that backward starts from."""
        f, z0 = self._equation(x, inputs), torch.zeros_like(x)
        states: tuple[Tensor, ...]
        if isinstance(self.solver, Reversible):
            beta, tol, max_iters = self.solver.beta, self.solver.tol, self.solver.max_iters
            solution, y, z = solve_reversibly(f, z0, beta=beta, tol=tol, max_iters=max_iters)
            states = (*y, *z)
        else:
            solution = self.solver(f, z0)
            states = (solution.z,)
        self.forward_log.add(solution)
        return solution, states


def start_epoch(model: nn.Module, epoch: int) -> None:
    """Tell the equilibrium layers of a model which epoch begins, the first being 1.

    In their first ``num_warmup_epochs`` a training pass is ``num_warmup_steps`` plain iterations under plain autograd,
    as in a weight-tied network, which brings f to where solves converge. In eval mode they always solve.
    """
    for layer in _layers(model):
        layer.warming_up = epoch <= layer.num_warmup_epochs


def take_solve_metrics(model: nn.Module) -> dict[str, float]:
    """How the solves of a model went since this was last asked, as metrics; empty for models that solve nothing.

    Returns:
        For each kind, forward and backward: ``num_KIND_solves``, ``num_KIND_unconverged``, ``mean_KIND_iters`` and
        ``max_KIND_residual``.
    """
    figures: dict[str, float] = {}
    for layer in _layers(model):
        figures |= layer.forward_log.take() | layer.backward_log.take()
    return figures


def _layers(model: nn.Module) -> Iterator[EquilibriumLayer]:
    return (module for module in model.modules() if isinstance(module, EquilibriumLayer))


class _Call(NamedTuple):
    """What the Function needs to know besides tensors."""

    layer: EquilibriumLayer
    tree: TreeSpec
    num_leaves: int
    parameter_slots: list[Slot]


@dataclass
class _Record:
    """What one forward pass leaves for its backward besides the saved tensors."""

    call: _Call
    num_iters: int
    num_states: int
    num_buffers: int
    buffer_slots: list[Slot]
    modules: list[nn.Module]
    training: list[bool]
    autocast: tuple[bool, torch.dtype]


class _Equilibrium(torch.autograd.Function):
    """Forward without a tape; backward by a rule that needs only the last states.

    Saved are those states, the inputs and the parameters, by reference: changing any of them in place before backward
    is an error of autograd's, never a wrong gradient.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, *tensors: Any) -> Tensor:
        block = call.layer.block
        inputs = cast(BlockInputs, tree_unflatten(list(tensors[: call.num_leaves]), call.tree))
        autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        # Weights that autocast would cache in here lack a tape, which whoever shares them outside needs.
        with torch.autocast(x.device.type, dtype=autocast[1], enabled=autocast[0], cache_enabled=False):
            solution, states = call.layer._solve(x, inputs)
        buffers, buffer_slots = collect([block], "_buffers")
        modules = list(block.modules())
        ctx.record = _Record(
            call=call,
            num_iters=solution.num_iters,
            num_states=len(states),
            num_buffers=len(buffers),
            buffer_slots=buffer_slots,
            modules=modules,
            training=[module.training for module in modules],
            autocast=autocast,
        )
        # A later pass may change the buffers, which are small.
        ctx.save_for_backward(*states, *(buffer.clone() for buffer in buffers), x, *tensors)
        return solution.z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        record: _Record = ctx.record
        call = record.call
        saved: list[Any] = list(ctx.saved_tensors)  # raises if anything was changed in place
        states, saved = saved[: record.num_states], saved[record.num_states :]
        buffers, saved = saved[: record.num_buffers], saved[record.num_buffers :]
        # Aliases: the tape must end here, and hooks of the real tensors must fire once.
        aliases = [_alias(tensor, want) for tensor, want in zip(saved, ctx.needs_input_grad[1:], strict=True)]
        x, leaves = cast(Tensor, aliases[0]), aliases[1 : 1 + call.num_leaves]
        parameters = cast("list[Tensor]", aliases[1 + call.num_leaves :])
        inputs = cast(BlockInputs, tree_unflatten(leaves, call.tree))
        enabled, dtype = record.autocast
        with ExitStack() as state:
            state.enter_context(exclusive(call.layer))
            state.enter_context(replaced(call.parameter_slots, parameters))
            state.enter_context(replaced(record.buffer_slots, buffers))
            state.enter_context(modes(record.modules, record.training))
            state.enter_context(torch.autocast(grad.device.type, dtype=dtype, enabled=enabled, cache_enabled=False))
            state.enter_context(torch.enable_grad())
            wanted = [alias for alias in aliases if alias is not None and alias.requires_grad]
            f = call.layer._equation(x, inputs)
            if isinstance(call.layer.solver, Reversible):
                found = _run_back(call.layer, f, states, record.num_iters, grad, wanted)
            else:
                found = _implicit(call.layer, f, states[0], grad, wanted)
        grads = {id(alias): gradient for alias, gradient in zip(wanted, found, strict=True)}
        return (None, *(grads.get(id(alias)) for alias in aliases))


def _alias(tensor: Any, requires_grad: bool) -> Any:
    # What takes no gradient stays the same object, by which others may have remembered things about it.
    return tensor.detach().requires_grad_() if requires_grad else tensor


def _implicit(
    layer: EquilibriumLayer, f: StateFn, z: Tensor, grad: Tensor, wanted: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Gradients at a fixed point: w df, where w = w df/dz + grad, or a few terms of the series that w is.

    Args:
        layer: for its way of solving this, and its log.
        f: the equation; what it reads are the tensors in ``wanted``.
        z: [N, C], the fixed point.
        grad: [N, C], of the fixed point.
        wanted: the tensors whose gradients are asked for.
    """
    z = z.detach().requires_grad_()
    value = f(z)

    def pull(w: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(value, z, w, retain_graph=True, allow_unused=True)
        return torch.zeros_like(w) if result is None else result

    rule = layer.backward_solver
    if isinstance(rule, Phantom):
        term, total = grad, grad.clone()
        for _ in range(rule.num_steps - 1):
            term = (1 - rule.damping) * term + rule.damping * pull(term)
            total += term
        w = rule.damping * total
    else:
        solution = rule(lambda w: pull(w) + grad, grad)
        layer.backward_log.add(solution)
        w = solution.z
    return torch.autograd.grad(value, wanted, w, allow_unused=True)


def _run_back(
    layer: EquilibriumLayer, f: StateFn, last: Sequence[Tensor], num_iters: int, grad: Tensor, wanted: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Gradients of the reversible solver's iterations: each evaluation restores a state and has the tape of it.

    Args:
        layer: for beta, and its log.
        f: the equation; what it reads are the tensors in ``wanted``.
        last: the two states that the solver ended with.
        num_iters: how many iterations led there.
        grad: [N, C], of the second of them.
        wanted: the tensors whose gradients are asked for.
    """
    fraction = as_fraction(cast(Reversible, layer.solver).beta)
    beta = float(fraction)
    states = [DampedState(*last[:2]).clone(), DampedState(*last[2:]).clone()]
    flows = [torch.zeros_like(grad), grad.clone()]
    found: list[Tensor | None] = [None] * len(wanted)
    for _ in range(num_iters):
        # z' = (1 - beta) z + beta f(y') is undone before y' = (1 - beta) y + beta f(z).
        for changed, read in ((1, 0), (0, 1)):
            state = states[read].read(grad.dtype).requires_grad_()
            value = f(state)
            states[changed].undo(value.detach(), fraction)
            pulled, *more = torch.autograd.grad(value, [state, *wanted], beta * flows[changed], allow_unused=True)
            flows[changed].mul_(1 - beta)
            if pulled is not None:
                flows[read].add_(pulled)
            found = [_sum(total, gradient) for total, gradient in zip(found, more, strict=True)]
    # Both began at zero.
    missed = max(float(torch.linalg.vector_norm(state.read(grad.dtype))) for state in states)
    layer.backward_log.add(Solution(states[1].read(grad.dtype), missed, num_iters, missed == 0))
    return found


def _sum(total: Tensor | None, term: Tensor | None) -> Tensor | None:
    if total is None or term is None:
        return term if total is None else total
    return total + term
