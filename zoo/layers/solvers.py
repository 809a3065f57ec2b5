"""Solvers of fixed-point equations z = f(z) whose unknown is the state of a whole graph.

Nodes are coupled, so the [N, C] state is one unknown and not N of them: one residual decides about stopping, and one
small set of coefficients mixes past states.

Besides the states at hand (at most eight of [N, C]) a solver keeps ``history`` pairs of differences,
2 x history x [N, C], however many iterations it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Method = Literal["anderson", "broyden", "picard"]
StateFn = Callable[[Tensor], Tensor]

# A solve diverges if its residual is this many times the best one so far.
_DIVERGENCE = 10.0
_SMALLEST_NORM = 1e-100


class Solution(NamedTuple):
    """The iterate with the smallest residual; if f was not finite anywhere, the initial state, of residual inf."""

    z: Tensor  # [N, C]
    residual: float  # ||f(z) - z|| / ||f(z)|| over the whole state
    num_iters: int  # evaluations of f
    converged: bool  # the residual is at most the tolerance


@torch.no_grad()
def solve(
    f: StateFn, z0: Tensor, *, method: Method = "anderson", tol: float = 1e-3, max_iters: int = 30, history: int = 5
) -> Solution:
    """Find z with f(z) = z.

    After an iterate whose value is not finite, or whose residual is far above the best, the solver forgets its history
    and goes on from the best iterate with a plain step, half as long each time this happens. There is no randomness.

    Args:
        f: maps a state to a state of the same shape and dtype; must not change its argument.
        z0: [N, C] (or any shape) where to start.
        method: ``anderson`` acceleration, ``broyden``'s method (good updates, starting afresh when the history is
            full), or plain ``picard`` iteration, which has no history.
        tol: relative residual at which to stop.
        max_iters: most evaluations of f.
        history: pairs of differences that are kept.

    Raises:
        ValueError: if a setting is out of range.

    Source: Anderson 1965 in the form of Walker and Ni, 10.1137/10078356X; Broyden 1965.
    """
    if method not in ACCELERATORS:
        raise ValueError(f"method: expected one of {', '.join(ACCELERATORS)}, got {method!r}")
    if not (tol > 0 and max_iters >= 1 and history >= 1):
        raise ValueError(f"expected tol > 0, max_iters >= 1, history >= 1; got {tol}, {max_iters}, {history}")
    accelerator = ACCELERATORS[method](min(history, max_iters))
    z, damping = z0, 1.0
    best: tuple[Tensor, Tensor] | None = None
    best_residual = math.inf
    num_iters = 0
    while num_iters < max_iters:
        value = f(z)
        num_iters += 1
        step = value - z
        residual = relative_residual(step, value)
        del value
        if residual < best_residual:
            best, best_residual = (z, step), residual
        if best is None or residual <= tol:
            break
        # The least squares below are too inexact in the half precision that autocast would choose.
        with torch.autocast(z.device.type, enabled=False):
            if residual <= _DIVERGENCE * best_residual:
                z = accelerator.next(z, step)
            else:
                accelerator.restart()
                damping /= 2
                z = best[0] + damping * best[1]
    return Solution(z0 if best is None else best[0], best_residual, num_iters, best_residual <= tol)


def relative_residual(step: Tensor, value: Tensor) -> float:
    """||step|| / ||value|| over all elements; NaN or inf if either is not finite."""
    above, below = torch.stack([torch.linalg.vector_norm(t) for t in (step, value)]).tolist()
    return math.nan if math.isinf(below) else float(above / max(below, _SMALLEST_NORM))


class _Accelerator(Protocol):
    """Proposes the next state from the present one and its step f(z) - z, both [N, C]."""

    def next(self, z: Tensor, step: Tensor) -> Tensor: ...

    def restart(self) -> None: ...


class _Picard:
    def __init__(self, history: int) -> None: ...

    def next(self, z: Tensor, step: Tensor) -> Tensor:
        return z + step

    def restart(self) -> None: ...


class _Anderson:
    """z + step minus the combination of past differences that comes closest to the step."""

    def __init__(self, history: int) -> None:
        self.history = history
        self.steps: Tensor | None = None  # [history, N * C], differences of steps, each of length one
        self.values: Tensor | None = None  # [history, N * C], differences of values, scaled alike
        self.restart()

    def restart(self) -> None:
        self.count = 0
        self.last: tuple[Tensor, Tensor] | None = None

    def next(self, z: Tensor, step: Tensor) -> Tensor:
        if self.last is not None:
            self._append(z - self.last[0], step - self.last[1])
        self.last = z, step
        num_pairs = min(self.count, self.history)
        if not num_pairs or self.steps is None or self.values is None:
            return z + step
        steps = self.steps[:num_pairs]
        gram, products = (steps @ steps.t()).double().cpu(), (steps @ step.flatten()).double().cpu()
        # Directions that differ only by rounding are left out.
        rtol = 10 * num_pairs * torch.finfo(step.dtype).eps
        weights: Tensor = torch.linalg.pinv(gram, hermitian=True, rtol=rtol) @ products
        return z + step - (weights.to(step) @ self.values[:num_pairs]).view_as(z)

    def _append(self, moved: Tensor, change: Tensor) -> None:
        length = torch.linalg.vector_norm(change)
        if not length:
            return
        if self.steps is None or self.values is None:
            self.steps, self.values = (change.new_empty(self.history, change.numel()) for _ in range(2))
        slot = self.count % self.history
        torch.div(change.flatten(), length, out=self.steps[slot])
        torch.div((moved + change).flatten(), length, out=self.values[slot])
        self.count += 1


class _Broyden:
    """z + H step, where H approaches the inverse of 1 - f'(z) by updates of rank one: H = 1 + sum of u v^T."""

    def __init__(self, history: int) -> None:
        self.history = history
        self.u: Tensor | None = None  # [history, N * C]
        self.v: Tensor | None = None
        self.restart()

    def restart(self) -> None:
        self.count = 0
        self.last: tuple[Tensor, Tensor] | None = None

    def next(self, z: Tensor, step: Tensor) -> Tensor:
        g = step.flatten()
        move = self._apply(self.u, self.v, g)
        if self.last is not None:
            moved, before = self.last
            change = g - before
            # The error of the last move: moved + H change, which is H step as long as moved = H before.
            missing, v = move, self._apply(self.v, self.u, moved)
            if self.count == self.history:
                self.count = 0
                move, missing, v = g, moved + change, moved
            scale = v @ change
            if abs(float(scale)) > torch.finfo(g.dtype).eps * float(v.norm() * change.norm()):
                u = missing / -scale
                self._append(u, v)
                move = move + u * (v @ g)
        self.last = move, g
        return z + move.view_as(z)

    def _apply(self, left: Tensor | None, right: Tensor | None, vector: Tensor) -> Tensor:
        """(1 + sum of left right^T) vector."""
        if left is None or right is None or not self.count:
            return vector
        return vector + (right[: self.count] @ vector) @ left[: self.count]

    def _append(self, u: Tensor, v: Tensor) -> None:
        if self.u is None or self.v is None:
            self.u, self.v = (u.new_empty(self.history, u.numel()) for _ in range(2))
        self.u[self.count], self.v[self.count] = u, v
        self.count += 1


