"""The processes that share a run, called ranks, and what they tell each other; without them, a run of one process.

All sums have an order that does not depend on the number W of ranks: the parts of a step are the leaves of one binary
tree, of which each rank adds up a branch. So 1, 2, 4 ... ranks give the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Bytes of a message that need no second exchange.
_SHORT = 1024


def world_size() -> int:
    """W, the number of processes that share the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; only rank 0 writes and speaks."""
    return dist.get_rank() if world_size() > 1 else 0


def exchange(value: Any) -> list[Any]:
    """Give every rank the values of all ranks, in the order of the ranks.

    Args:
        value: anything that JSON can hold; floats keep all their digits, NaN and infinity included.
    """
    if world_size() == 1:
        return [value]
    data = json.dumps(value).encode()
    size = 8 + _SHORT
    sent = torch.frombuffer(bytearray(len(data).to_bytes(8, "little") + data), dtype=torch.uint8)
    heads = _gather(torch.nn.functional.pad(sent[:size], (0, size - len(sent[:size]))))
    sizes = [int.from_bytes(bytes(head[:8].tolist()), "little") for head in heads]
    rest = max(sizes) - _SHORT
    tails = _gather(torch.nn.functional.pad(sent[size:], (0, rest - len(sent[size:])))) if rest > 0 else heads
    texts = (bytes(torch.cat([head[8:], tail]).tolist())[:n] for head, tail, n in zip(heads, tails, sizes, strict=True))
    return [json.loads(text) for text in texts]


def _gather(tensor: Tensor) -> list[Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor)
    return gathered


def tree_sum(leaf: Callable[[int], Tensor | None], start: int, stride: int, end: int) -> Tensor | None:
    """Sum of the leaves start, start + stride, start + 2 stride ... below end, as a binary tree that halves the stride.

    The sum of all leaves (stride 1) adds up those of even and of odd number (stride 2), each of which does the same
    again: with W = 2^k ranks, the sums of stride W from each rank's number are branches of that tree.

    Args:
        leaf: makes the tensor of a leaf, which is changed; None stands for nothing.
        start: the first leaf.
        stride: a power of two for the bits not to depend on it.
        end: one more than the last leaf of all.
    """
    if start >= end:
        return None
    if start + stride >= end:
        return leaf(start)
    first = tree_sum(leaf, start, 2 * stride, end)
    second = tree_sum(leaf, start + stride, 2 * stride, end)
    if first is None or second is None:
        return second if first is None else first
    return first.add_(second)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Add up one flat tensor of each rank along the tree, on all ranks; the tensor is changed.

    Each rank adds up a slice of it, as in any all-reduce, which for two ranks has only one order.
    """
    count = world_size()
    if count <= 2:
        if count == 2:
            dist.all_reduce(tensor)
        return tensor
    padded = torch.nn.functional.pad(tensor, (0, -len(tensor) % count))
    received = torch.empty_like(padded)
    dist.all_to_all_single(received, padded)
    own = tree_sum(received.view(count, -1).__getitem__, 0, 1, count)
    assert own is not None
    dist.all_gather(list(padded.view(count, -1)), own)
    return padded[: len(tensor)]
