"""Graphs of PyTorch Geometric: a ``Data`` object becomes a ``Graph``, and back.

PyTorch Geometric itself is imported only to make a ``Data`` object.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.data.arrays import ALIASES, KNOWN, edges_in_both_directions, graph_from_arrays
from zoo.data.graph import Graph, Task, directed_edges, directed_weights
from zoo.errors import DataError, ZooWarning
from zoo.ops.csr import edge_index_of
from zoo.ops.dispatch import plain
from zoo.ops.edges import is_sparse, sparse_edges

_SPLIT_HINT = "bool [N] or [N, num_splits]; torch_geometric.transforms.RandomNodeSplit() makes a random split"


def graph_from_pyg(data: Any, *, name: str = "data", task: Task | None = None, undirected: bool | None = None) -> Graph:
    """Read a PyG ``Data`` object as a graph with a task on its nodes.

    Read are ``x`` [N, F] (may be missing), ``edge_index`` or ``adj_t``, ``edge_attr`` [E, D] or [E], ``edge_weight``
    [E], ``y`` and the masks ``train_mask``, ``val_mask`` or ``valid_mask``, ``test_mask``. Whole numbers in ``y`` are
    classes, zeros and ones [N, T] labels, other numbers those of a regression; -1 and NaN are unlabeled.

    >>> import torch
    >>> from torch_geometric.data import Data
    >>> train, val, test = torch.eye(3, dtype=torch.bool)
    >>> data = Data(
    ...     x=torch.eye(3), edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), y=torch.tensor([0, 1, 2]),
    ...     train_mask=train, val_mask=val, test_mask=test,
    ... )
    >>> graph_from_pyg(data)
    Graph(data: 3 nodes, 2 undirected edges, x=[3, 3], task=multiclass, num_tasks=3, num_splits=1)

    Args:
        data: a ``torch_geometric.data.Data``, or any object with such attributes.
        name: of the graph, for messages and reports.
        task: what the labels mean; None: what follows from their numbers.
        undirected: True: every edge counts in both directions, though it may be listed in one. False: as listed. None:
            undirected if every edge is listed in both directions with the same features, else as listed.

    Raises:
        DataError: naming the attribute that is missing or does not fit, and what would be right.
    """
    if hasattr(data, "edge_types"):
        raise DataError(f"{name} has several kinds of nodes or edges; expected one kind, see data.to_homogeneous()")
    arrays = {key: _array(value) for key in (*KNOWN, *ALIASES) if (value := getattr(data, key, None)) is not None}
    if "edge_index" not in arrays and (adj_t := getattr(data, "adj_t", None)) is not None:
        csr, value = sparse_edges(adj_t)
        arrays["edge_index"] = _array(edge_index_of(csr))
        if value is not None:
            arrays.setdefault("edge_weight" if value.dim() == 1 else "edge_attr", _array(value))
    _check(arrays, name)
    for key in ("x", "edge_attr"):
        if key in arrays and arrays[key].ndim == 1:
            arrays[key] = arrays[key][:, None]
    if "edge_weight" in arrays and arrays["edge_weight"].shape[1:] == (1,):
        arrays["edge_weight"] = arrays["edge_weight"][:, 0]
    if task is not None:
        arrays["task"] = np.array(task)
    if undirected is False:
        arrays["undirected"] = np.array(False)
    graph = graph_from_arrays(name, arrays, name, undirected=False)
    if not graph.undirected and undirected:
        if twice := edges_in_both_directions(graph.edge_index, graph.num_nodes):
            raise DataError(
                f"{name}.edge_index lists {twice:,} edges in both directions and others in one; "
                "torch_geometric.transforms.ToUndirected() lists all in both"
            )
        return replace(graph, undirected=True)
    if undirected is None and not graph.undirected and not edges_in_both_directions(graph.edge_index, graph.num_nodes):
        warnings.warn(
            f"{name}: no edge is listed in both directions, so messages go from source to target alone; "
            "undirected=True lets every edge count in both",
            ZooWarning,
            stacklevel=2,
        )
    return graph


def graph_to_pyg(graph: Graph) -> Any:
    """The graph as a PyG ``Data`` object.

    Undirected edges are listed in both directions, self-loops too; masks are [N], or [N, num_splits]. ``y`` holds -1
    or NaN for unlabeled nodes, as in ``Graph``; ``task`` says what it means. :func:`graph_from_pyg` makes the same
    graph of it again, or one of the same directed edges where undirected ones repeat or are self-loops.

    Raises:
        DataError: if PyTorch Geometric is not installed.
    """
    try:
        from torch_geometric.data import Data
    except ImportError as error:
        raise DataError("torch_geometric is not installed; pip install torch-geometric") from error
    edge_index, edge_attr = directed_edges(graph)
    sets = {"train_mask": "train", "val_mask": "valid", "test_mask": "test"}
    masks = {key: graph.masks(name).T.contiguous() for key, name in sets.items()}
    masks = {key: mask.squeeze(1) if len(graph.splits) == 1 else mask for key, mask in masks.items()}
    data = Data(x=graph.x, edge_index=edge_index.long(), edge_attr=edge_attr, y=graph.y, task=graph.task, **masks)
    data.num_nodes = graph.num_nodes
    if (edge_weight := directed_weights(graph)) is not None:
        data.edge_weight = edge_weight
    if graph.categories is not None:
        data.categories = graph.categories
    return data


def _array(value: Any) -> Any:
    """A tensor as a NumPy array that shares its memory where it can, a sparse matrix as its edges [2, E]."""
    if is_sparse(value):
        value = edge_index_of(sparse_edges(value)[0])
    if isinstance(value, Tensor):
        value = plain(value).detach().cpu()
        value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    return np.asarray(value)


def _check(arrays: dict[str, Any], name: str) -> None:
    """Refuse what is missing, in the words of PyG."""
    if "edge_index" not in arrays:
        raise DataError(f"{name}.edge_index is missing; expected [2, E] sources and targets, or adj_t")
    if "y" not in arrays:
        raise DataError(f"{name}.y is missing; expected a label for each node, -1 or NaN where it is not known")
    shape, num_nodes = list(arrays["y"].shape), arrays["x" if "x" in arrays else "y"].shape[:1]
    if not shape or arrays["y"].shape[:1] != num_nodes:
        raise DataError(f"{name}.y has shape {shape}; expected a row for each node, as x has: {list(num_nodes)}")
    for key in ("train_mask", "val_mask", "test_mask"):
        if key not in arrays and ALIASES.get(key) not in arrays:
            raise DataError(f"{name}.{key} is missing; expected {_SPLIT_HINT}")
