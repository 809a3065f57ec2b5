"""A graph as tensors: edges, features, labels and splits; and the part of one that a training step sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.errors import DataError
from zoo.ops.csr import CSR
from zoo.spec.shape import MAX_EDGE_FEATURES, MAX_WIDTH, GraphShape

Array = np.ndarray[Any, Any]
Task = Literal["multilabel", "multiclass", "binary", "regression"]

# Checks walk over the edges in slices of this many, so that they need little memory on any graph.
EDGE_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint sets of nodes to learn from, to choose by and to report on, [n] int64 ids each."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def nodes(self, *names: str) -> Tensor:
        """[n] the nodes of train, valid or test or of several of them, ascending, on the CPU."""
        nodes: Tensor = torch.unique(torch.cat([getattr(self, name).cpu() for name in names]))
        return nodes

    def to(self, device: torch.device | str) -> Split:
        """The same ids on another device."""
        return Split(self.train.to(device), self.valid.to(device), self.test.to(device))


@dataclass(frozen=True, eq=False, kw_only=True)
class Graph:
    """One graph with a task on its nodes.

    Attributes:
        name: of the data set, for messages and reports.
        edge_index: [2, E] int32 or int64, sources then targets.
        undirected: True if every edge is stored once and counts in both directions (a self-loop then counts twice).
        num_nodes: N.
        x: [N, F] float32 node features, or None.
        categories: [N] int64, one category per node in 0 .. K - 1 (the species of a protein), or None.
        edge_attr: [E, D] float32 edge features, possibly mapped from a file, or None.
        edge_weight: [E] float32 factors of the messages, or None.
        y: [N] int64 classes with -1 for unlabeled (multiclass, binary), or [N, T] float32 zeros and ones with NaN for
            unlabeled (multilabel), or [N, T] float32 numbers with NaN for unlabeled (regression).
        splits: at least one.
        task: what a label means.
        num_tasks: outputs per node: T labels or numbers, the number of classes, or 1 for a binary task.
        num_categories: the last this many columns of ``x`` are a one-hot code of ``categories``; 0 for none.
        self_loops: True if every node also has one edge from itself to itself; ``edge_index`` then stores none.
    """

    name: str
    edge_index: Tensor
    undirected: bool
    num_nodes: int
    x: Tensor | None = None
    categories: Tensor | None = None
    edge_attr: Tensor | None = None
    edge_weight: Tensor | None = None
    y: Tensor
    splits: tuple[Split, ...]
    task: Task
    num_tasks: int
    num_categories: int = 0
    self_loops: bool = False

    @property
    def num_edges(self) -> int:
        """Number of stored edges E; an undirected graph has twice as many messages, self-loops come on top."""
        return self.edge_index.shape[1]

    @cached_property
    def clusters(self) -> dict[int, Tensor]:
        """[N] the cluster of each node by the number of clusters, of those that were found so far."""
        return {}

    @property
    def shape(self) -> GraphShape:
        """The widths that a model needs to know.

        Raises:
            DataError: if the graph has no node features yet.
        """
        if self.x is None:
            raise DataError(f"{self.name}: the graph has no node features; build some first, e.g. 'degree'")
        return GraphShape(
            num_node_features=self.x.shape[1],
            num_node_categories=self.num_categories,
            num_edge_features=0 if self.edge_attr is None else self.edge_attr.shape[1],
            num_tasks=self.num_tasks,
        )

    def masks(self, name: str) -> Tensor:
        """[num_splits, N] bool, True for the nodes of the set "train", "valid" or "test" of each split."""
        masks = torch.zeros(len(self.splits), self.num_nodes, dtype=torch.bool)
        for mask, split in zip(masks, self.splits, strict=True):
            mask[getattr(split, name).cpu()] = True
        return masks

    @classmethod
    def from_pyg(
        cls, data: Any, *, name: str = "data", task: Task | None = None, undirected: bool | None = None
    ) -> Graph:
        """A graph from a PyG ``Data`` object, see :func:`zoo.data.pyg.graph_from_pyg`."""
        from zoo.data.pyg import graph_from_pyg

        return graph_from_pyg(data, name=name, task=task, undirected=undirected)

    def to_pyg(self) -> Any:
        """A PyG ``Data`` object of the graph, see :func:`zoo.data.pyg.graph_to_pyg`."""
        from zoo.data.pyg import graph_to_pyg

        return graph_to_pyg(self)

    def __repr__(self) -> str:
        tensors = {"x": self.x, "edge_attr": self.edge_attr}
        columns = "".join(f", {name}=[{len(t):,}, {t.shape[1]}]" for name, t in tensors.items() if t is not None)
        edges = f"{self.num_edges:,} {'undirected' if self.undirected else 'directed'} edges"
        rest = f"task={self.task}, num_tasks={self.num_tasks}, num_splits={len(self.splits)}"
        return f"Graph({self.name}: {self.num_nodes:,} nodes, {edges}{columns}, {rest})"

    def to(self, device: torch.device | str) -> Graph:
        """The same graph with every tensor on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, splits=tuple(split.to(device) for split in self.splits), **moved)


