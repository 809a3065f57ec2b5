"""Every recipe for an OGB data set trains, on a small graph in the raw format of OGB that stands for the real one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.ogb_files import write_random_arxiv, write_random_products
from zoo.data.partition import RandomParts
from zoo.data.synthetic import write_synthetic_proteins
from zoo.models.factory import build_model
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import list_recipes, recipe_path
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.train import train

NUM_EPOCHS = 3
OGB_RECIPES = [name for name in list_recipes() if read_recipe(recipe_path(name)).data.dataset.startswith("ogbn-")]


@pytest.fixture(scope="module", autouse=True)
def _ogb_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    root = tmp_path_factory.mktemp("data")
    write_synthetic_proteins(root, 120, mean_degree=12)
    write_random_arxiv(root, 120, num_edges=600)
    write_random_products(root, 120, num_edges=600)
    patch = pytest.MonkeyPatch()
    patch.setenv("ZOO_DATA", str(root))
    yield
    patch.undo()


# One epoch on a small graph does not make an equilibrium converge, which is not what is tested here.
@pytest.mark.filterwarnings("ignore:a (forward|backward) solve stopped")
@pytest.mark.parametrize("name", OGB_RECIPES)
def test_it_trains_on_its_data_set_as_ogb_publishes_it(name: str, tmp_path: Path) -> None:
    overrides = [f"train.num_epochs={NUM_EPOCHS}", f"eval.every={NUM_EPOCHS}"]
    shipped = read_recipe(recipe_path(name))
    if "num_layers" in type(shipped.model).model_fields:
        overrides.append("model.num_layers=4")
    if shipped.model.hidden_channels > 200:
        # Saving so many weights takes longer than training them; counts of parameters are tested elsewhere.
        overrides.append("model.hidden_channels=96")
    if shipped.train.partition.type == "random":
        overrides.append("train.partition.num_parts=2")
    if shipped.eval.metric == "rocauc":
        # A curve for each of 112 functions takes longer than training on a graph this small.
        overrides.append("eval.metric=micro_f1")
    recipe = read_recipe(recipe_path(name), overrides)
    results = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert results.num_steps == NUM_EPOCHS * (2 if shipped.train.partition.type == "random" else 1)
    assert results.data_is_synthetic
    measured = {figure.split: figure.value for figure in results.results}
    assert measured.keys() == {"train", "valid", "test"}
    assert all(0 <= value <= 1 for value in measured.values())


def test_all_1001_layers_take_a_step_that_lowers_the_loss() -> None:
    recipe = read_recipe(recipe_path("rev_deep"), ["train.partition.num_parts=4"])
    graph, split = recipe_graph(recipe)
    part = next(iter(RandomParts(graph, 4, torch.Generator().manual_seed(0))))
    torch.manual_seed(0)
    model = build_model(recipe.model, graph.shape).eval()
    assert len(model.stack.layers) == 1001
    is_train = torch.isin(part.nodes, split.train)

    def loss() -> torch.Tensor:
        logits = model(part.x, part.csr, part.edge_attr)
        return F.binary_cross_entropy_with_logits(logits[is_train], graph.y[part.nodes[is_train]])

    before = loss()
    before.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    norms = torch.stack([blocks[0].conv.mlp[0].weight.grad.norm() for blocks in model.stack.layers])
    assert bool((norms > 0).all())
    torch.optim.Adam(model.parameters(), lr=1e-4).step()
    with torch.no_grad():
        assert loss() < before
