import sys

import pytest
import torch

from tests.data.conftest import small_graph
from tests.stubs import pymetis as stub
from zoo.data import partition
from zoo.data.graph import Graph, directed_edges, with_self_loops
from zoo.data.partition import RandomParts, metis_clusters
from zoo.errors import DataError
from zoo.ops.csr import csr_from_edge_index


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_graph(num_nodes: int = 60, num_edges: int = 500, **changes: object) -> Graph:
    """With self-loops and repeated edges."""
    generator = seeded(7)
    fields: dict[str, object] = {
        "edge_index": torch.randint(num_nodes, (2, num_edges), generator=generator, dtype=torch.int32),
        "edge_attr": torch.rand(num_edges, 3, generator=generator),
        "num_nodes": num_nodes,
        "x": torch.rand(num_nodes, 4, generator=generator),
        "y": torch.zeros(num_nodes, dtype=torch.int64),
        "categories": None,
    }
    return small_graph(**{**fields, **changes})


@pytest.mark.parametrize("undirected", [True, False])
@pytest.mark.parametrize("num_parts", [1, 2, 5, 60])
def test_parts_are_the_induced_subgraphs(undirected: bool, num_parts: int) -> None:
    graph = random_graph(undirected=undirected)
    edge_index, edge_attr = directed_edges(graph)
    assert edge_attr is not None
    parts = list(RandomParts(graph, num_parts, seeded()))
    assert torch.equal(torch.cat([part.nodes for part in parts]).sort().values, torch.arange(60))
    for part in parts:
        assert graph.x is not None
        assert torch.equal(part.x, graph.x[part.nodes])
        assert torch.equal(part.nodes, part.nodes.sort().values)
        # Built the slow way: keep the edges with both ends inside, renumber, group by target.
        inside = torch.isin(edge_index, part.nodes).all(0)
        local = torch.searchsorted(part.nodes, edge_index[:, inside].long())
        csr, perm = csr_from_edge_index(local, len(part.nodes))
        assert torch.equal(part.csr.rowptr, csr.rowptr)
        assert torch.equal(part.csr.col.long(), csr.col)
        assert part.edge_attr is not None
        assert torch.equal(part.edge_attr, edge_attr[inside][perm])


@pytest.mark.parametrize("undirected", [True, False])
@pytest.mark.parametrize("num_parts", [1, 4])
def test_every_node_of_every_part_has_one_self_loop_if_the_graph_has_them(undirected: bool, num_parts: int) -> None:
    graph = random_graph(undirected=undirected, edge_attr=None)
    loops = graph.edge_index[0] == graph.edge_index[1]
    assert loops.any()
    looped = with_self_loops(graph)
    assert looped.num_edges == graph.num_edges - int(loops.sum())
    edge_index, _ = directed_edges(looped)
    assert edge_index.shape[1] == looped.num_edges * (2 if undirected else 1) + 60
    for part in RandomParts(looped, num_parts, seeded()):
        inside = torch.isin(edge_index, part.nodes).all(0)
        local = torch.searchsorted(part.nodes, edge_index[:, inside].long())
        csr, _ = csr_from_edge_index(local, len(part.nodes))
        assert torch.equal(part.csr.rowptr, csr.rowptr)
        assert torch.equal(part.csr.col.long(), csr.col)
        target = torch.repeat_interleave(torch.arange(len(part.nodes)), part.csr.rowptr.diff())
        assert torch.equal(target[part.csr.col == target], torch.arange(len(part.nodes)))


def test_self_loops_leave_other_edges_where_they_are_and_want_no_edge_features() -> None:
    graph = small_graph(edge_attr=None)
    looped = with_self_loops(graph)
    assert looped.edge_index is graph.edge_index
    assert with_self_loops(looped).self_loops
    assert torch.equal(directed_edges(with_self_loops(looped))[0], directed_edges(looped)[0])
    with pytest.raises(DataError, match="small: its edges have features, and self-loops would have none"):
        with_self_loops(small_graph())


def test_slices_of_edges_do_not_change_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph()
    whole = list(RandomParts(graph, 3, seeded()))
    monkeypatch.setattr(partition, "EDGE_CHUNK", 7)
    for one, other in zip(whole, RandomParts(graph, 3, seeded()), strict=True):
        assert torch.equal(one.csr.rowptr, other.csr.rowptr)
        assert torch.equal(one.csr.col, other.csr.col)
        assert one.edge_attr is not None
        assert other.edge_attr is not None
        assert torch.equal(one.edge_attr, other.edge_attr)


def test_one_part_is_the_whole_graph() -> None:
    graph = random_graph()
    (part,) = RandomParts(graph, 1, seeded())
    assert torch.equal(part.nodes, torch.arange(60))
    assert part.csr.num_edges == 2 * graph.num_edges


def test_a_seed_gives_one_partition_and_a_generator_gives_fresh_ones() -> None:
    graph, generator = random_graph(), seeded(3)
    first, second = (
        [part.nodes.tolist() for part in RandomParts(graph, 4, generator)],
        [part.nodes.tolist() for part in RandomParts(graph, 4, generator)],
    )
    assert first == [part.nodes.tolist() for part in RandomParts(graph, 4, seeded(3))]
    assert first != second


def test_every_part_is_equally_likely() -> None:
    graph = random_graph(num_nodes=20_000, num_edges=10, edge_attr=None)
    sizes = [len(part.nodes) for part in RandomParts(graph, 10, seeded())]
    # 2,000 expected, standard deviation 42.
    assert len(sizes) == 10
    assert all(abs(size - 2_000) < 5 * 43 for size in sizes)


