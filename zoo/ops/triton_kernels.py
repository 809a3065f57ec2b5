"""Triton kernels that join the pieces of rows, for all ops."""

# Triton carries no types, and its functions are not Python.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cut_row(target, tail_ptr, num_rows, C, BC: tl.constexpr):
    """The further pieces of the row whose second piece is the program's, and where its results stand.

    No pieces, and no channel inside, for any other program.
    """
    piece = tl.program_id(0)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    row = tl.load(target + piece)
    # Pieces that no row needs name a row beyond the last.
    known = tl.minimum(row, num_rows - 1)
    first = tl.load(tail_ptr + known)
    stop = tl.load(tail_ptr + known + 1)
    # For the first of a row's further pieces; nothing is done for the others.
    width = tl.where(first == piece, C, 0)
    width = tl.where(row < num_rows, width, 0)
    return first, tl.where(width > 0, stop, first), known * C + channels, channels, channels < width


@triton.jit
def join_sum(target, tail_ptr, num_rows, C, out, BC: tl.constexpr):
    """Add up the pieces of each cut row in the order of its edges."""
    first, stop, row, channels, inside = cut_row(target, tail_ptr, num_rows, C, BC)
    total = tl.load(out + row, mask=inside)
    for tail in range(first, stop):
        total += tl.load(out + (num_rows + tail) * C + channels, mask=inside)
    tl.store(out + row, total, mask=inside)
