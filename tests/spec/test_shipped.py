import json
import subprocess
import sys

import pytest

from tests.spec.defaults import repeated_defaults
from zoo.data.datasets import DATASETS
from zoo.data.features import NUM_EIGENVECTORS, build_features
from zoo.data.published import digits_graph
from zoo.errors import NotFoundError
from zoo.spec.recipe import read_recipe, recipe_schema
from zoo.spec.shape import DATASET_WIDTHS, known_shape
from zoo.spec.shipped import list_recipes, recipe_path, shipped_dir


def test_the_recipes_are_shipped() -> None:
    assert {"rev_deep", "rev_wide", "quickstart", "minesweeper", "cora"} <= set(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_each_recipe_reads_and_names_its_schema(name: str) -> None:
    recipe = read_recipe(recipe_path(name))
    assert (shipped_dir("recipes") / recipe.schema_).is_file()


@pytest.mark.parametrize("name", list_recipes())
def test_no_shipped_recipe_repeats_a_default(name: str) -> None:
    assert repeated_defaults(json.loads(recipe_path(name).read_text(encoding="utf-8"))) == []


def test_the_committed_schema_is_up_to_date() -> None:
    path = shipped_dir("recipes") / "schema" / "recipe.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == recipe_schema()


def test_every_known_data_set_has_known_widths() -> None:
    assert set(DATASET_WIDTHS) == set(DATASETS)


def test_the_known_shape_is_the_shape_of_the_graph() -> None:
    names = ["node", "edge_sum", "degree", "laplacian", "constant"]
    recipe = read_recipe(recipe_path("quickstart"), [f"data.node_features={json.dumps(names)}"])
    assert known_shape(recipe) == build_features(digits_graph(), names).shape
    assert NUM_EIGENVECTORS == 32


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rev_dep", "did you mean 'rev_deep'?"),
        ("zzz", "'revgnn-zoo list' shows all"),
        ("no/such.json", "no such recipe file"),
    ],
)
def test_an_unknown_name_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(NotFoundError, match=hint.replace("?", r"\?")):
        recipe_path(name)


def test_recipes_are_read_without_torch() -> None:
    code = "import sys, zoo.cli, zoo.spec.shape; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
