"""The recipe for the roads of Paris trains on a small network in the published format, at any depth."""

import json
from pathlib import Path

import pytest
import torch

from tests.city_files import city_tensors, write_city
from zoo.models.factory import build_model
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import known_shape
from zoo.spec.shipped import card_path, recipe_path
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.train import train

RECIPE = recipe_path("city_paris_rev")


@pytest.fixture(autouse=True)
def _city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_city(tmp_path / "data" / "paris", "paris", city_tensors(200))
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))


def test_it_trains_on_the_network_as_published(tmp_path: Path) -> None:
    recipe = read_recipe(RECIPE, ["train.num_epochs=10", "train.schedule.num_warmup_epochs=1", "model.num_layers=4"])
    results = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert {figure.split for figure in results.results} == {"train", "valid", "test"}


@pytest.mark.parametrize("depth", [8, 64, 256])
def test_every_layer_has_a_finite_gradient(depth: int) -> None:
    recipe = read_recipe(RECIPE, [f"model.num_layers={depth}"])
    graph, split = recipe_graph(recipe)
    assert known_shape(recipe) == graph.shape
    torch.manual_seed(0)
    model = build_model(recipe.model, graph.shape)
    assert graph.edge_attr is not None
    edges, attr = torch.cat([graph.edge_index, graph.edge_index.flip(0)], 1), graph.edge_attr.repeat(2, 1)
    loss = torch.nn.functional.cross_entropy(model(graph.x, edges, attr)[split.train], graph.y[split.train])
    loss.backward()
    norms = torch.stack([blocks[0].conv.mlp[0].weight.grad.norm() for blocks in model.stack.layers])
    assert len(norms) == depth
    assert bool(norms.isfinite().all())
    assert bool((norms > 0).all())


def test_the_card_states_the_number_of_parameters() -> None:
    recipe = read_recipe(RECIPE)
    shape = known_shape(recipe)
    assert shape is not None
    assert f"It has {recipe.model.num_parameters(shape):,} parameters." in card_path("city_paris_rev").read_text()
