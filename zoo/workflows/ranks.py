"""Messages and sums of the processes of a run, called ranks; without them, a run of one process.

All sums have an order that does not depend on the number W of ranks: the parts of a step are the leaves of one binary
tree, of which each rank adds up a branch. So 1, 2, 4 ... ranks give the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.errors import RunError

ValueT = TypeVar("ValueT")


class CommonError(RunError):
    """A fault that all ranks find together, or that rank 0 finds for all: it speaks of it."""


class LostError(RunError):
    """A rank that does not answer."""


@dataclass
class Group:
    """This process among W = ``size`` ranks, of which 0 alone writes, and the seconds that messages and sums took.

    After one of them was killed, the launcher may have started all of them again.
    """

    rank: int = 0
    size: int = 1
    is_restart: bool = False
    waited_s: float = 0.0

    def busy_clock(self) -> float:
        """Seconds since some moment, less those that messages and sums took."""
        return time.monotonic() - self.waited_s


group = Group()


@contextmanager
def _contact() -> Iterator[None]:
    """Turn what PyTorch raises when a rank does not answer into a LostError, and take the time."""
    started = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        message = "a process of this run ended without a word, perhaps killed; continue with --resume"
        raise LostError(message) from error
    finally:
        group.waited_s += time.monotonic() - started


def exchange(value: ValueT) -> list[ValueT]:
    """The values of all ranks, on all of them."""
    values = [value] * group.size
    if group.size > 1:
        with _contact():
            dist.all_gather_object(values, value)
    return values


def gather(value: ValueT) -> list[ValueT]:
    """The values of all ranks, on rank 0; nothing on the others."""
    if group.size == 1:
        return [value]
    values: list[Any] = [None] * group.size if group.rank == 0 else []
    with _contact():
        dist.gather_object(value, values or None)
    return values


def share(value: ValueT) -> ValueT:
    """The value of rank 0, on all of them."""
    values = [value]
    if group.size > 1:
        with _contact():
            dist.broadcast_object_list(values)
    return values[0]


def tree_sum(leaf: Callable[[int], Tensor | None], start: int, stride: int, end: int) -> Tensor | None:
    """Sum of the leaves start, start + stride, start + 2 stride ... below end, as a binary tree that halves the stride.

    The sum of all leaves (stride 1) adds up those of even and of odd number (stride 2), each of which does the same
    again: with W = 2^k ranks, the sums of stride W from each rank's number are branches of that tree. Leaves are
    changed; None stands for nothing.
    """
    if start >= end:
        return None
    if start + stride >= end:
        return leaf(start)
    first, second = (tree_sum(leaf, place, 2 * stride, end) for place in (start, start + stride))
    if first is None or second is None:
        return second if first is None else first
    return first.add_(second)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Add up one flat tensor of each rank along the tree, on all ranks; the tensor is changed.

    Each rank adds up a slice of it, as in any all-reduce, which for two ranks has only one order.
    """
    with _contact():
        if group.size <= 2:
            if group.size == 2:
                dist.all_reduce(tensor)
            return tensor
        padded = torch.nn.functional.pad(tensor, (0, -len(tensor) % group.size))
        received = torch.empty_like(padded)
        dist.all_to_all_single(received, padded)
        own = tree_sum(received.view(group.size, -1).__getitem__, 0, 1, group.size)
        assert own is not None
        dist.all_gather(list(padded.view(group.size, -1)), own)
        return padded[: len(tensor)]
