"""The oscillator stack: any number of damped steps of coupled oscillators in the memory of one.

    v' = (1 - alpha dt) v + dt (tanh(f(x)) - gamma x),   x' = x + dt v'

Every node is a damped oscillator with position x and velocity v, driven by its neighbors through f. Running back,
x = x' - dt v' is known before f(x) is needed, but dividing by 1 - alpha dt again and again would turn rounding into
large errors. So x and v are integers, multiples of 2^-44, and the digits that damping drops are kept in a third one.

Source: GraphCON, arXiv 2202.02296, equation 3; with alpha = 0 the conservative case of port-Hamiltonian networks, arXiv
2405.17163. The kept digits are algorithm 3 of arXiv 1502.03492; undoing these networks exactly is this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from zoo.layers.inputs import BlockInputs, full_precision
from zoo.layers.replay import GradientSums, RngTape, exclusive
from zoo.layers.reversible import apply_reversibly, differentiable
from zoo.layers.solvers import LARGEST_VALUE, DampedState, as_fraction, from_grid, to_grid
from zoo.ops.dispatch import transforming, uncompiled_training

# Of an integer of 63 bits; the others hold a product with the denominator of 1 - alpha dt.
_DROPPED_BITS = 53


class OscillatorStack(nn.Module):
    """Steps of coupled oscillators; training memory does not depend on their number.

    The first half of the channels are the positions, the second the velocities. The step is the one above, a sum of
    which every part is float64; the blocks compute in the precision of the input.

    Args:
        blocks: f of the distinct steps, each called as ``block(x, inputs)`` on [N, C/2].
        num_steps: how many steps are made; the blocks are cycled through. None: each once.
        step_size: dt.
        damping: alpha; 0: none. Its product with dt is taken as the nearest fraction of a denominator up to 1000.
        stiffness: gamma, the pull back to zero.
        slice_edges: whether a block reads its half of the edge channels, or all of them.
        reversible: False runs the steps under plain autograd, storing every activation.

    Attributes:
        inversion_error: set it to 0, and each backward pass keeps a copy of its input, [N, C], and leaves here the
            largest difference of the restored input from it, relative to the input's largest entry.

    Raises:
        ValueError: if there are no blocks, or 1 - alpha dt is not in 0.01 to 1.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        num_steps: int | None = None,
        step_size: float = 1.0,
        damping: float = 0.1,
        stiffness: float = 1.0,
        slice_edges: bool = False,
        reversible: bool = True,
    ) -> None:
        super().__init__()
        self.keep = 1 - as_fraction(step_size * damping)
        if not blocks or not 0.01 <= self.keep <= 1:
            raise ValueError(
                f"expected at least one block and 0 <= step_size * damping <= 0.99; got {len(blocks)} blocks, "
                f"{step_size} * {damping}"
            )
        self.blocks = nn.ModuleList(blocks)
        self.num_steps = len(blocks) if num_steps is None else num_steps
        self.step_size, self.stiffness = step_size, stiffness
        self.slice_edges, self.reversible = slice_edges, reversible
        self.num_groups = 2
        self.inversion_error: float | None = None

    def extra_repr(self) -> str:
        """The settings that a printed model shows."""
        return f"num_steps={self.num_steps}, step_size={self.step_size}, keep={self.keep}, stiffness={self.stiffness}"

    @uncompiled_training
    def forward(self, h: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] positions and velocities to those after the last step, [N, C].

        Where a value leaves the range of -10^5 to 10^5 in training, all outputs are NaN.

        Raises:
            ValueError: if C is odd, h is of half precision outside autocast, or damping drops more digits in so many
                steps than can be kept for the way back.
        """
        if h.dim() != 2 or h.size(1) % 2:
            raise ValueError(f"states: expected [N, C] with an even C, got {list(h.shape)}")
        h = full_precision(h, "an oscillator stack")
        inputs = inputs.group(0, 2, slice_edges=self.slice_edges)
        if torch.compiler.is_compiling():
            return self._run_plain(h, inputs)
        with exclusive(self):
            # Transforms such as torch.func.grad do not see through an autograd.Function: they get the plain path.
            if not self.reversible or not torch.is_grad_enabled() or transforming():
                return self._run_plain(h, inputs)
            if self.num_steps > most_steps(self.keep):
                raise ValueError(
                    f"{self.num_steps} steps drop more digits than can be kept: at most {most_steps(self.keep)} with "
                    f"{1 - self.keep} as step_size * damping"
                )
            return apply_reversibly(self, list(self.blocks), h, inputs)

    def _drive(self, step: int, x: Tensor, state: Tensor, inputs: BlockInputs) -> tuple[Tensor, Tensor]:
        """tanh(f(x)), and what a step adds to the velocity, in float64; ``state`` is x as the block reads it."""
        block = self.blocks[step % len(self.blocks)]
        force = block(state.clone(), inputs.layer(step)).tanh()  # a copy, because blocks may write to their input
        return force, (force.double() - self.stiffness * x) * self.step_size

    def _run_plain(self, h: Tensor, inputs: BlockInputs) -> Tensor:
        x, v = h.double().chunk(2, dim=1)
        for step in range(self.num_steps):
            v = float(self.keep) * v + self._drive(step, x, x.to(h.dtype), inputs)[1]
            x = x + self.step_size * v
        return torch.cat([x, v], dim=1).to(h.dtype)

    def _run(self, h: Tensor, inputs: BlockInputs, rng: RngTape) -> list[Tensor]:
        """Position, velocity and its dropped digits; True if a value was too large for an integer, or no number."""
        start, velocity = h.chunk(2, dim=1)
        position, v = to_grid(start), DampedState.of(velocity)
        largest = h.abs().amax().double() if h.numel() else h.new_zeros((), dtype=torch.float64)
        for step in range(self.num_steps):
            x = from_grid(position)
            force, added = self._drive(step, x, x.to(h.dtype), inputs)
            rng.record()
            v.forward(added, self.keep)
            moved = self._moved(v)
            position.add_(to_grid(moved))
            if h.numel():
                # The maximum with NaN is NaN.
                for value in (force, x, moved):
                    largest = torch.maximum(largest, value.abs().amax().double())
        return [position, *v, ~(largest < LARGEST_VALUE)]

    def _moved(self, v: DampedState) -> Tensor:
        return v.read(torch.float64) * self.step_size

    def _join(self, states: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        position, value, _, invalid = states
        h = torch.cat([from_grid(position), from_grid(value)], dim=1)
        return h.to(dtype).masked_fill_(invalid, math.nan)

    def _reverse(
        self,
        states: Sequence[Tensor],
        grad_states: Sequence[Tensor],
        inputs: BlockInputs,
        sums: GradientSums,
        rng: RngTape,
    ) -> None:
        position, v = states[0], DampedState(*states[1:3])
        dt, (grad_x, grad_v) = self.step_size, grad_states
        read = differentiable(inputs)
        own = [[p for p in block.parameters() if p.requires_grad] for block in self.blocks]
        for step in range(self.num_steps - 1, -1, -1):
            position.sub_(to_grid(self._moved(v)))
            grad_v.add_(grad_x, alpha=dt)
            rng.rewind()
            x = from_grid(position)
            state = x.to(grad_x.dtype).requires_grad_()
            force, added = self._drive(step, x, state, inputs)
            v.backward(added.detach(), self.keep)
            del x, added
            if force.requires_grad:
                sources = [*read, *own[step % len(own)]]
                grad_state, *grads = torch.autograd.grad(
                    force, [state, *sources], (dt * grad_v).to(force.dtype), allow_unused=True
                )
                sums.add(sources, grads)
                if grad_state is not None:
                    grad_x.add_(grad_state)
            grad_x.sub_(grad_v, alpha=dt * self.stiffness)
            grad_v.mul_(float(self.keep))


def most_steps(keep: Fraction) -> float:
    """The number of steps that can be run back when each multiplies the velocity by ``keep``."""
    return math.inf if keep == 1 else int(_DROPPED_BITS / -math.log2(keep))
