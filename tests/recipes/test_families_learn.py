"""Every family and every convolution learns the digits: less of a recipe, a fixed seed, and an accuracy to reach."""

from pathlib import Path

import pytest

from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows.train import train

QUICK = ["model.dropout=0.0", "train.num_epochs=25", "train.schedule.num_warmup_epochs=3"]
FOUR = ["model.num_layers=4"]
SOLVED = ["model.num_warmup_epochs=5"]


def conv(**keys: str) -> str:
    return "model.conv={" + ", ".join(f'"{key}": "{value}"' for key, value in keys.items()) + "}"


GEN, GCN, GAT = conv(type="gen", edge_encoder="per_layer"), conv(type="gcn"), conv(type="gat")
# About 0.015 below what was seen, which is how far another seed moves it, and above the 0.902 of a logistic regression
# on the same nodes. A node of the 1,197 for testing is worth 0.0008.
LEARNED: list[tuple[str, list[str], float]] = [
    ("small_res", FOUR, 0.93),
    ("small_res", [*FOUR, GEN], 0.903),
    ("small_wt_res", FOUR, 0.925),
    ("small_rev", FOUR, 0.92),
    ("small_rev", [*FOUR, GEN], 0.91),
    ("small_rev", [*FOUR, GAT], 0.925),
    ("small_rev_gcn", FOUR, 0.925),
    ("small_wt_rev", FOUR, 0.92),
    ("small_rev_gat", FOUR, 0.905),
    ("small_oscillator", FOUR, 0.9),
    ("small_deq", SOLVED, 0.905),
    ("small_deq", [*SOLVED, GCN], 0.935),
    ("small_rev_deq", SOLVED, 0.903),
]


@pytest.mark.parametrize(("name", "overrides", "reached"), LEARNED)
def test_it_reaches_its_accuracy(name: str, overrides: list[str], reached: float, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_path(name), [*QUICK, *overrides])
    results = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    accuracy = {figure.split: figure.value for figure in results.results}
    assert accuracy["test"] >= reached, accuracy
