"""Replay of random numbers: a block evaluated in backward samples the numbers that it sampled in forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

State = tuple[Tensor, tuple[int, int] | None]


class RngTape:
    """The state of the random number generators before each evaluation of a block, if any block sampled from them.

    States that did not change are the same object, so that a stack without randomness stores one state, not L of them.

    Args:
        device: where the blocks compute; the generator of the CPU is always read too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states: list[State] = [self._read(None)]
        self._position = 0

    def record(self) -> None:
        """Note the state after an evaluation."""
        self._states.append(self._read(self._states[-1]))

    def finish(self) -> None:
        """Forget everything if nothing was sampled."""
        if all(state is self._states[0] for state in self._states):
            self._states = []

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Let :meth:`rewind` step through the evaluations backwards, and leave the generators as they were before."""
        self._position = len(self._states) - 1
        if not self._states:
            yield
            return
        present = self._read(None)
        try:
            yield
        finally:
            self._write(present)

    def rewind(self) -> None:
        """Set the generators to where they stood before the previous evaluation."""
        if self._states:
            self._position -= 1
            self._write(self._states[self._position])

    def _read(self, last: State | None) -> State:
        cpu, cuda = torch.get_rng_state(), None
        if self._device.type == "cuda":
            generator = torch.cuda.default_generators[self._device.index or 0]
            cuda = (generator.initial_seed(), generator.get_offset())
        if last is not None and cuda == last[1] and torch.equal(cpu, last[0]):
            return last
        return cpu, cuda

    def _write(self, state: State) -> None:
        cpu, cuda = state
        torch.set_rng_state(cpu)
        if cuda is not None:
            generator = torch.cuda.default_generators[self._device.index or 0]
            generator.manual_seed(cuda[0])
            generator.set_offset(cuda[1])
