"""Generated graphs whose labels lie a known number of hops away, so that a model needs as many layers to tell them.

Sources: graph transfer of Di Giovanni et al., On over-squashing in message passing neural networks, arXiv 2302.02941;
shortest paths, eccentricities and diameters in the manner of ECHO (ICLR 2026), on graphs of our own; the labels of
City-Networks, arXiv 2503.09008, on a road-like graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from zoo.data.graph import Array, Graph, Split
from zoo.spec.shape import GeneratedName, GeneratedSpec

NUM_CLASSES = 5
NUM_ROAD_CLASSES = 10
_MIN_GRAPHS = 3 * NUM_CLASSES
# Roads per junction, and how much longer than the straight line a road may be.
_ROADS_PER_NODE, _MAX_DETOUR = 1.25, 1.4


class _Piece(NamedTuple):
    """One of the graphs that together are the data set: [2, E] edges, [n, F] features or None, [n, ...] labels."""

    edges: Array
    x: Array | None
    y: Array


def generated_graph(name: GeneratedName, spec: GeneratedSpec | None = None) -> Graph:
    """Sample the data set of a name, of the range, size and seed of ``spec``; the same arguments give the same graph.

    Many small graphs are one graph here, whose parts are not linked. All nodes of a small graph are in the same set: of
    every five graphs, three are to learn from, one is to choose by and one to report on. The graph is undirected. Each
    edge of "road" has its length as a feature; the others have none.
    """
    spec = GeneratedSpec() if spec is None else spec
    return GENERATED[name](name, spec, np.random.default_rng(spec.seed))


def _joined(
    name: str, spec: GeneratedSpec, rng: np.random.Generator, sample: Callable[..., _Piece], task: Any, num_tasks: int
) -> Graph:
    pieces, starts = list[_Piece](), [0]
    while starts[-1] < spec.num_nodes or len(pieces) < _MIN_GRAPHS or len(pieces) % NUM_CLASSES:
        pieces.append(sample(rng, spec.range, len(pieces)))
        starts.append(starts[-1] + len(pieces[-1].y))
    edges = np.concatenate([piece.edges + start for piece, start in zip(pieces, starts, strict=False)], axis=1)
    # Blocks of five graphs, so that each set has all classes of graph transfer.
    blocks = len(pieces) // NUM_CLASSES
    num_train = 3 * blocks // 5
    num_valid = (blocks - num_train) // 2
    first, second = (starts[NUM_CLASSES * count] for count in (num_train, num_train + num_valid))
    y = torch.from_numpy(np.concatenate([piece.y for piece in pieces]))
    # Where a graph has one label, as in graph transfer, its other nodes are in no set.
    nodes = torch.arange(starts[-1]) if task == "regression" else (y >= 0).nonzero().squeeze(1)
    sets = (nodes[nodes < first], nodes[(nodes >= first) & (nodes < second)], nodes[nodes >= second])
    features = [piece.x for piece in pieces if piece.x is not None]
    return Graph(
        name=name,
        edge_index=torch.from_numpy(edges.astype(np.int32)),
        undirected=True,
        num_nodes=starts[-1],
        x=torch.from_numpy(np.concatenate(features)) if features else None,
        y=y,
        splits=(Split(*sets),),
        task=task,
        num_tasks=num_tasks,
    )


def _transfer(name: str, spec: GeneratedSpec, rng: np.random.Generator) -> Graph:
    """A node carries a class, another one ``range`` hops away must tell it.

    Features are a one-hot code of the class, 1 at the source and 1 at the target; graphs of one class are alike.
    """

    def sample(rng: np.random.Generator, distance: int, index: int) -> _Piece:
        n = distance + 1 if name.endswith("-line") else 2 * distance
        node, depth = np.arange(n), np.arange(1, distance - 1)
        edges = [np.stack([node, (node + 1) % n])[:, : n - name.endswith("-line")]]
        if name.endswith("crossed-ring"):
            # From one side to the other, a hop ahead: no way becomes shorter.
            edges += [np.stack([depth, n - depth - 1]), np.stack([n - depth, depth + 1])]
        x, y = np.zeros((n, NUM_CLASSES + 2), np.float32), np.full(n, -1)
        label = index % NUM_CLASSES
        x[0, [label, NUM_CLASSES]], x[distance, NUM_CLASSES + 1], y[distance] = 1, 1, label
        return _Piece(np.concatenate(edges, axis=1), x, y)

    return _joined(name, spec, rng, sample, "multiclass", NUM_CLASSES)


def _hops(name: str, spec: GeneratedSpec, rng: np.random.Generator) -> Graph:
    """Lines, ladders, grids, caterpillars, lobsters and trees of at most ``range`` hops; every node counts hops.

    The number is the distance to the source, which alone has the feature 1; to the farthest node; or the largest such.
    """

    def sample(rng: np.random.Generator, most: int, index: int) -> _Piece:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import shortest_path

        edges = _wiring(rng, int(rng.integers((most + 1) // 2, most + 1)))
        n = int(edges.max()) + 1
        links = coo_array((np.ones(edges.shape[1]), tuple(edges)), (n, n)).tocsr()
        hops = shortest_path(links, directed=False, unweighted=True)
        x, source = None, rng.integers(n)
        if name == "shortest-path":
            x, y = np.zeros((n, 1), np.float32), hops[source]
            x[source] = 1
        else:
            y = hops.max(0) if name == "eccentricity" else np.full(n, hops.max())
        return _Piece(edges, x, y.astype(np.float32)[:, None])

    return _joined(name, spec, rng, sample, "regression", 1)


def _wiring(rng: np.random.Generator, length: int) -> Array:
    """Sample [2, E] edges of a graph of one of six kinds; no two of its nodes are more than ``length`` hops apart."""
    rows = min([1, 2, int(rng.integers(3, 6)), 0, 0, 0][kind := int(rng.integers(6))], length)
    if rows:
        node = np.arange(rows * (length + 2 - rows)).reshape(rows, -1)
        right, down = (node[:, :-1], node[:, 1:]), (node[:-1], node[1:])
        return np.concatenate([np.stack([a.ravel(), b.ravel()]) for a, b in (right, down)], axis=1)
    # A path with branches of up to 1, 2 or more hops.
    limit = min({3: 1, 4: 2, 5: max(length // 4, 1)}[kind], (length - 1) // 2)
    num_path = length + 1 - 2 * limit
    parent, height = list(range(-1, num_path - 1)), [0] * num_path
    while limit and len(parent) < 2 * num_path:
        chosen = int(rng.integers(len(parent)))
        if height[chosen] < limit:
            parent.append(chosen)
            height.append(height[chosen] + 1)
    return np.stack([np.array(parent[1:]), np.arange(1, len(parent))])


def _road(name: str, spec: GeneratedSpec, rng: np.random.Generator) -> Graph:
    """Junctions and roads between near ones; the label is a tenth of the junctions by how far ``range`` hops reach.

    The junctions are sorted by the length of the way to the farthest one among those at most ``range`` hops away, on
    roads between these.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
    from scipy.spatial import Delaunay

    n = spec.num_nodes
    points = rng.random((n, 2)) * np.sqrt(n)
    corners = Delaunay(points).simplices
    pairs = np.unique(np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]])), axis=0)
    # A random tree holds the network together; other roads are added at random, short ones first.
    weight = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1) * rng.uniform(0.5, 1.5, len(pairs))
    tree = minimum_spanning_tree(coo_array((weight, tuple(pairs.T)), (n, n))).tocoo()
    in_tree = np.isin(pairs @ [n, 1], np.minimum(tree.row, tree.col) * n + np.maximum(tree.row, tree.col))
    kept = np.sort(np.argsort(np.where(in_tree, 0, weight), kind="stable")[: int(_ROADS_PER_NODE * n)])
    source, target = edges = pairs[kept].T
    length = np.linalg.norm(points[source] - points[target], axis=1) * rng.uniform(1, _MAX_DETOUR, len(kept))
    roads = coo_array((length, tuple(edges)), (n, n)).tocsr()
    roads = roads + roads.T
    reach = np.empty(n)
    for node in range(n):
        near = np.flatnonzero(np.isfinite(dijkstra(roads, indices=node, unweighted=True, limit=spec.range)))
        reach[node] = dijkstra(roads[near][:, near], indices=int(np.searchsorted(near, node))).max()
    y = np.empty(n, np.int64)
    y[np.argsort(reach, kind="stable")] = np.arange(n) * NUM_ROAD_CLASSES // n
    order = rng.permutation(n)
    return Graph(
        name=name,
        edge_index=torch.from_numpy(edges.astype(np.int32)),
        undirected=True,
        num_nodes=n,
        edge_attr=torch.from_numpy(length.astype(np.float32)[:, None]),
        y=torch.from_numpy(y),
        splits=(Split(*(torch.from_numpy(np.sort(part)) for part in np.split(order, [3 * n // 5, 4 * n // 5]))),),
        task="multiclass",
        num_tasks=NUM_ROAD_CLASSES,
    )


GENERATED: Mapping[str, Callable[[str, GeneratedSpec, np.random.Generator], Graph]] = {
    "graph-transfer-line": _transfer,
    "graph-transfer-ring": _transfer,
    "graph-transfer-crossed-ring": _transfer,
    "shortest-path": _hops,
    "eccentricity": _hops,
    "diameter": _hops,
    "road": _road,
}
