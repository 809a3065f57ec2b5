"""The table of results says what its runs measured, and each run can be repeated by the command beside it."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import results
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import card_path, recipe_path
from zoo.workflows.recipes import recipe_digest
from zoo.workflows.train import train

RUNS = results.read_runs()


def test_each_recorded_run_is_its_recipe_with_its_overrides() -> None:
    assert RUNS
    for run in RUNS:
        recipe = read_recipe(recipe_path(run["recipe"]), run["set"])
        assert recipe_digest(recipe) == run["recipe_sha256"], (run["recipe"], run["set"])


def test_a_run_is_recorded_once() -> None:
    digests = [run["recipe_sha256"] for run in RUNS]
    assert len(set(digests)) == len(digests)


def test_the_committed_table_is_made_from_the_recorded_runs() -> None:
    with results.TABLE.open(newline="", encoding="utf-8") as file:
        committed = list(csv.DictReader(file))
    assert committed == [{key: str(value) for key, value in row.items()} for row in results.rows()]


def test_cards_state_what_the_table_says() -> None:
    rows = [row for row in results.rows() if row["purpose"] == "model"]
    assert rows
    for row in rows:
        card = card_path(row["model"]).read_text(encoding="utf-8")
        assert f"Measured here: test {row['metric']} {row['test_mean']}" in card
        assert f"valid {row['valid_mean']}." in card


def test_the_plan_names_recipes_that_read() -> None:
    for name, overrides, purpose in results.planned():
        read_recipe(recipe_path(name), overrides)
        assert purpose in ("model", "depth", "selection")


def test_changes_are_the_overrides_of_a_recipe() -> None:
    for overrides in (
        ["data.split=3", "train.optimizer.lr=0.02"],
        ['model.conv={"type": "gcn"}'],
        ["model.norm=batch", "model.num_distinct_layers=2", "model.num_layers=6"],
    ):
        recipe = read_recipe(recipe_path("small_rev"), overrides)
        again = read_recipe(recipe_path("small_rev"), results.changes("small_rev", recipe))
        assert recipe_digest(again) == recipe_digest(recipe)


def test_runs_of_one_model_stand_in_one_row_with_mean_and_deviation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "card_path", lambda name: shutil.copy(card_path(name), tmp_path / f"{name}.md"))
    for key in ("RUNS", "TABLE", "PICTURE", "PLAN"):
        monkeypatch.setattr(results, key, tmp_path / key)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "commit", lambda: "abc1234")
    quick = ["train.num_epochs=2", "model.num_layers=1", "train.schedule.num_warmup_epochs=0"]
    plan = [{"recipe": "small_rev", "purpose": "model", "set": quick, "splits": [0, 1]}]
    (tmp_path / "PLAN").write_text(json.dumps(plan))
    results.renew(limit=1)
    assert len(results.read_runs()) == 1
    results.renew(limit=None)
    first, second = results.read_runs()
    (row,) = results.rows()
    assert row["test_mean"] == f"{(first['test'] + second['test']) / 2:.4f}"
    assert row["test_std"] == f"{abs(first['test'] - second['test']) / 2**0.5:.4f}"
    assert (row["splits"], row["seeds"], row["commit"], row["layers"]) == (2, 1, "abc1234", 1)
    results.write_table()
    assert f"test accuracy {row['test_mean']} ± {row['test_std']}" in (tmp_path / "small_rev.md").read_text()
    before = (tmp_path / "RUNS").read_text()
    monkeypatch.setattr(results, "train", pytest.fail)
    results.renew(limit=None)
    assert (tmp_path / "RUNS").read_text() == before
    run = train(read_recipe(recipe_path("small_rev"), [*quick, "data.split=2"]), tmp_path / "run", quiet=True)
    results.collect("small_rev", [tmp_path / "run"], "model", "abc1234")
    assert results.read_runs()[2]["train_s"] == run.train_s
    with pytest.raises(SystemExit, match="is another recipe"):
        results.collect("small_rev", [tmp_path / "run"], "model", "abc1234", ["data.split=2"])
