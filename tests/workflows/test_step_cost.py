"""The cost of training steps, at sizes that take no time."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workflows.small import small_recipe
from zoo.errors import RunError
from zoo.models.factory import build_model
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shape import input_shape, known_shape
from zoo.spec.shipped import list_recipes, recipe_path
from zoo.workflows import step_cost
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.step import epoch_parts
from zoo.workflows.step_cost import StepCost, measure_training, random_graph

CPU = torch.device("cpu")
NAMED = [name for name in list_recipes() if read_recipe(recipe_path(name)).data.dataset != "file"]


def deep(*overrides: str) -> Recipe:
    return read_recipe(recipe_path("rev_deep"), ["model.num_layers=2", "model.hidden_channels=12", *overrides])


def measured(recipe: Recipe, **options: Any) -> StepCost:
    graph, split = random_graph(recipe, 100, 400)
    model = build_model(recipe.model, input_shape(recipe, graph.shape))
    return measure_training(model, recipe, graph, split, CPU, **options)


def test_an_epoch_is_all_its_parts_and_the_time_to_make_them() -> None:
    cost = measured(deep("train.partition.num_parts=4"), num_steps=3)
    assert (cost.num_parts, len(cost.step_s)) == (4, 3)
    assert cost.epoch_s == pytest.approx(cost.partition_s + 4 * cost.median_step_s)
    assert cost.partition_s > 0


def test_sampling_and_sorting_a_partition_is_part_of_making_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return epoch_parts(*args)

    monkeypatch.setattr(step_cost, "epoch_parts", slow)
    assert measured(deep("train.partition.num_parts=2")).partition_s >= 0.05


def test_the_bytes_that_stay_are_counted() -> None:
    recipe = deep('train.partition={"type": "full"}')
    cost = measured(recipe)
    shape = known_shape(recipe)
    assert shape is not None
    # Weights, gradients and the two moments of Adam, which also counts the steps of each parameter.
    assert cost.state_bytes == 16 * cost.num_parameters + 4 * len(list(build_model(recipe.model, shape).parameters()))
    # Ids, 16 node features, row starts; source and 8 features of every message.
    assert cost.part_bytes == 100 * (8 + 64) + 101 * 8 + 400 * (4 + 32)
    assert cost.graph_bytes == 0
    assert cost.total_bytes == cost.state_bytes + cost.part_bytes + cost.peak_bytes


def test_a_graph_of_ones_own_is_measured_as_it_is(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    graph, split = recipe_graph(recipe)
    model = build_model(recipe.model, input_shape(recipe, graph.shape))
    cost = measure_training(model, recipe, graph, split, CPU)
    assert (cost.num_nodes, cost.num_parts, len(cost.step_s)) == (90, 2, 5)
    with pytest.raises(RunError, match="small: a random graph needs a data set with a name"):
        random_graph(recipe, 100, 400)


@pytest.mark.parametrize("name", NAMED)
def test_a_random_graph_is_as_wide_as_the_data_set(name: str) -> None:
    recipe = read_recipe(recipe_path(name))
    graph, split = random_graph(recipe, 100, 400)
    assert input_shape(recipe, graph.shape) == known_shape(recipe)
    assert (graph.num_nodes, graph.num_edges, len(split.train) > 0) == (100, 200, True)
    assert graph.self_loops == recipe.data.self_loops
