"""Node features that a data set lacks, built from what it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from zoo.data.graph import EDGE_CHUNK, Graph
from zoo.errors import DataError
from zoo.spec.shape import MAX_WIDTH, check_features

NUM_EIGENVECTORS = 32
ONE_HOT = "species_one_hot"
MAX_ONE_HOT_BYTES = 16 << 30


def node(graph: Graph) -> Tensor:
    """[N, F] the features that the data set has.

    Raises:
        DataError: if it has none.
    """
    if graph.x is None:
        others = ", ".join(name for name in FEATURES if name not in ("node", ONE_HOT))
        raise DataError(f"{graph.name}: the feature 'node' needs node features, the data set has none; use {others}")
    return graph.x


def edge_sum(graph: Graph) -> Tensor:
    """[N, D] sum of the features of the edges that leave a node, in both directions where the graph is undirected.

    Sums are accumulated in float64.

    Raises:
        DataError: if the edges have no features.

    Source: the ogbn-proteins protocol of arXiv 2106.07476.
    """
    if graph.edge_attr is None:
        raise DataError(f"{graph.name}: the feature 'edge_sum' needs edge features, the data set has none")
    total = torch.zeros(graph.num_nodes, graph.edge_attr.shape[1], dtype=torch.float64, device=graph.edge_index.device)
    for start in range(0, graph.num_edges, EDGE_CHUNK):
        values = graph.edge_attr[start : start + EDGE_CHUNK].double()
        source, target = graph.edge_index[:, start : start + EDGE_CHUNK].long()
        total.index_add_(0, source, values)
        if graph.undirected:
            total.index_add_(0, target, values)
    return total.float()


def species_one_hot(graph: Graph) -> Tensor:
    """[N, K] one-hot code of the category of each node.

    Raises:
        DataError: if the nodes have no categories, or so many that the code would not fit into memory.
    """
    if graph.categories is None:
        raise DataError(f"{graph.name}: the feature '{ONE_HOT}' needs categories of the nodes, the data set has none")
    n, k = graph.num_nodes, int(graph.categories.max()) + 1
    if 4 * n * k > MAX_ONE_HOT_BYTES:
        raise DataError(
            f"{graph.name}: '{ONE_HOT}' of {n:,} nodes in {k:,} categories would need {4 * n * k / 1e9:,.1f} GB, "
            f"more than {MAX_ONE_HOT_BYTES / 1e9:,.1f}; merge categories or leave it out"
        )
    # torch's one_hot would need three times the memory: it holds the code as int64 first.
    return torch.zeros(n, k, device=graph.categories.device).scatter_(1, graph.categories.unsqueeze(1), 1.0)


def degree(graph: Graph) -> Tensor:
    """[N, 1] log(1 + number of incoming edges)."""
    count = torch.zeros(graph.num_nodes, dtype=torch.int64, device=graph.edge_index.device)
    for start in range(0, graph.num_edges, EDGE_CHUNK):
        source, target = graph.edge_index[:, start : start + EDGE_CHUNK].long()
        count += torch.bincount(target, minlength=graph.num_nodes)
        if graph.undirected:
            count += torch.bincount(source, minlength=graph.num_nodes)
    return count.float().log1p().unsqueeze(1)


def laplacian(graph: Graph) -> Tensor:
    """[N, 32] eigenvectors of the symmetric normalized Laplacian with the smallest eigenvalues, of mean square 1.

    The largest entry of each is made positive. Directions and edge features are ignored. A graph with fewer than 33
    nodes gives N - 1 columns.

    Raises:
        DataError: if the solver does not converge or the graph has fewer than 2 nodes.
    """
    import scipy.sparse
    import scipy.sparse.linalg

    n = graph.num_nodes
    k = min(NUM_EIGENVECTORS, n - 1)
    if k < 1:
        raise DataError(f"{graph.name}: the feature 'laplacian' needs at least 2 nodes, not {n}")
    source, target = graph.edge_index.cpu().numpy()
    ones = np.ones(len(source), dtype=np.float64)
    adjacency = scipy.sparse.coo_array((ones, (source, target)), shape=(n, n)).tocsr()
    adjacency = adjacency + adjacency.T
    degrees = np.asarray(adjacency.sum(axis=1)).ravel()
    scale = scipy.sparse.diags_array(1 / np.sqrt(np.maximum(degrees, 1)))
    normalized = (scale @ adjacency @ scale).tocsr()
    # The largest eigenvalues of the normalized adjacency are the smallest of the Laplacian, and faster to compute.
    if n <= 4 * NUM_EIGENVECTORS:
        vectors = np.linalg.eigh(normalized.toarray())[1][:, -k:]
    else:
        start = np.random.RandomState(0).uniform(-1, 1, n)
        try:
            values, vectors = scipy.sparse.linalg.eigsh(normalized, k=k, which="LA", v0=start)
        except scipy.sparse.linalg.ArpackError as error:
            raise DataError(f"{graph.name}: the eigenvectors for 'laplacian' were not found ({error})") from error
        vectors = vectors[:, np.argsort(values)]
    vectors = vectors[:, ::-1] * np.sqrt(n)
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(k)])
    return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)).to(graph.edge_index.device)


def constant(graph: Graph) -> Tensor:
    """[N, 1] ones."""
    return torch.ones(graph.num_nodes, 1, device=graph.edge_index.device)


FEATURES: Mapping[str, Callable[[Graph], Tensor]] = MappingProxyType(
    {feature.__name__: feature for feature in (node, edge_sum, species_one_hot, degree, laplacian, constant)}
)


def build_features(graph: Graph, names: Sequence[str]) -> Graph:
    """Put the named features side by side, a one-hot code always last; no names keep the features of the data set.

    Returns:
        The graph with ``x`` [N, F] and the number of one-hot columns in ``num_categories``.

    Raises:
        DataError: if a name is unknown or repeated, the graph lacks what a feature is built from, or the columns
            are too many.
    """
    if unknown := [name for name in names if name not in FEATURES]:
        raise DataError(f"{graph.name}: unknown node feature {unknown[0]!r}; there are {', '.join(FEATURES)}")
    if not names:
        node(graph)
        return graph
    try:
        check_features("file", names)
    except ValueError as error:
        raise DataError(f"{graph.name}: {error}") from error
    ordered = sorted(names, key=lambda name: name == ONE_HOT)
    columns = [FEATURES[name](graph) for name in ordered]
    if (width := sum(part.shape[1] for part in columns)) > MAX_WIDTH:
        raise DataError(
            f"{graph.name}: the node features {', '.join(names)} have {width:,} columns, over {MAX_WIDTH:,}"
        )
    num_categories = columns[-1].shape[1] if ordered[-1] == ONE_HOT else 0
    # A single column stays where it is, which may be a file.
    x = columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
    return replace(graph, x=x, num_categories=num_categories)
