"""The forms in which a model takes a graph: tensors, PyG's Data and batches, sparse matrices."""

import doctest
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo.data.metrics
import zoo.layers.conv
import zoo.models.gnn
import zoo.workflows.objective
from tests.pyg import (
    NUM_NODES,
    Batch,
    Data,
    DataLoader,
    EdgeIndex,
    RandomNodeLoader,
    ToSparseTensor,
    some_data,
)
from zoo.models.factory import build_model
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import GraphShape
from zoo.spec.shipped import recipe_path

SHAPE = GraphShape(num_node_features=5, num_edge_features=3, num_tasks=4)
FAMILIES = ("quickstart", "small_res", "small_rev_gcn", "small_oscillator", "small_rev_deq", "small_rev_gat")
SPARSE = pytest.mark.filterwarnings("ignore:Sparse")


@pytest.mark.parametrize("module", [zoo.models.gnn, zoo.data.metrics, zoo.workflows.objective, zoo.layers.conv])
def test_examples_run(module: ModuleType) -> None:
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    recipe = read_recipe(recipe_path(name), ["model.hidden_channels=8"])
    return build_model(recipe.model, SHAPE).eval()


def attr_of(name: str, data: Any) -> Tensor | None:
    return data.edge_attr if name == "quickstart" else None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_data_object_is_read_like_its_tensors(name: str) -> None:
    model, data = model_of(name), some_data()
    expected = model(data.x, data.edge_index, attr_of(name, data))
    assert torch.equal(model(data), expected)
    assert expected.shape == (NUM_NODES, 4)
    data.edge_index = EdgeIndex(data.edge_index, sparse_size=(NUM_NODES, NUM_NODES))
    torch.testing.assert_close(model(data), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_what_the_head_reads(name: str) -> None:
    model, data = model_of(name), some_data()
    hidden = model.embed(data)
    assert hidden.shape == (NUM_NODES, 8)
    if name != "small_rev_gat":
        assert torch.equal(model.head(hidden), model(data))
    head = model.last if name == "small_rev_gat" else model.head
    seen = []
    head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model(data)
    assert torch.equal(seen[0], hidden)


@SPARSE
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_a_sparse_adjacency_is_read_like_its_edges(name: str, layout: str) -> None:
    model, data = model_of(name), some_data()
    expected = model(data)
    sparse = ToSparseTensor()(some_data())
    adj_t = {"csr": lambda a: a, "csc": lambda a: a.to_sparse_csc(), "coo": lambda a: a.to_sparse_coo()}[layout](
        sparse.adj_t
    )
    torch.testing.assert_close(model(sparse.x, adj_t, attr_of(name, sparse)), expected)
    sparse.adj_t = adj_t
    torch.testing.assert_close(model(sparse), expected)


@SPARSE
def test_values_of_a_sparse_adjacency_are_weights() -> None:
    data = some_data(edge_attr=None)
    weight = torch.rand(data.num_edges) + 0.5
    model = model_of("small_rev_gcn")
    expected = model(data.x, data.edge_index, None, weight)
    assert not torch.allclose(expected, model(data))
    sparse = ToSparseTensor(attr="edge_weight")(some_data(edge_attr=None, edge_weight=weight))
    torch.testing.assert_close(model(sparse), expected)
    with pytest.raises(ValueError, match="GENConv reads no edge weights"):
        model_of("quickstart")(data.x, sparse.adj_t, torch.rand(data.num_edges, 3))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_graphs_is_the_graphs_one_by_one(name: str) -> None:
    graphs = [some_data(y=torch.zeros(NUM_NODES)), Data(x=torch.randn(2, 5), edge_index=torch.tensor([[0], [1]]))]
    graphs[1].edge_attr = torch.rand(1, 3)
    graphs[0] = Data(x=graphs[0].x, edge_index=graphs[0].edge_index, edge_attr=graphs[0].edge_attr)
    model = model_of(name)
    for batch in (Batch.from_data_list(graphs), next(iter(DataLoader(graphs, batch_size=2)))):
        alone = torch.cat([model(graph) for graph in graphs])
        # An equilibrium is solved for all nodes at once, and a norm of the batch is not met here.
        tolerance = 1e-2 if name == "small_rev_deq" else 1e-5
        torch.testing.assert_close(model(batch), alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_sampled_batches_train(name: str) -> None:
    model, data = model_of(name).train(), some_data()
    loader = RandomNodeLoader(data, num_parts=3, shuffle=True)
    batches = [*loader, neighbor_batch(data, torch.tensor([3, 7]))]
    for batch in batches:
        model.zero_grad()
        logits = model(batch)
        assert logits.shape == (batch.num_nodes, 4)
        logits.square().mean().backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        assert any(p.grad is not None for p in model.parameters())


def neighbor_batch(data: Any, seeds: Tensor) -> Any:
    """A batch of the form that NeighborLoader gives: seeds first, edges towards them, global ids beside."""
    kept = torch.isin(data.edge_index[1], seeds)
    nodes = torch.cat([seeds, data.edge_index[0, kept]])
    unique = list(dict.fromkeys(nodes.tolist()))
    number = {node: index for index, node in enumerate(unique)}
    edges = [[number[int(node)] for node in row] for row in data.edge_index[:, kept]]
    return Data(
        x=data.x[unique],
        edge_index=torch.tensor(edges),
        edge_attr=data.edge_attr[kept],
        y=data.y[unique],
        n_id=torch.tensor(unique),
        e_id=kept.nonzero().squeeze(1),
        input_id=torch.arange(len(seeds)),
        batch_size=len(seeds),
    )


def test_the_seeds_of_a_sampled_batch_see_all_their_neighbors() -> None:
    """One layer on a sampled batch gives its seeds what it gives them on the whole graph."""
    recipe = read_recipe(recipe_path("small_res"), ["model.hidden_channels=8", "model.num_layers=1"])
    torch.manual_seed(0)
    model, data = build_model(recipe.model, SHAPE).eval(), some_data()
    seeds = torch.tensor([3, 7])
    batch = neighbor_batch(data, seeds)
    found, expected = model(batch)[: batch.batch_size], model(data)[seeds]
    torch.testing.assert_close(found, expected)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "width of x": ({"x": torch.ones(NUM_NODES, 6)}, r"x: expected floating point numbers of shape \(N, 5\), got .*6\)"),
    "whole numbers": ({"x": torch.ones(NUM_NODES, 5).long()}, "x: expected floating point numbers .* got torch.int64"),
    "no x": ({"x": None}, r"data\.x is missing"),
    "no edges": ({"edge_index": None, "edge_attr": None}, r"edge_index is missing: expected model\(x, edge_index\)"),
    "width of edges": ({"edge_attr": torch.ones(2, 3)}, r"edge_attr: expected shape \(\d+, 3\), got \(2, 3\)"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("name", ["quickstart", "small_rev_gat"])
def test_what_does_not_fit_is_named(name: str, case: str) -> None:
    changes, message = WRONG[case]
    if name == "small_rev_gat" and "edge_attr" in changes and "edge_index" not in changes:
        return  # of a Data object only what is read is taken
    with pytest.raises(ValueError, match=message):
        model_of(name)(some_data(**changes))


def test_what_is_not_read_is_refused_in_tensors() -> None:
    data = some_data()
    weight = torch.ones(data.num_edges)
    with pytest.raises(ValueError, match="reads no edge features"):
        model_of("small_res")(data.x, data.edge_index, data.edge_attr)
    for name in ("quickstart", "small_rev_gat"):
        with pytest.raises(ValueError, match="Conv reads no edge weights"):
            model_of(name)(data.x, data.edge_index, attr_of(name, data), weight)
    with pytest.raises(ValueError, match=r"edge_weight: expected shape \(\d+,\), got \(3,\)"):
        model_of("small_res")(data.x, data.edge_index, None, weight[:3])
    with pytest.raises(ValueError, match="must be square"):
        model_of("small_res")(data.x, torch.eye(3, 4).to_sparse_coo())
