"""The deep networks of others: layers equal to their formulas, written with dense matrices, and published sizes."""

import math

import pytest
import torch
from torch import Tensor

from zoo.models.factory import build_model
from zoo.models.gnn import GNN
from zoo.spec.model import GCNIISpec, ResSpec
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import GraphShape, known_shape
from zoo.spec.shipped import recipe_path

SHAPE = GraphShape(num_node_features=5, num_tasks=3)
EDGES = torch.tensor([[0, 1, 1, 2, 3, 3], [1, 0, 2, 1, 3, 2]])


def normalized_adjacency() -> Tensor:
    """[4, 4] D^-1/2 (A + I) D^-1/2, in which the self-loop of the graph counts once."""
    dense = torch.eye(4, dtype=torch.float64)
    dense[EDGES[1], EDGES[0]] = 1
    scale = dense.sum(1).rsqrt()
    return scale[:, None] * dense * scale


def model_and_x(spec: GCNIISpec | ResSpec) -> tuple[GNN, Tensor]:
    torch.manual_seed(0)
    model = build_model(spec, SHAPE).double()
    assert isinstance(model, GNN)
    return model, torch.randn(4, 5, dtype=torch.float64)


def test_gcnii_is_its_formula() -> None:
    spec = GCNIISpec(type="gcnii", num_layers=3, hidden_channels=8, alpha=0.2, theta=0.7)
    model, x = model_and_x(spec)
    dense = normalized_adjacency()
    first = h = model.node_encoder.linear(x).relu()
    for number, layer in enumerate(model.stack.layers, start=1):
        beta = math.log(0.7 / number + 1)
        support = 0.8 * dense @ h + 0.2 * first
        h = ((1 - beta) * support + beta * support @ layer.linear.weight.T).relu()
    torch.testing.assert_close(model(x, EDGES), model.head(h))


def test_a_norm_after_the_convolution_is_its_formula() -> None:
    spec = ResSpec(type="res", num_layers=3, hidden_channels=8, conv={"type": "gcn"}, norm_position="post")
    model, x = model_and_x(spec)
    dense = normalized_adjacency()
    h = model.node_encoder.linear(x)
    for layer in model.stack.layers:
        conv = layer.conv
        h = layer.norm(dense @ h @ conv.linear.weight.T + conv.bias + layer.residual(h)).relu()
    torch.testing.assert_close(model(x, EDGES), model.head(h))


@pytest.mark.parametrize(
    "spec",
    [
        GCNIISpec(type="gcnii", num_layers=3, hidden_channels=64, dropout=0.5),
        ResSpec(type="res", num_layers=3, hidden_channels=64, conv={"type": "sage"}, norm_position="post", dropout=0.5),
    ],
)
def test_every_layer_has_a_dropout_mask_of_its_own(spec: GCNIISpec | ResSpec) -> None:
    model, x = model_and_x(spec)
    dropped = []
    for layer in model.stack.layers:
        map_of_states = layer.residual if isinstance(spec, ResSpec) else layer
        map_of_states.register_forward_hook(lambda _, arguments, out: dropped.append(arguments[0] == 0))
    torch.manual_seed(1)
    first = model(x, EDGES)
    assert not torch.equal(first, model(x, EDGES))
    if isinstance(spec, ResSpec):
        assert all(mask.double().mean() > 0.3 for mask in dropped[1:3])
        assert not torch.equal(dropped[1], dropped[2])
    assert torch.equal(model.eval()(x, EDGES), model(x, EDGES))


def test_input_dropout_drops_node_features_in_training_alone() -> None:
    model, x = model_and_x(GCNIISpec(type="gcnii", num_layers=1, hidden_channels=8, input_dropout=0.9))
    seen = []
    model.node_encoder.register_forward_hook(lambda _, arguments, out: seen.append(arguments[0]))
    model(x, EDGES)
    model.eval()(x, EDGES)
    assert (seen[0] == 0).double().mean() > 0.6
    assert torch.equal(seen[1], x)


@pytest.mark.parametrize(("name", "count"), [("cora_gcnii", 354_375)])
def test_recipes_have_the_sizes_of_their_papers(name: str, count: int) -> None:
    recipe = read_recipe(recipe_path(name))
    shape = known_shape(recipe)
    assert shape is not None
    assert recipe.model.num_parameters(shape) == count
