"""The solvers of equilibrium models, forward and backward."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from zoo.spec.base import Spec

Tolerance = Annotated[float, Field(gt=0, lt=1, description="relative residual at which a solve has converged")]
MaxIters = Annotated[int, Field(ge=1, le=10_000, description="evaluations of the equation a solve may use")]
History = Annotated[int, Field(ge=1, le=1000, description="differences kept: 2 x history x [N, C] of memory")]
_HISTORY = {"anderson": 5, "broyden": 10, "picard": None}


class FixedPointSpec(Spec):
    """A solve of z = f(z) for the whole [N, C] state: plain iteration (picard), or accelerated.

    ``anderson`` is Anderson acceleration, ``broyden`` Broyden's method with limited memory, which starts afresh when
    ``history`` updates are stored.
    """

    type: Literal["anderson", "broyden", "picard"]
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 30
    history: History | None = Field(default=None, description="left out: 5 for anderson, 10 for broyden")

    @model_validator(mode="before")
    @classmethod
    def _fill_history(cls, data: Any) -> Any:
        # The default is filled in here, since it depends on another key and a bundle spells out every default.
        method = _method(data)
        return data if method is None else {"history": _HISTORY[method], **data}

    @model_validator(mode="after")
    def _no_history(self) -> Self:
        if self.type == "picard" and self.history is not None:
            raise ValueError("history goes with anderson and broyden; a plain iteration keeps none")
        return self


class PhantomSpec(Spec):
    """The phantom gradient (arXiv 2111.05177): ``num_steps`` terms of the damped Neumann series, and no solve."""

    type: Literal["phantom"]
    num_steps: int = Field(default=5, ge=1, le=10_000)
    damping: float = Field(default=0.5, gt=0, le=1, description="1: not damped")


def _method(data: Any) -> str | None:
    """The type of a fixed point in data that are not yet checked; None if it is none."""
    method = data.get("type") if isinstance(data, dict) else None
    return method if isinstance(method, str) and method in _HISTORY else None


Backward = Annotated[FixedPointSpec | PhantomSpec, Field(discriminator="type")]


class ImplicitSolver(FixedPointSpec):
    """A fixed point with the implicit gradient: by default a solve of the same type, for the vjp at the solution."""

    backward: Backward | None = Field(default=None, description="left out: the type of the forward solve")

    @model_validator(mode="before")
    @classmethod
    def _fill_backward(cls, data: Any) -> Any:
        # Filled in before the checks, so that the backward solve is checked and spelled out like a written one.
        method = _method(data)
        return data if method is None else {"backward": {"type": method}, **data}

    @property
    def num_convs_per_iter(self) -> int:
        """The convolutions of an iteration: it evaluates the block of two once."""
        return 2


_MAX_DROPPED_BITS = 53


class ReversibleSolver(Spec):
    """The reversible equilibrium (arXiv 2509.12917): two coupled damped iterations, differentiated by a reverse pass.

    The gradient is that of the iterations as they were run, converged or not; an iteration evaluates the equation
    twice.
    """

    type: Literal["reversible"]
    beta: float = Field(
        default=0.8, ge=0.01, le=0.99, description="how far an iteration goes; 1 would be plain iteration"
    )
    tol: Tolerance = 1e-3
    max_iters: MaxIters = 12

    @model_validator(mode="after")
    def _invertible(self) -> Self:
        # Multiplying by 1 - beta drops digits, which are kept in an integer of 63 bits.
        most = int(_MAX_DROPPED_BITS / -math.log2(1 - self.beta))
        if self.max_iters > most:
            raise ValueError(
                f"max_iters ({self.max_iters}) is more than can be reversed exactly with beta {self.beta}: "
                f"at most {most}, or a smaller beta"
            )
        return self

    @property
    def num_convs_per_iter(self) -> int:
        """The convolutions of an iteration: it evaluates the block of two twice."""
        return 4


Solver = Annotated[ImplicitSolver | ReversibleSolver, Field(discriminator="type")]
