"""Evaluate modules again in backward as forward did: with its parameters, buffers, modes and random numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

# Not attributes of the modules: a lock can neither be copied nor pickled.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()
# Of the generator of the CPU; seed and offset of that of a GPU.
RngState = tuple[Tensor, tuple[int, int] | None]


class Slot(NamedTuple):
    """The dictionary of a module that holds a tensor under ``name``, and the number of that tensor in a list."""

    holder: dict[str, Tensor | None]
    name: str
    which: int


def slots_of(modules: Iterable[nn.Module], attribute: str) -> list[Slot]:
    """The slots of the ``_parameters`` or ``_buffers`` of modules, without their children; a tensor has one number."""
    numbers: dict[int, int] = {}
    return [
        Slot(holder, name, numbers.setdefault(id(tensor), len(numbers)))
        for holder in (getattr(module, attribute) for module in modules)
        for name, tensor in holder.items()
        if tensor is not None
    ]


def held(slots: Iterable[Slot]) -> list[Tensor]:
    """The tensors that stand in the slots now, in the order of their numbers."""
    present = {slot.which: slot.holder[slot.name] for slot in slots}
    return [tensor for _, tensor in sorted(present.items()) if tensor is not None]


@contextmanager
def replaced(slots: Sequence[Slot], tensors: Sequence[Tensor | None] | Mapping[int, Tensor]) -> Iterator[None]:
    """Put other tensors, ``tensors[slot.which]``, in the modules' slots, and bring the present ones back at the end."""
    present = [slot.holder[slot.name] for slot in slots]
    try:
        for slot in slots:
            slot.holder[slot.name] = tensors[slot.which]
        yield
    finally:
        for slot, tensor in zip(slots, present, strict=True):
            slot.holder[slot.name] = tensor


@contextmanager
def modes(modules: Sequence[nn.Module], training: Sequence[bool]) -> Iterator[None]:
    """Put modules into the given train or eval modes for a while."""
    present = [module.training for module in modules]
    try:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
        yield
    finally:
        for module, mode in zip(modules, present, strict=True):
            module.training = mode


@contextmanager
def exclusive(module: nn.Module) -> Iterator[None]:
    """Keep other threads out of a module while tensors in it may be replaced, and caches of weights out of sight."""
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(module, threading.RLock())
    with lock:
        # A weight that parametrize.cached() keeps was computed without the tape of here.
        cached, parametrize._cache_enabled = parametrize._cache_enabled, 0
        try:
            yield
        finally:
            parametrize._cache_enabled = cached