ACCELERATORS: dict[Method, Callable[[int], _Accelerator]] = {
    "anderson": _Anderson,
    "broyden": _Broyden,
    "picard": _Picard,
}

# Of the states of the reversible iteration.
_GRID = 2.0**44
# Below it a sum of two values stays far within 63 bits.
LARGEST_VALUE = 2.0**17


class DampedState(NamedTuple):
    """A state of :func:`solve_reversibly`; changed in place."""

    value: Tensor  # [N, C] int64, multiples of 2^-44
    dropped: Tensor  # [N, C] int64, the digits lost so far

    @classmethod
    def of(cls, z: Tensor) -> DampedState:
        """The state at z."""
        return cls(to_grid(z), torch.zeros_like(z, dtype=torch.int64))

    def clone(self) -> DampedState:
        """A copy."""
        return DampedState(self.value.clone(), self.dropped.clone())

    def read(self, dtype: torch.dtype) -> Tensor:
        """[N, C] as floating-point numbers."""
        return from_grid(self.value).to(dtype)

    def forward(self, value: Tensor, keep: Fraction) -> None:
        """Set the state to keep * state + value."""
        _scale(self.value, self.dropped, keep)
        self.value.add_(to_grid(value))

    def backward(self, value: Tensor, keep: Fraction) -> None:
        """The state before :meth:`forward`."""
        self.value.sub_(to_grid(value))
        _scale(self.value, self.dropped, 1 / keep)


