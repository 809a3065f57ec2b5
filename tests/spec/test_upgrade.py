"""Recipes of version 1 mean what they meant, alone and inside bundles."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.small import changed, recipe_data
from zoo.errors import BundleError, RecipeError
from zoo.hub.config import parse_config
from zoo.spec.recipe import Recipe, parse_recipe, read_recipe
from zoo.spec.results import ReportedResult
from zoo.spec.shipped import shipped_dir

MODELS: dict[str, dict[str, Any]] = {
    "rev": {"type": "rev", "num_layers": 3, "hidden_channels": 8, "conv": {"type": "gen", "edge_encoder": "shared"}},
    "res": {"type": "res", "num_layers": 3, "hidden_channels": 8, "conv": {"type": "sage"}, "norm": "batch"},
    "deq": {
        "type": "deq",
        "hidden_channels": 8,
        "conv": {"type": "gcn"},
        "solver": {
            "type": "broyden",
            "tol": 0.01,
            "max_iters": 20,
            "history": 7,
            "backward": {"type": "anderson", "tol": 0.001, "max_iters": 9, "history": 4},
        },
    },
    "rev_gat": {"type": "rev_gat", "num_layers": 4, "hidden_channels": 16, "num_heads": 3},
}


def version_1(family: str = "rev", **changes: Any) -> dict[str, Any]:
    data = changed(recipe_data(Path("graph.npz")), schema_version=1, model=MODELS[family], **changes)
    data["train"] |= {"capture": False, "edge_precision": "fp32"}
    return data


@pytest.mark.parametrize("family", MODELS)
def test_a_recipe_of_version_1_is_read(family: str, tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(version_1(family)))
    recipe = read_recipe(path)
    assert recipe.schema_version == 2
    width = 48 if family == "rev_gat" else 8
    spelled = recipe.to_json()["model"]
    conv = spelled.get("conv", {})
    assert conv == {**conv, **MODELS[family].get("conv", {})}
    assert spelled == {**spelled, **MODELS[family], "hidden_channels": width, **({"conv": conv} if conv else {})}
    assert parse_recipe(recipe.to_json(), where="again") == recipe


def test_an_override_speaks_of_the_present_version() -> None:
    recipe = parse_recipe(version_1("rev_gat"), where="here", overrides=["model.hidden_channels=96"])
    assert recipe.model.hidden_channels == 96


@pytest.mark.parametrize(
    ("protocol", "numbers"),
    [
        ("whole graph", (1, 1, None)),
        ("whole graph, 10 runs", (1, 1, 10)),
        ("single view", (1, None, None)),
        ("10 views of 3 parts", (10, 3, None)),
        ("1 view of 5 parts, 3 runs", (1, 5, 3)),
        ("as others do it", (None, None, None)),
    ],
)
def test_a_protocol_in_prose_becomes_numbers(protocol: str, numbers: tuple[int | None, ...]) -> None:
    figure = {"split": "test", "metric": "rocauc", "mean": 0.5, "protocol": protocol, "source": "a paper"}
    recipe = parse_recipe(version_1(source={"paper": "a paper", "reported": [figure]}), where="here")
    assert recipe.source is not None
    (reported,) = recipe.source.reported
    assert (reported.num_views, reported.num_parts, reported.num_runs) == numbers
    assert reported.protocol == (protocol if any(numbers) else "protocol not stated")


def test_protocols_in_words() -> None:
    fields = {"split": "test", "metric": "rocauc", "mean": 0.5, "source": "a paper"}
    words = {"": "protocol not stated", "2": "2 views", "1": "single view"}
    for views, expected in words.items():
        figure = ReportedResult.model_validate({**fields, **({"num_views": int(views)} if views else {})})
        assert figure.protocol == expected


@pytest.mark.parametrize("damage", [[], "x", 5])
@pytest.mark.parametrize("key", ["model", "train", "source", "source.reported"])
def test_damaged_data_of_version_1_get_a_report(key: str, damage: Any) -> None:
    data = version_1("rev_gat", source={"paper": "a paper", "reported": [damage]})
    if key != "source.reported":
        data[key] = damage
    with pytest.raises(RecipeError, match=r"^here: "):
        parse_recipe(data, where="here")


def test_a_bundle_of_version_1_is_read_and_a_newer_one_is_refused() -> None:
    data = json.loads((shipped_dir("bundles") / "quickstart" / "config.json").read_text())
    data["recipe"]["schema_version"] = 1
    assert isinstance(parse_config(json.dumps(data).encode(), where="bundle").recipe, Recipe)
    data["recipe"]["schema_version"] = 3
    with pytest.raises(BundleError, match=r"^bundle: recipe: schema_version: 3 was written by a newer revgnn-zoo"):
        parse_config(json.dumps(data).encode(), where="bundle")