class Guard:
    """Protects a forward pass without a tape, and the evaluation of the same modules in backward.

    Made in forward, it holds what an evaluation depends on besides tensors: modes, autocast, random numbers, and
    copies of the buffers, which are small and which a later pass may change. The tensors, that is, arguments and
    parameters, are for ``ctx.save_for_backward``: saved by reference, so that changing one in place before backward
    is an error of autograd's, never a wrong gradient.

    Args:
        owner: the module of the pass; one thread at a time evaluates its blocks.
        blocks: the modules that are evaluated.
        arguments: tensors, or None, that the blocks read, in any nest of tuples and lists.
        device: where they compute.

    Attributes:
        rng: states of the random number generators; forward records after, backward rewinds before each evaluation.
    """

    def __init__(self, owner: nn.Module, blocks: Sequence[nn.Module], arguments: Any, device: torch.device) -> None:
        self._owner, self.rng = owner, RngTape(device)
        leaves, self._tree = tree_flatten(arguments)
        self._num_leaves = len(leaves)
        self._modules = [module for block in blocks for module in block.modules()]
        self._training = [module.training for module in self._modules]
        self._parameter_slots = slots_of(self._modules, "_parameters")
        self._buffer_slots = slots_of(self._modules, "_buffers")
        self._buffers = [buffer.detach().clone() for buffer in held(self._buffer_slots)]
        kind = device.type
        self._autocast_state = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def tensors(self, arguments: Any) -> list[Tensor | None]:
        """The tensors that the Function of the pass takes: those of the arguments, then the parameters."""
        return [*tree_leaves(arguments), *held(self._parameter_slots)]

    @contextmanager
    def recorded(self, tensors: Sequence[Tensor | None]) -> Iterator[Any]:
        """Protect the forward pass; yields the arguments made of ``tensors``."""
        with self._autocast():
            yield tree_unflatten(list(tensors[: self._num_leaves]), self._tree)
        self.rng.finish()

    @contextmanager
    def restored(
        self, tensors: Sequence[Tensor | None], needs_grad: Sequence[bool]
    ) -> Iterator[tuple[Any, list[Tensor | None]]]:
        """Bring back the state of forward, with the tape on; afterwards everything is as it was before.

        Args:
            tensors: those of forward, as autograd saved them.
            needs_grad: which of them get a gradient.

        Yields:
            The arguments and all tensors, as aliases: the tape of backward ends there, and hooks of the real tensors
            fire once, when their gradients are returned. A tensor that stands in several places has one alias.
        """
        by_tensor = {id(tensor): _alias(tensor, needed) for tensor, needed in zip(tensors, needs_grad, strict=True)}
        aliases = [by_tensor[id(tensor)] for tensor in tensors]
        with ExitStack() as state:
            state.enter_context(exclusive(self._owner))
            state.enter_context(replaced(self._parameter_slots, aliases[self._num_leaves :]))
            # Running statistics are counted once: this evaluation writes them to copies.
            state.enter_context(replaced(self._buffer_slots, [buffer.clone() for buffer in self._buffers]))
            state.enter_context(modes(self._modules, self._training))
            state.enter_context(self.rng.replay())
            state.enter_context(self._autocast())
            state.enter_context(torch.enable_grad())
            yield tree_unflatten(aliases[: self._num_leaves], self._tree), aliases

    def _autocast(self) -> torch.autocast:
        device_type, dtype, enabled = self._autocast_state
        # Autocast would cache weights without a tape, and modules outside that share them would use these.
        return torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False)


def _alias(tensor: Tensor | None, requires_grad: bool) -> Tensor | None:
    # A tensor that cannot carry a gradient stays the same object, so that caches of a graph are found again.
    if tensor is None or not tensor.requires_grad:
        return tensor
    return tensor.detach().requires_grad_(requires_grad)


class GradientSums:
    """Gradients summed over many evaluations, by the tensor they belong to; one that requires none gets none."""

    def __init__(self, tensors: Iterable[Tensor | None]) -> None:
        # Allocated before the evaluations: small gradients between the large temporaries of a layer would outlive them
        # and keep the allocator from reusing their memory as a whole.
        self._sums = {id(t): torch.empty_like(t.detach()) for t in tensors if t is not None and t.requires_grad}
        self._started: set[int] = set()

    def take(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The sum for each tensor, once for one that stands in several places; None if nothing was added."""
        return [self._sums.pop(id(t), None) if id(t) in self._started else None for t in tensors]

    def add(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Add one gradient to each tensor's sum."""
        for tensor, grad in zip(tensors, grads, strict=True):
            if grad is None:
                continue
            total = self._sums[id(tensor)]
            if id(tensor) in self._started:
                total.add_(grad)
            else:
                total.copy_(grad)
                self._started.add(id(tensor))


class RngTape:
    """The state of the random number generators before each evaluation of a block, if any block sampled from them.

    States that did not change are the same object, so that a stack without randomness stores one state, not L of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states: list[RngState] = [self._read(None)]
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

    def _read(self, last: RngState | None) -> RngState:
        cpu, cuda = torch.get_rng_state(), None
        if self._device.type == "cuda":
            generator = torch.cuda.default_generators[self._device.index or 0]
            cuda = (generator.initial_seed(), generator.get_offset())
        if last is not None and cuda == last[1] and torch.equal(cpu, last[0]):
            return last
        return cpu, cuda

    def _write(self, state: RngState) -> None:
        cpu, cuda = state
        torch.set_rng_state(cpu)
        if cuda is not None:
            generator = torch.cuda.default_generators[self._device.index or 0]
            generator.manual_seed(cuda[0])
            generator.set_offset(cuda[1])
