"""Modules as they were: backward evaluates again what forward evaluated, with the tensors and modes of then."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.utils import parametrize

# Not attributes of the modules: a lock can neither be copied nor pickled.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


class Slot(NamedTuple):
    """A place where a module keeps a tensor, ``holder[name]``, and which one of a list of tensors stands there."""

    holder: dict[str, Tensor | None]
    name: str
    which: int


def collect(modules: Iterable[nn.Module], kind: str) -> tuple[list[Tensor], list[Slot]]:
    """The distinct ``_parameters`` or ``_buffers`` of modules and their children, and all places that hold them."""
    tensors: list[Tensor] = []
    slots: list[Slot] = []
    known: dict[int, int] = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        holder: dict[str, Tensor | None] = getattr(module, kind)
        for name, tensor in holder.items():
            if tensor is not None:
                which = known.setdefault(id(tensor), len(tensors))
                if which == len(tensors):
                    tensors.append(tensor)
                slots.append(Slot(holder, name, which))
        pending.extend(child for child in module._modules.values() if child is not None)
    return tensors, slots


@contextmanager
def replaced(slots: Sequence[Slot], tensors: Sequence[Tensor | None] | Mapping[int, Tensor]) -> Iterator[None]:
    """Put other tensors, ``tensors[slot.which]``, in the modules' places for a while."""
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
    """Put modules back into the train or eval mode they had."""
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
