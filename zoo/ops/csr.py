"""The incoming edges of every node as compressed sparse rows, and what convolutions derive from them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from zoo.errors import DataError
from zoo.ops.dispatch import plain

Value = TypeVar("Value")


class CSR(NamedTuple):
    """Incoming edges grouped by target node.

    The edges of target node i are the positions ``rowptr[i]`` to ``rowptr[i + 1]``; edge features that go with a CSR
    are stored in the same order.

    Attributes:
        rowptr: [N + 1] int64, where each row starts.
        col: [E] int32 or int64, the source node of each edge.
    """

    rowptr: Tensor
    col: Tensor

    @property
    def num_nodes(self) -> int:
        """Number of target nodes N."""
        return self.rowptr.numel() - 1

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return self.col.numel()

    def to(self, device: torch.device | str) -> CSR:
        """The same rows on another device."""
        return CSR(self.rowptr.to(device), self.col.to(device))


def csr_from_edge_index(edge_index: Tensor, num_nodes: int) -> tuple[CSR, Tensor]:
    """Group edges by target node, keeping the given order within each row.

    Args:
        edge_index: [2, E] integers, sources first, targets second, each in 0 .. num_nodes - 1.
        num_nodes: N.

    Returns:
        The rows, and [E] int64 ``perm``: row position k holds the edge ``perm[k]`` of ``edge_index``, so that
        ``edge_attr[perm]`` are the edge features in row order.
    """
    source, target = plain(edge_index)
    target = target.long()
    if torch.compiler.is_compiling():
        perm, rowptr = _traced_rows(target, num_nodes)
    else:
        target, perm = torch.sort(target, stable=True)
        rowptr = torch.searchsorted(target, torch.arange(num_nodes + 1, device=target.device))
    return CSR(rowptr, source[perm].contiguous()), perm


def _traced_rows(target: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    # ONNX has neither a stable sort nor a search in sorted numbers. Edges are numbered, so that no two keys are equal.
    num_edges = target.numel()
    perm = torch.sort(target * num_edges + torch.arange(num_edges, device=target.device)).indices
    degree = target.new_zeros(num_nodes).index_add(0, target, torch.ones_like(target))
    return perm, F.pad(degree.cumsum(0), (1, 0))


def as_csr(edge_index: Tensor | CSR, num_nodes: int) -> tuple[CSR, Tensor | None]:
    """The CSR of ``edge_index``, and the order of its edges unless it was a CSR already.

    Raises:
        ValueError: if a node id is not in 0 .. num_nodes - 1, or the CSR is of another number of nodes.
    """
    if isinstance(edge_index, CSR):
        if edge_index.num_nodes != num_nodes:
            raise ValueError(f"the CSR has {edge_index.num_nodes} nodes, x has {num_nodes}")
        return edge_index, None
    edge_index = plain(edge_index)
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.is_floating_point():
        raise ValueError(
            f"edge_index: expected integers of shape (2, E), got {edge_index.dtype} of {tuple(edge_index.shape)}"
        )
    # What a compiler traces has no values yet to be checked.
    traced = torch.compiler.is_compiling()
    if not traced and edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        raise ValueError(
            f"edge_index: node ids must be in 0..{num_nodes - 1}, got {int(edge_index.min())}..{int(edge_index.max())}"
        )
    return csr_from_edge_index(edge_index, num_nodes)


def check_csr(csr: CSR) -> None:
    """Check every row and edge, once for each CSR: kernels read memory at the places that ``rowptr`` and ``col`` name.

    Raises:
        DataError: if the rows do not cover the edges in order, or an edge names a node that does not exist.
    """
    if not torch.compiler.is_compiling():
        cached(csr, "checked", _check)


def _check(csr: CSR) -> bool:
    rowptr, col = csr
    if rowptr.dim() != 1 or rowptr.dtype != torch.int64 or not rowptr.numel() or not rowptr.is_contiguous():
        raise DataError(f"rowptr: expected [N + 1] contiguous int64, got {list(rowptr.shape)} {rowptr.dtype}")
    if col.dim() != 1 or col.dtype not in (torch.int32, torch.int64) or not col.is_contiguous():
        raise DataError(f"col: expected [E] contiguous int32 or int64, got {list(col.shape)} {col.dtype}")
    if rowptr.device != col.device:
        raise DataError(f"rowptr is on {rowptr.device} and col on {col.device}; expected one device")
    if rowptr[0] != 0 or rowptr[-1] != csr.num_edges or bool((rowptr.diff() < 0).any()):
        raise DataError(f"rowptr: expected ascending positions from 0 to the number of edges ({csr.num_edges})")
    if csr.num_edges:
        lowest, highest = (int(node) for node in col.aminmax())
        if lowest < 0 or highest >= csr.num_nodes:
            wrong = lowest if lowest < 0 else highest
            raise DataError(f"col: node {wrong} does not exist; expected 0 to {csr.num_nodes - 1}")
    return True


@runtime_checkable
class Refreshable(Protocol):
    """A cached value that can be refreshed in place when its CSR changes (for CUDA graphs)."""

    def refresh(self, csr: CSR) -> None:
        """Take the values for ``csr``, which has as many rows and edges as before; tensors stay where they are."""


def empty_csr(num_nodes: int, num_edges: int, like: CSR) -> CSR:
    """A buffer for CSRs of fewer nodes and no more edges, on the device of ``like``; see :func:`copy_into`."""
    rowptr = torch.zeros(num_nodes + 1, dtype=like.rowptr.dtype, device=like.rowptr.device)
    rowptr[-1:].fill_(num_edges)
    return CSR(rowptr, torch.zeros(num_edges, dtype=like.col.dtype, device=like.col.device))


def copy_into(buffer: CSR, csr: CSR) -> None:
    """Copy a CSR into one of more nodes and no fewer edges, whose tensors stay where they are.

    The unused rows share the unused edges evenly, because a GPU merges the segments of one long row one after the
    other. These edges come from every node in turn, so that their gradients do not all meet in one row. Cached values
    of ``buffer`` that are ``Refreshable`` are refreshed, the others dropped.

    Raises:
        DataError: if ``csr`` is damaged or does not fit.
    """
    check_csr(csr)
    n, num_edges = csr.num_nodes, csr.num_edges
    if n >= buffer.num_nodes or num_edges > buffer.num_edges:
        size = f"{n} nodes and {num_edges} edges"
        raise DataError(f"{size} do not fit into a CSR of {buffer.num_nodes} nodes and {buffer.num_edges} edges")
    buffer.rowptr[:n].copy_(csr.rowptr[:-1])
    rows = torch.arange(buffer.num_nodes - n + 1, device=buffer.rowptr.device)
    buffer.rowptr[n:].copy_(rows * (buffer.num_edges - num_edges) // (buffer.num_nodes - n) + num_edges)
    buffer.col[:num_edges].copy_(csr.col)
    beyond = buffer.col[num_edges:]
    torch.arange(beyond.numel(), dtype=beyond.dtype, device=beyond.device, out=beyond).remainder_(buffer.num_nodes)
    cache = _cache_of(buffer)
    kept = {} if cache is None or cache.col() is not buffer.col else cache.values
    kept = {key: value for key, value in kept.items() if isinstance(value, Refreshable)}
    for value in kept.values():
        value.refresh(buffer)
    _CACHES[buffer.rowptr] = _Cache(weakref.ref(buffer.col), _versions(buffer), {"checked": True, **kept})


class _Cache(NamedTuple):
    col: weakref.ref[Tensor]
    versions: list[int]
    values: dict[str, Any]


# Keyed weakly by rowptr: nothing here keeps a CSR alive.
_CACHES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def cached(csr: CSR, key: str, build: Callable[[CSR], Value]) -> Value:
    """The value ``build(csr)``, built on first use and kept as long as the tensors of the CSR live unchanged.

    The value must not hold the CSR's own tensors or views of them.
    """
    cache = _cache_of(csr)
    versions = _versions(csr)
    if cache is None or cache.col() is not csr.col or cache.versions != versions:
        cache = _CACHES[csr.rowptr] = _Cache(weakref.ref(csr.col), versions, {})
    if key not in cache.values:
        cache.values[key] = build(csr)
    value: Value = cache.values[key]
    return value


def _cache_of(csr: CSR) -> _Cache | None:
    return _CACHES[csr.rowptr] if csr.rowptr in _CACHES else None  # noqa: SIM401


def _versions(csr: CSR) -> list[int]:
    # Tensors made in inference mode do not count their changes.
    return [-1 if tensor.is_inference() else tensor._version for tensor in csr]


def edge_targets(csr: CSR) -> Tensor:
    """[E] int64, the target node of every edge."""
    if torch.compiler.is_compiling():
        # ONNX has no repetition by counts: the row of edge k is the number of rows after the first that start by k.
        starts = csr.rowptr[1:]
        marks = starts.new_zeros(csr.num_edges + 1).index_add(0, starts, torch.ones_like(starts))
        return marks.cumsum(0)[:-1]
    nodes = torch.arange(csr.num_nodes, device=csr.rowptr.device)
    return torch.repeat_interleave(nodes, csr.rowptr.diff(), output_size=csr.num_edges)


def edge_index_of(csr: CSR) -> Tensor:
    """[2, E] int64 sources and targets, in the order of the rows."""
    return _cached_for_training(csr, "edge_index", lambda csr: torch.stack([csr.col.long(), edge_targets(csr)]))


def out_degrees(csr: CSR) -> Tensor:
    """[N] int64, the number of edges that leave every node."""
    return _cached_for_training(csr, "out-degrees", lambda csr: torch.bincount(csr.col, minlength=csr.num_nodes))


def without_loops(csr: CSR) -> CSR:
    """The edges between different nodes."""
    without = _cached_for_training(csr, "without loops", _without_loops)
    return csr if without is None else without


def _without_loops(csr: CSR) -> CSR | None:
    no_loop = csr.col != edge_targets(csr)
    if bool(no_loop.all()):
        return None
    num_before = F.pad(no_loop.cumsum(0), (1, 0))  # [E + 1]
    return CSR(num_before[csr.rowptr], csr.col[no_loop])


def _cached_for_training(csr: CSR, key: str, build: Callable[[CSR], Value]) -> Value:
    if torch.compiler.is_compiling():
        return build(csr)
    # A tensor made in inference mode would be of no use to a later training pass.
    with torch.inference_mode(False):
        return cached(csr, key, build)


def segment_softmax(scores: Tensor, csr: CSR) -> Tensor:
    """[E, H] softmax of scores [E, H] over each node's incoming edges.

    An edge whose score is -inf gets weight zero; the weights of a node with any finite score sum to one.
    """
    target = edge_targets(csr)
    top = torch.segment_reduce(scores.detach(), "max", offsets=csr.rowptr, unsafe=True, initial=-torch.inf)
    weights = (scores - top.masked_fill(top.isneginf(), 0).index_select(0, target)).exp()
    total = torch.segment_reduce(weights, "sum", offsets=csr.rowptr, unsafe=True, initial=0)
    return weights / total.masked_fill(total == 0, 1).index_select(0, target)
