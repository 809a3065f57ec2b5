"""Random partitions of a graph and the subgraphs that they induce.

Sources: the training protocol of RevGNN on ogbn-proteins, arXiv 2106.07476: every node falls into a part by chance, and
an edge counts while both its ends are in the same part. Cluster-GCN, arXiv 1905.07953: whole clusters fall into a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from zoo.data.arrays import undirected_edges
from zoo.data.graph import EDGE_CHUNK, Graph, Part
from zoo.errors import DataError
from zoo.ops.csr import CSR, csr_from_edge_index


class RandomParts:
    """A random partition, each of whose parts is built when it is asked for.

    The partition is sampled at once; the edges of own parts are sorted when the first of them is built. All tensors are
    on the device of the graph. The incoming edges of a node are in the order of ``graph.edge_index``, its self-loop,
    where the graph has them, comes last. Parts that got no node are left out.

    Args:
        graph: with node features.
        num_parts: P; 1 is the whole graph.
        generator: decides alone; it may live on another device than the graph.
        is_own: tells of the number of a part if it can be built; None: all can. Of others only the nodes are known.
        clusters: [N] the cluster of each node, if these are shared out, as many to each part; None: single nodes are.

    Raises:
        DataError: if the number of parts does not fit, or the graph has no node features.
    """

    def __init__(
        self,
        graph: Graph,
        num_parts: int,
        generator: torch.Generator,
        is_own: Callable[[int], bool] | None = None,
        clusters: Tensor | None = None,
    ) -> None:
        if num_parts < 1 or num_parts > graph.num_nodes:
            raise DataError(
                f"{graph.name}: num_parts must lie in 1 .. {graph.num_nodes:,} (the nodes), not {num_parts}"
            )
        if graph.x is None:
            raise DataError(f"{graph.name}: the graph has no node features; build some first, e.g. 'degree'")
        device = graph.edge_index.device
        if clusters is None:
            part_of = torch.randint(num_parts, (graph.num_nodes,), generator=generator, device=generator.device)
        else:
            order = torch.randperm(int(clusters.max()) + 1, generator=generator, device=generator.device)
            part_of = order.remainder_(num_parts)[clusters.to(generator.device)]
        part_of = part_of.to(device)
        nodes = torch.argsort(part_of, stable=True)  # [N] all nodes, part by part, ascending within each
        sizes = torch.bincount(part_of, minlength=num_parts)
        ends = sizes[sizes > 0].cumsum(0).tolist()
        # First and last node of each part, as places in the sorted nodes.
        self._ranges = list(zip([0, *ends[:-1]], ends, strict=True))
        self._graph, self._x, self._nodes = graph, graph.x, nodes
        self._part_of = part_of.to(torch.int16) if num_parts <= 2**15 else part_of
        # The first row of each own part among the rows that are kept.
        self._first_rows: dict[int, int] = {}
        num_rows = 0
        for index, (first, end) in enumerate(self._ranges):
            if is_own is None or is_own(index):
                self._first_rows[index] = num_rows
                num_rows += end - first
        self._rows: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[Part]:
        return (self.build(index) for index in self._first_rows)

    def nodes(self, index: int) -> Tensor:
        """The nodes of a part, ascending."""
        first, end = self._ranges[index]
        return self._nodes[first:end]

    def build(self, index: int) -> Part:
        """The subgraph that an own part induces."""
        first_row, ids = self._first_rows[index], self.nodes(index)
        if self._rows is None:
            is_whole = len(self._first_rows) == len(self)
            nodes = self._nodes if is_whole else torch.cat([self.nodes(own) for own in self._first_rows])
            self._rows = _sorted_edges(self._graph, self._part_of, nodes)
        rowptr, col, edges = self._rows
        rows = rowptr[first_row : first_row + len(ids) + 1]
        start, stop = int(rows[0]), int(rows[-1])
        edge_attr, edge_weight = (
            None if values is None or edges is None else values.index_select(0, edges[start:stop])
            for values in (self._graph.edge_attr, self._graph.edge_weight)
        )
        if len(self) == 1:
            # The only part takes all there is, and nothing is kept for others.
            self._rows = None
            return Part(ids, self._x.index_select(0, ids), CSR(rowptr, col), edge_attr, edge_weight)
        # Copies, so that a part kept for long does not keep the edges of all others alive.
        csr = CSR(rows - start, col[start:stop] - first_row)
        return Part(ids.clone(), self._x.index_select(0, ids), csr, edge_attr, edge_weight)


def metis_clusters(graph: Graph, num_clusters: int) -> Tensor:
    """Clusters of about equal size with few edges between them, found by METIS; one build of it always finds the same.

    Args:
        graph: its edges join two nodes whatever their direction, and all count alike. They are sorted in memory.
        num_clusters: K.

    Returns:
        [N] int64 in 0 .. K - 1, on the CPU.

    Raises:
        DataError: if METIS is not installed.
    """
    try:
        import pymetis
    except ImportError as error:
        raise DataError("partition 'metis' needs another package; try: pip install 'revgnn-zoo[metis]'") from error
    edges = undirected_edges(graph.edge_index.cpu(), graph.num_nodes)
    edges = edges[:, edges[0] != edges[1]]
    csr, _ = csr_from_edge_index(torch.cat([edges, edges.flip(0)], 1), graph.num_nodes)
    adjacency = pymetis.CSRAdjacency(*(tensor.numpy().astype(pymetis.zero_copy_dtype(), copy=False) for tensor in csr))
    return torch.tensor(pymetis.part_graph(min(num_clusters, graph.num_nodes), adjacency).vertex_part)


def _sorted_edges(graph: Graph, part_of: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keep the edges inside some parts and group them by target, in the order of the graph.

    Edges are looked at twice, a slice at a time: how many belong to each node, then where each of them goes. Besides
    the result nothing of the size of the edge list is made.

    Args:
        graph: the whole graph.
        part_of: [N] the part of each node.
        nodes: [R] the nodes of these parts, part by part; a node's place in it is its new number.

    Returns:
        [R + 1] int64 row starts, [M] int32 new number of each source, and [M] the stored edge each comes from (None if
        edges have neither features nor weights).
    """
    num_rows, device = len(nodes), graph.edge_index.device
    number = part_of.new_empty(graph.num_nodes, dtype=torch.int32 if graph.num_nodes < 2**31 else torch.int64)
    number[nodes] = torch.arange(num_rows, dtype=number.dtype, device=device)
    target_part = part_of
    if num_rows < graph.num_nodes:
        # No node is in part -1, so no edge seems to lie inside one of the other parts.
        target_part = torch.full_like(part_of, -1)
        target_part[nodes] = part_of[nodes]
    rowptr = torch.zeros(num_rows + 1, dtype=torch.int64, device=device)
    degree = rowptr[1:]
    for _, target, _ in _kept_edges(graph, part_of, target_part, number, num_rows):
        degree += torch.bincount(target, minlength=num_rows)
    torch.cumsum(degree, 0, out=degree)
    num_kept = int(rowptr[-1])
    col = torch.empty(num_kept, dtype=number.dtype, device=device)
    edge_dtype = torch.int32 if graph.num_edges < 2**31 else torch.int64
    is_plain = graph.edge_attr is None and graph.edge_weight is None
    edges = torch.empty(0 if is_plain else num_kept, dtype=edge_dtype, device=device)
    free = rowptr[:-1].clone()  # [R] the first place of each row that no edge has taken yet
    for source, target, edge in _kept_edges(graph, part_of, target_part, number, num_rows):
        target, order = torch.sort(target, stable=True)
        count = torch.bincount(target, minlength=num_rows)
        # The k-th of the sorted edges is behind as many of its row as it stands after the first of them.
        place = (free - count.cumsum(0).sub_(count)).index_select(0, target)
        place += torch.arange(len(place), device=device)
        free += count
        col[place] = source.index_select(0, order)
        if not is_plain:
            edges[place] = edge.index_select(0, order).to(edge_dtype)
    return rowptr, col, None if is_plain else edges