class Part(NamedTuple):
    """The subgraph induced by some nodes of a graph.

    Its CSR holds the incoming edges of each of the n nodes, sources numbered 0 .. n - 1; both directions of undirected
    edges, and last of its row the self-loop, if the graph has them.
    """

    nodes: Tensor  # [n] int64 ids in the whole graph, ascending
    x: Tensor  # [n, F] float32
    csr: CSR
    edge_attr: Tensor | None  # [e, D] float32 in the order of csr.col
    edge_weight: Tensor | None = None  # [e] float32 in that order

    def to(self, device: torch.device | str) -> Part:
        """The same part on another device."""
        edge_attr, edge_weight = (None if t is None else t.to(device) for t in (self.edge_attr, self.edge_weight))
        return Part(self.nodes.to(device), self.x.to(device), self.csr.to(device), edge_attr, edge_weight)


def directed_edges(graph: Graph) -> tuple[Tensor, Tensor | None]:
    """All messages of a graph as an edge list, an undirected edge followed by its inverse, self-loops at the end.

    Returns:
        [2, M] sources and targets, M = 2E for an undirected graph and N more with self-loops, and [M, D] edge features
        or None.
    """
    edge_index, edge_attr = graph.edge_index, graph.edge_attr
    if graph.undirected:
        edge_index = torch.stack([edge_index, edge_index.flip(0)], dim=2).reshape(2, -1)  # [2, E, 2] -> [2, 2E]
        edge_attr = None if edge_attr is None else edge_attr.repeat_interleave(2, dim=0)
    if graph.self_loops:
        nodes = torch.arange(graph.num_nodes, dtype=edge_index.dtype, device=edge_index.device)
        edge_index = torch.cat([edge_index, nodes.expand(2, -1)], dim=1)  # [2, 2E + N]
    return edge_index, edge_attr


def directed_weights(graph: Graph) -> Tensor | None:
    """[M] the weights of the edges that ``directed_edges`` lists, or None."""
    if graph.edge_weight is None or not graph.undirected:
        return graph.edge_weight
    return graph.edge_weight.repeat_interleave(2)


def with_self_loops(graph: Graph) -> Graph:
    """The same graph with exactly one edge from every node to itself, whatever self-loops it had.

    They are not stored: an undirected edge counts in both directions, which would double them.

    Raises:
        DataError: if the edges have features or weights, which a self-loop would lack.
    """
    if graph.edge_attr is not None or graph.edge_weight is not None:
        values = "features" if graph.edge_attr is not None else "weights"
        raise DataError(
            f"{graph.name}: its edges have {values}, and self-loops would have none; leave out data.self_loops"
        )
    kept = graph.edge_index[0] != graph.edge_index[1]
    # Without self-loops the edges stay where they are, which may be a file.
    edge_index = graph.edge_index if bool(kept.all()) else graph.edge_index[:, kept]
    return replace(graph, edge_index=edge_index, self_loops=True)


def validate(graph: Graph) -> None:
    """Check that the tensors of a graph belong together, once, before anything is computed from them.

    Raises:
        DataError: with every fault found and how often it occurs.
    """
    faults = [*_edge_faults(graph), *_node_faults(graph), *_label_faults(graph), *_split_faults(graph)]
    if faults:
        raise DataError(f"{graph.name}: {'; '.join(faults)}")


