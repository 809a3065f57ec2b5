"""Overrides mean the same in Python and on the command line."""

import json
from pathlib import Path
from typing import get_args

import pytest

import zoo
from tests.workflows.small import changed, recipe_data
from zoo.errors import RecipeError
from zoo.spec.recipe import parse_recipe, read_recipe
from zoo.spec.shape import DatasetName, NodeFeature, known_shape
from zoo.spec.shipped import recipe_path


@pytest.mark.parametrize("overrides", [[], ["model.num_layers=3"], ["train.num_epochs=5"], ["model.dropout=0.5"]])
def test_python_and_the_command_line_read_the_same_recipe(overrides: list[str]) -> None:
    recipe = zoo.read_recipe(recipe_path("rev_deep"), overrides)
    assert recipe == read_recipe("rev_deep", overrides)
    assert (recipe.source is None) == any(override.startswith("model.") for override in overrides)


def test_a_default_spelled_out_is_no_change() -> None:
    recipe = read_recipe(recipe_path("rev_deep"), ["model.num_groups=2", "data.split=0"])
    assert recipe == read_recipe(recipe_path("rev_deep"))


def test_a_recipe_may_be_whole_only_with_its_overrides(tmp_path: Path) -> None:
    data = changed(recipe_data(Path("graph.npz")), data={"dataset": "file"})
    path = tmp_path / "small.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RecipeError, match="path goes with dataset 'file'"):
        read_recipe(path)
    recipe = read_recipe(path, ["data.path=/home/me/other.npz"])
    assert recipe.data.path == "/home/me/other.npz"
    assert "data.path=other.npz" in recipe.summary


@pytest.mark.parametrize("dataset", [name for name in get_args(DatasetName) if name != "file"])
@pytest.mark.parametrize("feature", get_args(NodeFeature))
def test_every_feature_of_every_data_set_has_a_shape_or_is_refused(dataset: str, feature: str) -> None:
    data = changed(recipe_data(Path("graph.npz")), data={"dataset": dataset, "node_features": [feature]})
    fault = ""
    try:
        shape = known_shape(parse_recipe(data, where="here"))
        assert shape is not None
        assert shape.num_node_features >= 1
    except RecipeError as error:
        fault = str(error)
    assert fault.startswith("here: data.node_features: ") or not fault
