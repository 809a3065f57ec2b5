"""What the ops share on the GPU: rows cut into pieces, tiles of channels, and the launch of Triton kernels."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from zoo.errors import BackendError
from zoo.ops.csr import CSR, remembered
from zoo.ops.tensors import address

# Longer rows are shared by several programs; yet there is room for so many pieces of them at most, since each has
# results of its own.
MAX_PIECE_EDGES = 256
MAX_FURTHER_PIECES = 1 << 16
# Edges that a program handles at once: the side of the smallest matrix product.
BLOCK_EDGES = 16


class Plan(NamedTuple):
    """Rows cut into pieces of bounded length; shapes depend on N and E alone.

    Piece i < N begins row i. Room for what is left of long rows follows, row by row; what is not needed of it is empty.
    """

    start: Tensor  # [P] first edge of each piece
    end: Tensor  # [P]
    target: Tensor  # [P - N] rows of the pieces from N on; N of those that no row needs
    tail_ptr: Tensor  # [N + 1] where the further pieces of each row begin, counted from N

    def refill(self, csr: CSR) -> None:
        """See ``csr.Refillable``."""
        for old, new in zip(self, _make_plan(csr), strict=True):
            old.copy_(new)


def plan_of(csr: CSR) -> Plan:
    """The plan of a CSR, made once.

    Raises:
        BackendError: if there are too many edges.
    """
    return remembered(csr, "triton", _make_plan)


def _make_plan(csr: CSR) -> Plan:
    if csr.num_edges >= 2**31:
        raise BackendError(f"triton: {csr.num_edges} edges are too many for 32-bit edge ids; use_backend('chunked')")
    limit = MAX_PIECE_EDGES
    while csr.num_edges // limit > MAX_FURTHER_PIECES:
        limit *= 2
    # Nothing here is read back from the GPU.
    first, last = csr.rowptr[:-1], csr.rowptr[1:]
    extra = (last - first - 1).div(limit, rounding_mode="floor").clamp(min=0)  # [N] pieces after the first
    tail_ptr = torch.zeros_like(csr.rowptr)
    torch.cumsum(extra, 0, out=tail_ptr[1:])
    room = csr.num_edges // limit
    unused = room - tail_ptr[-1:]
    target = torch.repeat_interleave(torch.cat([extra, unused]), output_size=room)
    # A row beyond the last has no edges, whatever piece of it is asked for.
    after = csr.rowptr[-1:]
    nth = torch.arange(1, room + 1, device=target.device) - tail_ptr[target]
    tail_end = torch.cat([last, after])[target]
    tail_start = torch.minimum(torch.cat([first, after])[target] + nth * limit, tail_end)
    start = torch.cat([first, tail_start])
    end = torch.minimum(start + limit, torch.cat([last, tail_end]))
    return Plan(start, end, target, tail_ptr)


def launch(kernel: Any, grid: tuple[int, int], device: torch.device, *args: Any, **options: Any) -> None:
    """Run a kernel on the GPU of the tensors."""
    for argument in args:
        if isinstance(argument, Tensor):
            address(argument)
    # Triton launches on the current GPU, which need not be that of the tensors.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        # Fused multiply-add is what the kernels are written for; newer versions ask to say so.
        kernel[grid](*args, **options, enable_fp_fusion=True)


def join(kernel: Any, plan: Plan, *results: Tensor, **flags: bool) -> None:
    """Join the pieces of cut rows in place; results are [P, ...] without gaps."""
    if not plan.target.numel():
        return
    num_rows, num_channels = plan.tail_ptr.numel() - 1, results[0].shape[1:].numel()
    size, num_warps = tile(num_channels)
    launch(
        kernel,
        (plan.target.numel(), triton.cdiv(num_channels, size)),
        results[0].device,
        *(plan.target, plan.tail_ptr, num_rows, num_channels, *results),
        **flags,
        BC=size,
        num_warps=num_warps,
    )


def tile(num_channels: int, widest: int = 64) -> tuple[int, int]:
    """Channels of a tile, and warps that work on it: little padding, few tiles."""
    sizes = [size for size in (64, 32, 16) if size <= widest]
    size = min(sizes, key=lambda size: triton.cdiv(num_channels, size) * (size + 12))
    return size, max(1, size // 32)
