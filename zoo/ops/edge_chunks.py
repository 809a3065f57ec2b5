"""A bounded number of edges at a time, for what is computed in PyTorch alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.ops.csr import CSR

# Numbers in the [edges, C] tensors of one chunk: a few of them fit into the caches of a processor.
CHUNK_NUMBERS = 1 << 20


def sum_dtype(x: Tensor) -> torch.dtype:
    """The type in which sums of such numbers are kept."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Chunk(NamedTuple):
    """Consecutive edges, and the rows they belong to."""

    edges: slice
    rows: slice  # the rows that these edges belong to; the first and the last may have further edges elsewhere
    row: Tensor  # [edges] int64, counted from the first of these rows
    col: Tensor  # [edges]

    def gather(self, values: Tensor) -> Tensor:
        """[N, ...] to [edges, ...]."""
        return values[self.rows].index_select(0, self.row)

    def scatter(self, values: Tensor, how: str, start: float) -> Tensor:
        """[edges, C] to [rows, C]."""
        out = values.new_full((self.rows.stop - self.rows.start, values.shape[1]), start)
        return out.scatter_reduce_(0, self.row[:, None].expand_as(values), values, how)


def chunks(csr: CSR, num_channels: int) -> Iterator[Chunk]:
    """All edges in turn, at most CHUNK_NUMBERS / num_channels at a time."""
    rowptr, col = csr
    num_edges, size = csr.num_edges, max(CHUNK_NUMBERS // max(num_channels, 1), 1)
    if not num_edges:
        return
    starts = torch.arange(0, num_edges, size, device=rowptr.device)
    stops = (starts + size).clamp(max=num_edges)
    # The row of an edge is the last one that starts at it or before it.
    first_rows = torch.searchsorted(rowptr, starts, right=True) - 1
    stop_rows = torch.searchsorted(rowptr, stops - 1, right=True)
    for start, stop, first, end in torch.stack([starts, stops, first_rows, stop_rows], 1).tolist():
        within = rowptr[first : end + 1].clamp(start, stop)
        row = torch.repeat_interleave(within.diff(), output_size=stop - start)
        yield Chunk(slice(start, stop), slice(first, end), row, col[start:stop])
