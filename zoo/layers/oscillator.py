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
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves

from zoo.layers.inputs import BlockInputs, full_precision
from zoo.layers.replay import GradientSums, Guard, RngTape, exclusive
from zoo.layers.solvers import LARGEST_VALUE, DampedState, as_fraction, from_grid, to_grid
from zoo.ops.dispatch import uncompiled_training

# Of an integer of 63 bits; the others hold a product with the denominator of 1 - alpha dt.
_DROPPED_BITS = 53


class _States(NamedTuple):
    """Position and velocity, [N, C/2] each; changed in place."""

    x: Tensor
    v: DampedState

    @classmethod
    def of(cls, h: Tensor) -> _States:
        x, v = h.chunk(2, dim=1)
        return cls(to_grid(x), DampedState.of(v))

    def join(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([from_grid(self.x), self.v.read(torch.float64)], dim=1).to(dtype)


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
            transformed = torch._C._are_functorch_transforms_active()
            if not (self.reversible and torch.is_grad_enabled()) or transformed:
                return self._run_plain(h, inputs)
            if self.num_steps > most_steps(self.keep):
                raise ValueError(
                    f"{self.num_steps} steps drop more digits than can be kept: at most {most_steps(self.keep)} with "
                    f"{1 - self.keep} as step_size * damping"
                )
            guard, tensors = Guard.take(self, list(self.blocks), inputs, h.device)
            return cast(Tensor, _Reverse.apply(self, guard, h, *tensors))  # type: ignore[no-untyped-call]

    def _drive(self, step: int, x: Tensor, state: Tensor, inputs: BlockInputs) -> tuple[Tensor, Tensor]:
        """tanh(f(x)), and what a step adds to the velocity, in float64.

        Args:
            step: counted from zero.
            x: [N, C/2] float64.
            state: the same in the precision of the block.
            inputs: of all steps.
        """
        block = self.blocks[step % len(self.blocks)]
        force = block(state.clone(), inputs.layer(step)).tanh()  # a copy, because blocks may write to their input
        return force, (force.double() - self.stiffness * x) * self.step_size

    def _run_plain(self, h: Tensor, inputs: BlockInputs) -> Tensor:
        x, v = h.double().chunk(2, dim=1)
        for step in range(self.num_steps):
            v = float(self.keep) * v + self._drive(step, x, x.to(h.dtype), inputs)[1]
            x = x + self.step_size * v
        return torch.cat([x, v], dim=1).to(h.dtype)

    def _run(self, h: Tensor, inputs: BlockInputs, rng: RngTape) -> tuple[_States, Tensor]:
        """The states after the last step, and True where a value was too large for an integer or no number."""
        states = _States.of(h)
        largest = h.abs().amax().double() if h.numel() else h.new_zeros((), dtype=torch.float64)
        for step in range(self.num_steps):
            x = from_grid(states.x)
            force, added = self._drive(step, x, x.to(h.dtype), inputs)
            rng.record()
            states.v.forward(added, self.keep)
            moved = self._moved(states)
            states.x.add_(to_grid(moved))
            if h.numel():
                # The maximum with NaN is NaN.
                for value in (force, x, moved):
                    largest = torch.maximum(largest, value.abs().amax().double())
        return states, ~(largest < LARGEST_VALUE)

    def _moved(self, states: _States) -> Tensor:
        return states.v.read(torch.float64) * self.step_size


def most_steps(keep: Fraction) -> float:
    """The number of steps that can be run back when each multiplies the velocity by ``keep``."""
    return math.inf if keep == 1 else int(_DROPPED_BITS / -math.log2(keep))


class _Reverse(torch.autograd.Function):
    """Forward without a tape, keeping the last states; backward by inversion, one evaluation of each block."""

    @staticmethod
    def forward(ctx: Any, stack: OscillatorStack, guard: Guard, h: Tensor, *tensors: Any) -> Tensor:
        with guard.recorded(tensors) as inputs:
            (x, v), invalid = stack._run(h, inputs, guard.rng)
        ctx.stack, ctx.guard, ctx.dtype = stack, guard, h.dtype
        ctx.h = None if stack.inversion_error is None else h.clone()
        ctx.save_for_backward(x, *v, *tensors)
        return _States(x, v).join(h.dtype).masked_fill_(invalid, math.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stack: OscillatorStack = ctx.stack
        x, value, dropped, *tensors = ctx.saved_tensors  # raises if anything was changed in place
        # The reverse pass overwrites the states, unless another backward pass will ask for them again.
        if torch._C._autograd._get_current_graph_task_keep_graph():
            x, value, dropped = x.clone(), value.clone(), dropped.clone()
        states = _States(x, DampedState(value, dropped))
        grad_states = [half.to(ctx.dtype, copy=True) for half in grad.chunk(2, dim=1)]
        with ctx.guard.restored(tensors, ctx.needs_input_grad[3:]) as (inputs, aliases):
            grads = _reverse_pass(stack, states, grad_states, inputs, aliases, ctx.guard.rng)
        if ctx.h is not None:
            missed = (states.join(torch.float64) - ctx.h).abs().max() / ctx.h.abs().max().clamp_min(1e-30)
            stack.inversion_error = missed.item()
        return (None, None, torch.cat(grad_states, dim=1) if ctx.needs_input_grad[2] else None, *grads)


def _reverse_pass(
    stack: OscillatorStack,
    states: _States,
    grad_states: Sequence[Tensor],
    inputs: BlockInputs,
    tensors: Sequence[Tensor | None],
    rng: RngTape,
) -> list[Tensor | None]:
    """From the last step to the first: restore the states in place, and carry their gradient along in place.

    Args:
        stack: its parameters are among the tensors.
        states: after the last step.
        grad_states: the gradients of positions and velocities, [N, C/2] each.
        inputs: what the blocks read, made of the tensors.
        tensors: those whose gradients are returned, where they require one.
        rng: rewound before each evaluation of a block.

    Returns:
        The gradient of each tensor, summed over the steps.
    """
    dt, (grad_x, grad_v) = stack.step_size, grad_states
    read = [leaf for leaf in tree_leaves(inputs) if leaf is not None and leaf.requires_grad]
    own = [[p for p in block.parameters() if p.requires_grad] for block in stack.blocks]
    sums = GradientSums(tensors)
    for step in range(stack.num_steps - 1, -1, -1):
        states.x.sub_(to_grid(stack._moved(states)))
        grad_v.add_(grad_x, alpha=dt)
        rng.rewind()
        x = from_grid(states.x)
        state = x.to(grad_x.dtype).requires_grad_()
        force, added = stack._drive(step, x, state, inputs)
        states.v.backward(added.detach(), stack.keep)
        del x, added
        if force.requires_grad:
            sources = [*read, *own[step % len(own)]]
            grad_state, *grads = torch.autograd.grad(
                force, [state, *sources], (dt * grad_v).to(force.dtype), allow_unused=True
            )
            sums.add(sources, grads)
            if grad_state is not None:
                grad_x.add_(grad_state)
        grad_x.sub_(grad_v, alpha=dt * stack.stiffness)
        grad_v.mul_(float(stack.keep))
    return [None if tensor is None else sums.of(tensor) for tensor in tensors]
