"""The incoming edges of every node as compressed sparse rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from zoo.errors import DataError
from zoo.ops.tensors import plain

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
    target, perm = torch.sort(target.long(), stable=True)
    rowptr = torch.searchsorted(target, torch.arange(num_nodes + 1, device=target.device))
    return CSR(rowptr, source[perm].contiguous()), perm


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
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < num_nodes:
        raise ValueError(
            f"edge_index: node ids must be in 0..{num_nodes - 1}, got {int(edge_index.min())}..{int(edge_index.max())}"
        )
    return csr_from_edge_index(edge_index, num_nodes)


def check_csr(csr: CSR) -> None:
    """Look at every row and edge, once for each CSR: kernels read memory where ``rowptr`` and ``col`` tell them to.

    Raises:
        DataError: if the rows do not cover the edges in order, or an edge names a node that does not exist.
    """
    if not torch.compiler.is_compiling():
        remembered(csr, "checked", _check)


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
class Refillable(Protocol):
    """What is remembered of a CSR and can follow it when it is overwritten, in tensors that stay where they are."""

    def refill(self, csr: CSR) -> None:
        """Become what would be built of ``csr``, which has as many rows and edges as before."""


def empty_csr(num_nodes: int, num_edges: int, like: CSR) -> CSR:
    """Room for CSRs of fewer nodes and no more edges, on the device of ``like``; to be filled by :func:`overwrite`."""
    rowptr = torch.zeros(num_nodes + 1, dtype=like.rowptr.dtype, device=like.rowptr.device)
    rowptr[-1:].fill_(num_edges)
    return CSR(rowptr, torch.zeros(num_edges, dtype=like.col.dtype, device=like.col.device))


def overwrite(room: CSR, csr: CSR) -> None:
    """Write a CSR into a larger one, whose tensors stay where they are.

    The rows beyond share the edges beyond evenly: a GPU joins the pieces of one long row one after the other. These
    edges come from every node in turn, so that not all that flows back along them meets in one place. What is
    remembered of ``room`` and can follow does so, the rest is forgotten.

    Args:
        room: more nodes than ``csr``, as many edges or more.
        csr: any.

    Raises:
        DataError: if ``csr`` is damaged or does not fit.
    """
    check_csr(csr)
    n, num_edges = csr.num_nodes, csr.num_edges
    if n >= room.num_nodes or num_edges > room.num_edges:
        size = f"{n} nodes and {num_edges} edges"
        raise DataError(f"{size} do not fit into a CSR of {room.num_nodes} nodes and {room.num_edges} edges")
    room.rowptr[:n].copy_(csr.rowptr[:-1])
    rows = torch.arange(room.num_nodes - n + 1, device=room.rowptr.device)
    room.rowptr[n:].copy_(rows * (room.num_edges - num_edges) // (room.num_nodes - n) + num_edges)
    room.col[:num_edges].copy_(csr.col)
    beyond = room.col[num_edges:]
    torch.arange(beyond.numel(), dtype=beyond.dtype, device=beyond.device, out=beyond).remainder_(room.num_nodes)
    memory = _memory(room)
    kept = {} if memory is None or memory.col() is not room.col else memory.values
    kept = {key: value for key, value in kept.items() if isinstance(value, Refillable)}
    for value in kept.values():
        value.refill(room)
    _MEMORIES[room.rowptr] = _Memory(weakref.ref(room.col), _versions(room), {"checked": True, **kept})


class _Memory(NamedTuple):
    col: weakref.ref[Tensor]
    versions: tuple[int, int]
    values: dict[str, Any]


# Goes with the tensors: nothing here keeps a CSR alive.
_MEMORIES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remembered(csr: CSR, key: str, build: Callable[[CSR], Value]) -> Value:
    """What ``build`` makes of a CSR: built on first use and kept as long as the CSR's tensors live unchanged.

    The value must not hold the CSR's own tensors or views of them.
    """
    memory = _memory(csr)
    versions = _versions(csr)
    if memory is None or memory.col() is not csr.col or memory.versions != versions:
        memory = _MEMORIES[csr.rowptr] = _Memory(weakref.ref(csr.col), versions, {})
    if key not in memory.values:
        memory.values[key] = build(csr)
    value: Value = memory.values[key]
    return value


def _memory(csr: CSR) -> _Memory | None:
    return _MEMORIES[csr.rowptr] if csr.rowptr in _MEMORIES else None  # noqa: SIM401


def _versions(csr: CSR) -> tuple[int, int]:
    return _version(csr.rowptr), _version(csr.col)


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode do not count their changes.
    return -1 if tensor.is_inference() else tensor._version
