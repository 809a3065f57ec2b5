"""Division of the edges of a CSR into bounded work, and the threads that share it.

Kernels work on segments of rows, PyTorch on chunks of edges; tasks release Python's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.errors import BackendError
from zoo.ops.csr import CSR, cached
from zoo.ops.dispatch import address

# A row has at most this many segments after its first, since each needs its own results; beyond it they get longer.
MAX_FURTHER_SEGMENTS = 1 << 16
# On the CPU, longer rows are shared by several threads.
MAX_SEGMENT_EDGES = 16384
# Work is handed to threads in items of at least so many edges, a segment counting as a few edges itself.
MIN_ITEM_EDGES = 1 << 15
SEGMENT_COST = 8
MAX_ITEMS = 256
# Numbers in the [edges, C] tensors of one chunk: a few of them fit into the caches of a processor.
CHUNK_NUMBERS = 1 << 20

Task = Callable[[], None]

_POOL: list[ThreadPoolExecutor] = []
# A forked child inherits the pool but not its threads.
os.register_at_fork(after_in_child=_POOL.clear)


class Segments(NamedTuple):
    """Rows cut into segments of bounded length; shapes depend on N and E alone.

    Segment i < N begins row i. The further segments of long rows follow, row by row; those that no row needs are empty.
    """

    start: Tensor  # [S] int64, the first edge of each segment
    end: Tensor  # [S] int64, the edge after its last
    row: Tensor  # [S - N] int64, the rows of the segments from N on; N of those that no row needs
    further: Tensor  # [N + 1] int64, where the further segments of each row begin, counted from N
    limit: int  # edges of the longest segment

    def refresh(self, csr: CSR) -> None:
        """See ``csr.Refreshable``."""
        for old, new in zip(self[:4], cut_rows(csr, self.limit)[:4], strict=True):
            old.copy_(new)


def cut_rows(csr: CSR, limit: int) -> Segments:
    """Cut every row into segments of at most ``limit`` edges, or twice as many, ..., if there are very many edges.

    Raises:
        BackendError: if there are too many edges for kernels.
    """
    if csr.num_edges >= 2**31:
        raise BackendError(f"{csr.num_edges} edges are too many for the 32-bit ids of kernels; use_backend('chunked')")
    while csr.num_edges // limit > MAX_FURTHER_SEGMENTS:
        limit *= 2
    # Nothing here is read back from a GPU.
    first, last = csr.rowptr[:-1], csr.rowptr[1:]
    extra = (last - first - 1).div(limit, rounding_mode="floor").clamp(min=0)  # [N] segments after the first
    further = torch.zeros_like(csr.rowptr)
    torch.cumsum(extra, 0, out=further[1:])
    size = csr.num_edges // limit
    row = torch.repeat_interleave(torch.cat([extra, size - further[-1:]]), output_size=size)
    # Row N has no edges, whatever segment of it is asked for.
    after = csr.rowptr[-1:]
    nth = torch.arange(1, size + 1, device=row.device) - further[row]
    row_end = torch.cat([last, after])[row]
    row_start = torch.minimum(torch.cat([first, after])[row] + nth * limit, row_end)
    start = torch.cat([first, row_start])
    end = torch.minimum(start + limit, torch.cat([last, row_end]))
    return Segments(start, end, row, further, limit)


class WorkItems(NamedTuple):
    """The rows of a CSR as the threads of a CPU share them."""

    segments: Segments
    # Pairs of [K] rows and [K] segments; no row appears twice in a pair. Merging pair after pair merges the segments of
    # each row in the order of its edges.
    merge_steps: list[tuple[Tensor, Tensor]]
    items: list[tuple[int, int]]  # first segment, and the one after the last, of each; they cost about the same
    col: Tensor | None  # [E] int32, where that of the CSR is not

    @classmethod
    def of(cls, csr: CSR) -> WorkItems:
        """The work items of a CSR, made once; they do not depend on the number of threads, so sums do not either."""
        return cached(csr, "work items", _make_work_items)

    def int32_col(self, csr: CSR) -> Tensor:
        """[E] int32, the source node of each edge."""
        return csr.col if self.col is None else self.col

    def bounds(self, n: int) -> tuple[int, ...]:
        """The first four arguments of a kernel: addresses of start and end, and the segments of item ``n``."""
        return address(self.segments.start), address(self.segments.end), *self.items[n]

    def run(self, kernel: Callable[..., None], *rest: float) -> None:
        """Run a Numba kernel over all segments."""
        run_tasks([partial(kernel, *self.bounds(n), *rest) for n in range(len(self.items))])


def _make_work_items(csr: CSR) -> WorkItems:
    start, end, row, further, limit = cut_rows(csr, MAX_SEGMENT_EDGES)
    # Without empty segments, results of graphs without long rows are those of the rows and need no copy.
    num_used = int(further[-1])
    num_segments = csr.num_nodes + num_used
    segments = Segments(start[:num_segments], end[:num_segments], row[:num_used], further, limit)
    own = csr.col.dtype == torch.int32
    return WorkItems(segments, _merge_steps(segments), _items(segments), None if own else csr.col.to(torch.int32))


def _merge_steps(segments: Segments) -> list[tuple[Tensor, Tensor]]:
    num_rows = segments.further.numel() - 1
    row = segments.row
    nth = torch.arange(row.numel()) - segments.further[row]
    steps = []
    for n in range(int(nth.max()) + 1 if row.numel() else 0):
        (chosen,) = (nth == n).nonzero(as_tuple=True)
        steps.append((row[chosen], chosen + num_rows))
    return steps


def _items(segments: Segments) -> list[tuple[int, int]]:
    cost = (segments.end - segments.start + SEGMENT_COST).cumsum(0)
    total = int(cost[-1]) if cost.numel() else 0
    num_items = max(1, min(MAX_ITEMS, total // MIN_ITEM_EDGES))
    inner = torch.arange(1, num_items) * total // num_items
    cuts = [0, *torch.searchsorted(cost, inner).tolist(), cost.numel()]
    return [(first, stop) for first, stop in pairwise(cuts) if stop > first]


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


def run_tasks(tasks: Sequence[Task]) -> None:
    """Run every task, on as many threads as PyTorch uses; which thread runs which task is left open.

    No task runs after the call has returned or raised.
    """
    num_helpers = min(torch.get_num_threads(), len(tasks)) - 1
    if num_helpers < 1:
        for task in tasks:
            task()
        return
    if not _POOL:
        _POOL.append(ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 64), thread_name_prefix="zoo-ops"))
    # A list iterator hands each item to one thread only.
    waiting = iter(tasks)

    def work() -> None:
        for task in waiting:
            task()

    helpers: list[Future[None]] = []
    try:
        for _ in range(num_helpers):
            helpers.append(_POOL[0].submit(work))
        work()
    finally:
        # Tasks hold raw addresses. If this thread stops early (Ctrl-C), its caller frees the tensors behind them: leave
        # nothing to begin, and wait for the tasks that have begun.
        for _ in waiting:
            pass
        started = [helper for helper in helpers if not helper.cancel()]
        _join(started)
    for helper in started:
        helper.result()


def _join(helpers: Sequence[Future[None]]) -> None:
    """Wait for helpers to end; an interrupt is raised only after that."""
    try:
        wait(helpers)
    except BaseException:
        _join(helpers)
        raise