def _kept_edges(
    graph: Graph, part_of: Tensor, target_part: Tensor, number: Tensor, num_rows: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The edges inside parts, some at a time: new numbers of sources and targets, and the stored edges.

    Each undirected edge is followed by its inverse; self-loops that the graph is given come last.
    """
    # Sorting takes many times the memory of what is sorted.
    size = max(EDGE_CHUNK // 4, 1)
    # The caller passes over all rows each time. Of many parts, few edges of a slice are kept, so several slices wait.
    num_wanted = max(size, num_rows // 4)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, graph.num_edges, size):
        source, target = graph.edge_index[:, start : start + size]
        inside = (part_of.index_select(0, source) == target_part.index_select(0, target)).nonzero().squeeze(1)
        source = number.index_select(0, source.index_select(0, inside))
        target = number.index_select(0, target.index_select(0, inside))
        edge = inside + start
        if graph.undirected:
            source, target = torch.stack([source, target], 1).view(-1), torch.stack([target, source], 1).view(-1)
            edge = edge.repeat_interleave(2)
        kept.append((source, target, edge))
        if sum(len(edges) for _, _, edges in kept) >= num_wanted or start + size >= graph.num_edges:
            source, target, edge = kept[0] if len(kept) == 1 else map(torch.cat, zip(*kept, strict=True))
            kept.clear()
            yield source, target, edge
    if graph.self_loops:
        loops = torch.arange(num_rows, dtype=number.dtype, device=number.device)
        yield loops, loops, loops