def test_empty_parts_are_left_out() -> None:
    graph = random_graph(num_nodes=8, num_edges=10)
    parts = list(RandomParts(graph, 8, seeded()))
    assert len(parts) < 8
    assert sum(len(part.nodes) for part in parts) == 8
    assert all(len(part.nodes) for part in parts)


@pytest.mark.parametrize("num_edges", [0, 1])
def test_parts_without_edges_have_empty_rows(num_edges: int) -> None:
    graph = random_graph(num_edges=num_edges)
    parts = list(RandomParts(graph, 10, seeded()))
    for part in parts:
        assert part.csr.num_nodes == len(part.nodes)
        assert part.edge_attr is not None
        assert part.edge_attr.shape == (part.csr.num_edges, 3)


def test_a_graph_without_edge_features_gives_parts_without() -> None:
    assert all(part.edge_attr is None for part in RandomParts(random_graph(edge_attr=None), 3, seeded()))


def test_a_kept_part_does_not_hold_the_edges_of_the_others() -> None:
    kept = next(iter(RandomParts(random_graph(), 4, seeded())))
    assert kept.csr.col.untyped_storage().nbytes() == kept.csr.num_edges * kept.csr.col.element_size()


@pytest.mark.parametrize("num_parts", [0, -1, 61])
def test_a_number_of_parts_that_does_not_fit_is_an_error(num_parts: int) -> None:
    with pytest.raises(DataError, match=r"num_parts must lie in 1 \.\. 60"):
        RandomParts(random_graph(), num_parts, seeded())


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("undirected", [True, False])
def test_own_parts_are_the_same_without_rows_of_others(undirected: bool, self_loops: bool) -> None:
    graph = random_graph(undirected=undirected, **({"edge_attr": None} if self_loops else {}))
    graph = with_self_loops(graph) if self_loops else graph
    whole, own = RandomParts(graph, 5, seeded()), RandomParts(graph, 5, seeded(), lambda index: index % 2 == 1)
    for index in (1, 3):
        one, other = whole.build(index), own.build(index)
        assert torch.equal(other.nodes, one.nodes)
        assert torch.equal(other.x, one.x)
        if one.edge_attr is not None:
            assert torch.equal(other.edge_attr, one.edge_attr)
        assert torch.equal(other.csr.rowptr, one.csr.rowptr)
        assert torch.equal(other.csr.col, one.csr.col)
    assert own._rows is not None
    rowptr, col, _ = own._rows
    assert len(rowptr) - 1 == len(own.nodes(1)) + len(own.nodes(3))
    assert len(col) == sum(whole.build(index).csr.num_edges for index in (1, 3))
    assert [own.nodes(index).tolist() for index in range(5)] == [whole.nodes(index).tolist() for index in range(5)]
    with pytest.raises(KeyError):
        own.build(0)


def test_node_features_are_needed() -> None:
    with pytest.raises(DataError, match="no node features"):
        RandomParts(random_graph(x=None), 2, seeded())


@pytest.mark.parametrize("num_parts", [1, 3, 10])
def test_parts_are_made_of_whole_clusters_as_many_in_each(num_parts: int) -> None:
    graph = random_graph()
    clusters = torch.arange(60) % 10
    parts = list(RandomParts(graph, num_parts, seeded(), clusters=clusters))
    assert torch.equal(torch.cat([part.nodes for part in parts]).sort().values, torch.arange(60))
    inside = [set(clusters[part.nodes].tolist()) for part in parts]
    assert [len(part.nodes) for part in parts] == [6 * len(numbers) for numbers in inside]
    assert max(map(len, inside)) - min(map(len, inside)) <= 1
    again, other = (list(RandomParts(graph, num_parts, seeded(seed), clusters=clusters)) for seed in (0, 1))
    assert all(torch.equal(one.nodes, two.nodes) for one, two in zip(parts, again, strict=True))
    if num_parts > 1:
        assert any(one.nodes.tolist() != two.nodes.tolist() for one, two in zip(parts, other, strict=True))


def two_groups(**changes: object) -> Graph:
    """Two groups of 30 nodes, the even and the odd ones, with one edge between them."""
    generator = seeded(5)
    edges = 2 * torch.randint(30, (2, 400), generator=generator) + torch.arange(400) % 2
    edges = torch.cat([edges, torch.tensor([[0], [1]])], 1).to(torch.int32)
    return random_graph(edge_index=edges, edge_attr=None, **changes)


@pytest.mark.parametrize("undirected", [True, False])
def test_metis_is_given_each_edge_in_both_directions_and_no_loops(
    undirected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", stub)
    # The stand-in checks its input.
    clusters = metis_clusters(random_graph(undirected=undirected), 7)
    assert torch.equal(clusters, torch.arange(60) % 7)
    assert int(metis_clusters(random_graph(), 100).max()) == 59


def test_metis_finds_groups_the_same_every_time() -> None:
    pytest.importorskip("pymetis", reason="installed with the extra 'metis'")
    graph = two_groups()
    clusters = metis_clusters(graph, 2)
    assert clusters.tolist() in ([0, 1] * 30, [1, 0] * 30)
    many = metis_clusters(graph, 12)
    assert int(many.max()) < 12
    assert torch.equal(metis_clusters(graph, 12), many)
    # Clusters keep more edges inside than random parts do.
    kept = [sum(part.csr.num_edges for part in RandomParts(graph, 4, seeded(), clusters=c)) for c in (many, None)]
    assert kept[0] > kept[1]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(DataError, match=r"partition 'metis' needs another package; .*'revgnn-zoo\[metis\]'"):
        metis_clusters(random_graph(), 3)
