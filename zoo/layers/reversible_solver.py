"""A fixed-point iteration that can be run back to where it began, to the last bit.

y' = (1 - beta) y + beta f(z); z' = (1 - beta) z + beta f(y').

Running back divides by 1 - beta each time, which would turn rounding into large errors: 0.2 ** -12 is 2e8. So the two
states are integers, multiples of 2^-44, and the digits lost when they are multiplied by 1 - beta are kept in
a second integer. Addition and this multiplication then have exact inverses.

Source: reversible deep equilibrium models, arXiv 2509.12917; the kept digits are algorithm 3 of arXiv 1502.03492.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.layers.solvers import Solution, StateFn, relative_residual

_GRID = 2.0**44
# Below it a sum of two values stays far within 63 bits.
LARGEST_VALUE = 2.0**17


class DampedState(NamedTuple):
    """A state of the iteration; changed in place.

    Attributes:
        value: [N, C] int64, multiples of 2^-44.
        dropped: [N, C] int64, the digits lost so far.
    """

    value: Tensor
    dropped: Tensor

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
    f: StateFn, z0: Tensor, *, beta: float = 0.8, tol: float = 1e-3, max_iters: int = 12
) -> tuple[Solution, DampedState, DampedState]:
    """Find z with f(z) = z by the iteration above.

    Args:
        f: maps a state to a state, of the shape and dtype of z0.
        z0: [N, C], where both states start.
        beta: how far an iteration goes, 0.01 to 0.99.
        tol: relative residual at y' at which to stop.
        max_iters: most iterations, of two evaluations each.

    Returns:
        The solution, whose z is the last one and whose num_iters counts iterations, and the last states y and z.
        Where f is not finite, or beyond 10^5, the residual is inf.

    Raises:
        ValueError: if a setting is out of range, or so many iterations would drop more digits than an integer holds.
    """
    fraction = as_fraction(beta)
    if not (0.01 <= beta <= 0.99 and tol > 0 and max_iters >= 1):
        raise ValueError(f"expected 0.01 <= beta <= 0.99, tol > 0, max_iters >= 1; got {beta}, {tol}, {max_iters}")
    keep = 1 - fraction
    if max_iters * math.log2(1 / keep) + math.log2(keep.numerator) >= 63:
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