def _count(tensor: Tensor, fault: Callable[[Tensor], Tensor], dim: int = 0) -> int:
    """Number of entries with a fault, counted in slices along a dimension."""
    width = tensor.numel() // max(tensor.shape[dim], 1)
    slices: tuple[Tensor, ...] = torch.split(tensor, max(EDGE_CHUNK // max(width, 1), 1), dim)
    return sum([int(fault(part).sum()) for part in slices])


def _edge_faults(graph: Graph) -> Iterator[str]:
    edge_index, n = graph.edge_index, graph.num_nodes
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        yield f"edge_index must be [2, E], not {list(edge_index.shape)}"
        return
    if edge_index.dtype not in (torch.int32, torch.int64):
        yield f"edge_index must hold int32 or int64 node ids, not {edge_index.dtype}"
        return
    if negative := _count(edge_index, lambda ids: ids < 0, dim=1):
        yield f"edge_index holds {negative:,} negative node ids"
    if beyond := _count(edge_index, lambda ids: ids >= n, dim=1):
        yield f"edge_index holds {beyond:,} node ids above {n - 1:,}, the last of {n:,} nodes"
    if graph.edge_attr is not None:
        yield from _feature_faults("edge_attr", graph.edge_attr, "E, D", graph.num_edges, MAX_EDGE_FEATURES)
    weight = graph.edge_weight
    if weight is not None and (weight.shape != edge_index.shape[1:] or weight.dtype != torch.float32):
        expected = f"float32 [E] with E = {graph.num_edges:,}"
        yield f"edge_weight must be {expected}, not {weight.dtype} {list(weight.shape)}"
    elif weight is not None and (bad := _count(weight, lambda values: ~torch.isfinite(values))):
        yield f"edge_weight holds {bad:,} values that are NaN or infinite in float32"


def _feature_faults(name: str, features: Tensor, shape: str, num_rows: int, max_columns: int) -> Iterator[str]:
    if features.ndim != 2 or features.shape[0] != num_rows:
        yield f"{name} must be [{shape}] with {shape[0]} = {num_rows:,}, not {list(features.shape)}"
    elif features.dtype != torch.float32:
        yield f"{name} must be float32, not {features.dtype}"
    elif not features.shape[1]:
        yield f"{name} has no columns; leave it out"
    elif features.shape[1] > max_columns:
        yield f"{name} has {features.shape[1]:,} columns, more than {max_columns:,}"
    elif bad := _count(features, lambda values: ~torch.isfinite(values)):
        yield f"{name} holds {bad:,} values that are NaN or infinite in float32"


def _node_faults(graph: Graph) -> Iterator[str]:
    n = graph.num_nodes
    if n < 1:
        yield "the graph has no nodes"
    if graph.x is not None:
        yield from _feature_faults("x", graph.x, "N, F", n, MAX_WIDTH)
        if graph.x.ndim == 2 and graph.num_categories > graph.x.shape[1]:
            yield f"num_categories is {graph.num_categories}, but x has only {graph.x.shape[1]} columns"
    if graph.categories is not None:
        if graph.categories.shape != (n,) or graph.categories.dtype != torch.int64:
            found = f"{graph.categories.dtype} {list(graph.categories.shape)}"
            yield f"categories must be int64 [N] with N = {n:,}, not {found}"
        elif negative := int((graph.categories < 0).sum()):
            yield f"categories holds {negative:,} negative values"
        elif large := int((graph.categories >= MAX_WIDTH).sum()):
            yield f"categories holds {large:,} values above {MAX_WIDTH - 1:,}; number them from 0"


def _label_faults(graph: Graph) -> Iterator[str]:
    y, n = graph.y, graph.num_nodes
    if graph.task in ("multilabel", "regression"):
        if y.shape != (n, graph.num_tasks) or y.dtype != torch.float32:
            expected = f"float32 [N, T] = [{n:,}, {graph.num_tasks}]"
            yield f"y must be {expected} for a {graph.task} task, not {y.dtype} {list(y.shape)}"
        elif y.shape[1] > MAX_WIDTH:
            yield f"y has {y.shape[1]:,} columns, more than {MAX_WIDTH:,}"
        elif graph.task == "regression":
            if bad := int(torch.isinf(y).sum()):
                yield f"y holds {bad:,} numbers that are infinite in float32"
        elif bad := int(((y != 0) & (y != 1) & ~torch.isnan(y)).sum()):
            yield f"y holds {bad:,} labels other than 0, 1 and NaN (unlabeled)"
        return
    num_classes = 2 if graph.task == "binary" else graph.num_tasks
    if graph.task == "binary" and graph.num_tasks != 1:
        yield f"a binary task has 1 output per node, not {graph.num_tasks}"
    if y.shape != (n,) or y.dtype != torch.int64:
        yield f"y must be int64 [N] with N = {n:,} for a {graph.task} task, not {y.dtype} {list(y.shape)}"
    elif graph.task == "multiclass" and (large := int((y >= MAX_WIDTH).sum())):
        yield f"y holds {large:,} labels above {MAX_WIDTH - 1:,}; number the classes from 0"
    elif bad := int(((y < -1) | (y >= num_classes)).sum()):
        yield f"y holds {bad:,} labels outside 0 .. {num_classes - 1} and other than -1 (unlabeled)"


def _split_faults(graph: Graph) -> Iterator[str]:
    if not graph.splits:
        yield "the graph has no split into train, valid and test nodes"
    for i, split in enumerate(graph.splits):
        sets = {"train": split.train, "valid": split.valid, "test": split.test}
        usable = True
        for name, nodes in sets.items():
            if nodes.ndim != 1 or nodes.dtype != torch.int64:
                yield f"split {i}: {name} must be int64 [n], not {nodes.dtype} {list(nodes.shape)}"
            elif not len(nodes):
                yield f"split {i}: {name} has no nodes"
            elif bad := int(((nodes < 0) | (nodes >= graph.num_nodes)).sum()):
                yield f"split {i}: {name} holds {bad:,} node ids outside 0 .. {graph.num_nodes - 1:,}"
            elif repeated := len(nodes) - len(torch.unique(nodes)):
                yield f"split {i}: {name} repeats {repeated:,} nodes"
            else:
                if not _labeled(graph, nodes):
                    yield f"split {i}: none of the {len(nodes):,} {name} nodes has a label"
                continue
            usable = False
        if usable:
            for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
                if common := int(torch.isin(sets[one], sets[other]).sum()):
                    yield f"split {i}: {common:,} nodes are in both {one} and {other}"


def _labeled(graph: Graph, nodes: Tensor) -> bool:
    """Tell if any of the nodes has a label; a wrong y is reported elsewhere."""
    if len(graph.y) != graph.num_nodes:
        return True
    labels = graph.y[nodes]
    return bool((~torch.isnan(labels) if labels.is_floating_point() else labels >= 0).any())