def to_grid(z: Tensor) -> Tensor:
    """Numbers to the nearest multiples of 2^-44, int64."""
    return z.double().mul(_GRID).round_().to(torch.int64)


def from_grid(value: Tensor) -> Tensor:
    """Multiples of 2^-44 to float64."""
    return value.double() / _GRID


def _scale(value: Tensor, dropped: Tensor, factor: Fraction) -> None:
    """Multiply by a fraction; scaling by its inverse restores both tensors."""
    above, below = factor.numerator, factor.denominator
    if above == below:
        return
    dropped.mul_(below).add_(value.remainder(below))
    value.floor_divide_(below)
    value.mul_(above).add_(dropped.remainder(above))
    dropped.floor_divide_(above)


def as_fraction(beta: float) -> Fraction:
    """The fraction nearest to beta with a denominator of at most 1000."""
    return Fraction(beta).limit_denominator(1000)


@torch.no_grad()
def solve_reversibly(
    f: StateFn, z0: Tensor, *, beta: float = 0.8, tol: float = 1e-3, max_iters: int = 12, run_back: bool = True
) -> tuple[Solution, DampedState, DampedState]:
    """Find z with f(z) = z by a damped iteration that can be run back to where it began, to the last bit.

    y' = (1 - beta) y + beta f(z); z' = (1 - beta) z + beta f(y').

    Running back divides by 1 - beta each time, which would turn rounding into large errors: 0.2 ** -12 is 2e8. So the
    two states are integers, multiples of 2^-44, and the digits lost when they are multiplied by 1 - beta are kept in
    a second integer. Addition and this multiplication then have exact inverses.

    Args:
        f: maps a state to a state, of the shape and dtype of z0.
        z0: [N, C], where both states start.
        beta: how far an iteration goes, 0.01 to 0.99.
        tol: relative residual at y' at which to stop.
        max_iters: most iterations, of two evaluations each.
        run_back: False allows any number of iterations, for a solve that will not be run back.

    Returns:
        The solution, whose z is the last one and whose num_iters counts iterations, and the last states y and z.
        Where f is not finite, or beyond 10^5, the residual is inf.

    Raises:
        ValueError: if a setting is out of range, or so many iterations would drop more digits than an integer holds.

    Source: reversible deep equilibrium models, arXiv 2509.12917; the kept digits are algorithm 3 of arXiv 1502.03492.
    """
    fraction = as_fraction(beta)
    if not (0.01 <= beta <= 0.99 and tol > 0 and max_iters >= 1):
        raise ValueError(f"expected 0.01 <= beta <= 0.99, tol > 0, max_iters >= 1; got {beta}, {tol}, {max_iters}")
    keep = 1 - fraction
    if run_back and max_iters * math.log2(1 / keep) + math.log2(keep.numerator) >= 63:
        raise ValueError(f"max_iters ({max_iters}) with beta {beta} drops more digits than 63 bits hold")
    y, z = DampedState.of(z0), DampedState.of(z0)
    residual, num_iters = math.inf, 0
    while num_iters < max_iters:
        num_iters += 1
        first = f(z.read(z0.dtype))
        y.forward(first.double() * float(fraction), keep)
        state = y.read(z0.dtype)
        second = f(state)
        z.forward(second.double() * float(fraction), keep)
        largest = torch.stack([first.abs().amax(), second.abs().amax()]).amax() if z0.numel() else 0.0
        if not float(largest) < LARGEST_VALUE:
            residual = math.inf
            break
        residual = relative_residual(second - state, second)
        if residual <= tol:
            break
    return Solution(z.read(z0.dtype), residual, num_iters, residual <= tol), y, z
