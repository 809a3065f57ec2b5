"""How the rows of a CSR are shared by threads: cut into pieces of bounded length, grouped into chunks of like cost."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.errors import BackendError
from zoo.ops.csr import CSR, remembered

# Longer rows are shared by several threads.
MAX_PIECE_EDGES = 16384
# Work is handed to threads in chunks of at least so many edges.
CHUNK_EDGES = 1 << 15


class Pieces(NamedTuple):
    """Stretches of edges, each within one row.

    Piece i < N is the beginning of row i (all of it, unless the row is very long); the rest of long rows follows, row
    by row.

    Attributes:
        start: [P] int64, the first edge of each piece.
        end: [P] int64, the edge after its last.
        target: [P - N] int64, the rows of the pieces from N on.
    """

    start: Tensor
    end: Tensor
    target: Tensor

    @property
    def num_pieces(self) -> int:
        """Number of pieces P."""
        return self.start.numel()


def cut_rows(csr: CSR, limit: int) -> Pieces:
    """Cut every row into pieces of at most ``limit`` edges."""
    rowptr = csr.rowptr
    start, end = rowptr[:-1].clone(), rowptr[1:].clone()
    extra = ((end - start - 1).div(limit, rounding_mode="floor")).clamp(min=0)  # [N] pieces after the first
    target = torch.repeat_interleave(extra)
    nth = torch.arange(target.numel(), device=rowptr.device) - (extra.cumsum(0) - extra)[target]  # 0 for the second
    tail_start = start[target] + (nth + 1) * limit
    tail_end = torch.minimum(tail_start + limit, end[target])
    end = torch.minimum(end, start + limit)
    return Pieces(torch.cat([start, tail_start]), torch.cat([end, tail_end]), target)


def joining_rounds(pieces: Pieces) -> list[tuple[Tensor, Tensor]]:
    """Pairs of rows and pieces; no row appears twice in a pair.

    Joining pair after pair joins the pieces of each row in the order of its edges.
    """
    num_rows = pieces.num_pieces - pieces.target.numel()
    _, which, count = torch.unique_consecutive(pieces.target, return_inverse=True, return_counts=True)
    nth = torch.arange(pieces.target.numel(), device=which.device) - (count.cumsum(0) - count)[which]
    rounds = []
    for n in range(int(count.max()) if count.numel() else 0):
        chosen = (nth == n).nonzero().squeeze(1)
        rounds.append((pieces.target[chosen], chosen + num_rows))
    return rounds


def chunk_bounds(pieces: Pieces, *, row_cost: int, chunk_cost: int, max_chunks: int) -> list[int]:
    """Where to cut the list of pieces so that each chunk costs about the same.

    Args:
        pieces: P pieces.
        row_cost: what a piece costs besides its edges, counted in edges.
        chunk_cost: the smallest cost of a chunk, counted in edges.
        max_chunks: chunks cost more rather than that there are more of them.

    Returns:
        Ascending positions from 0 to P; one chunk lies between each two.
    """
    cost = (pieces.end - pieces.start + row_cost).cumsum(0)
    total = int(cost[-1]) if pieces.num_pieces else 0
    num_chunks = max(1, min(max_chunks, total // chunk_cost))
    inner = torch.arange(1, num_chunks, device=cost.device) * total // num_chunks
    cuts: list[int] = torch.searchsorted(cost, inner).tolist()
    return [0, *cuts, pieces.num_pieces]


def intervals(bounds: list[int]) -> list[tuple[int, int]]:
    """What lies between each two bounds, if anything does."""
    return [(first, stop) for first, stop in pairwise(bounds) if stop > first]


class Plan(NamedTuple):
    """Pieces, how they are joined, and where chunks of them end."""

    pieces: Pieces
    rounds: list[tuple[Tensor, Tensor]]
    bounds: list[int]
    col: Tensor | None  # int32, unless the CSR's own is


def plan_of(csr: CSR) -> Plan:
    """The plan of a CSR, made once.

    Raises:
        BackendError: if there are too many edges.
    """
    return remembered(csr, "numba", _make_plan)


def _make_plan(csr: CSR) -> Plan:
    if csr.num_edges >= 2**31:
        raise BackendError(f"numba: {csr.num_edges} edges are too many for 32-bit edge ids; use_backend('chunked')")
    pieces = cut_rows(csr, MAX_PIECE_EDGES)
    # Bounds do not depend on the number of threads, so that sums over chunks do not either.
    bounds = chunk_bounds(pieces, row_cost=8, chunk_cost=CHUNK_EDGES, max_chunks=256)
    own = csr.col.dtype == torch.int32
    return Plan(pieces, joining_rounds(pieces), bounds, None if own else csr.col.to(torch.int32))
