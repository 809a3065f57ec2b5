"""Launch of Triton kernels for all operators: rows cut into segments, tiles of channels, merging of segments."""

# Triton carries no types, and its functions are not Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, misc"

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zoo.ops.csr import CSR, cached
from zoo.ops.dispatch import address
from zoo.ops.work_items import Segments, cut_rows

# Longer rows are shared by several programs.
MAX_SEGMENT_EDGES = 256
# Edges that a program handles at once: the side of the smallest matrix product.
BLOCK_EDGES = 16


def segments_of(csr: CSR) -> Segments:
    """The segments of a CSR for a GPU, made once.

    Raises:
        BackendError: if there are too many edges.
    """
    return cached(csr, "triton", partial(cut_rows, limit=MAX_SEGMENT_EDGES))


def launch(kernel: Any, grid: tuple[int, int], device: torch.device, *args: Any, **options: Any) -> None:
    """Run a kernel on the GPU of the tensors."""
    for argument in args:
        if isinstance(argument, Tensor):
            address(argument)
    # Triton launches on the current GPU, which need not be that of the tensors.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        # The kernels are written for fused multiply-add, which newer versions must be asked for.
        kernel[grid](*args, **options, enable_fp_fusion=True)


def merge(kernel: Any, segments: Segments, *results: Tensor, **flags: bool) -> None:
    """Merge the segments of cut rows in place; results are [S, ...] without gaps."""
    if not segments.row.numel():
        return
    num_rows, num_channels = segments.further.numel() - 1, results[0].shape[1:].numel()
    size, num_warps = tile(num_channels)
    launch(
        kernel,
        (segments.row.numel(), triton.cdiv(num_channels, size)),
        results[0].device,
        *(segments.row, segments.further, num_rows, num_channels, *results),
        **flags,
        BC=size,
        num_warps=num_warps,
    )


def tile(num_channels: int) -> tuple[int, int]:
    """Channels of a tile, and warps that work on it: little padding, few tiles."""
    size = min((64, 32, 16), key=lambda size: triton.cdiv(num_channels, size) * (size + 12))
    return size, max(1, size // 32)


@triton.jit
def cut_row(target, further, num_rows, C, BC: tl.constexpr):
    """The further segments of the row whose second segment is the program's, and where its results stand.

    No segments, and no channel inside, for any other program.
    """
    segment = tl.program_id(0)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    row = tl.load(target + segment)
    # Segments that no row needs name a row beyond the last.
    cut = tl.minimum(row, num_rows - 1)
    first = tl.load(further + cut)
    stop = tl.load(further + cut + 1)
    # For the first of a row's further segments; nothing is done for the others.
    width = tl.where(first == segment, C, 0)
    width = tl.where(row < num_rows, width, 0)
    return first, tl.where(width > 0, stop, first), cut * C + channels, channels, channels < width


@triton.jit
def merge_sum(target, further, num_rows, C, out, BC: tl.constexpr):
    """Add up the segments of each cut row in the order of its edges."""
    first, stop, row, channels, inside = cut_row(target, further, num_rows, C, BC)
    total = tl.load(out + row, mask=inside)
    for extra in range(first, stop):
        total += tl.load(out + (num_rows + extra) * C + channels, mask=inside)
    tl.store(out + row, total, mask=inside)
