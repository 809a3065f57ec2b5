import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Result
from zoo.workflows import compare as compare_module
from zoo.workflows import runs as many_module
from zoo.workflows.worker import work

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_process(
        tasks: list[Any], *, devices: list[str], progress: Any, **options: Any
    ) -> Iterator[tuple[Any, dict[str, Any]]]:
        for task in tasks:
            progress.warning(task.model, "look here")
            yield task, work(task.request.model_copy(update={"device": devices[0]}))

    for module in (compare_module, many_module):
        monkeypatch.setattr(module, "run_tasks", in_this_process)


def test_a_recipe_and_a_run_stand_in_one_table(finished: Path, tmp_path: Path, zoo_command: Command) -> None:
    other = tmp_path / "other.json"
    recipe = json.loads((finished / "small.json").read_text())
    other.write_text(json.dumps({**recipe, "name": "other"}))
    arguments = (finished / "run", other, "--set", "train.num_epochs=1", "--out", "out")
    result = zoo_command("compare", *arguments)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split()[:4] == ["model", "layers", "channels", "parameters"]
    assert [line.split()[0] for line in lines[1:4]] == ["small", "other", "logistic"]
    assert lines[-1] == "written: out/compare.md, compare.png, compare.json"
    assert result.err.count("Warning: other: look here") == 1
    assert json.loads((tmp_path / "out/other/split-0-seed-0/recipe.json").read_text())["train"]["num_epochs"] == 1
    again = zoo_command("compare", *arguments, "--json", "-q")
    assert json.loads(again.out) == {"out": "out", **json.loads((tmp_path / "out" / "compare.json").read_text())}
    assert again.err == []


def test_several_seeds_are_one_table(finished: Path, tmp_path: Path, zoo_command: Command) -> None:
    arguments = (finished / "small.json", "--seeds", "2", "--set", "train.num_epochs=1", "--devices", "cpu")
    result = zoo_command("train", *arguments)
    assert result.code == 0
    head, valid, test, _, counts, place = result.out.splitlines()
    assert (head.split()[:4], valid.split()[0], test.split()[3]) == (["split", "metric", "mean", "±"], "valid", "±")
    assert counts.startswith("2 runs, ")
    assert place == "runs: runs/small"
    again = zoo_command("train", *arguments, "--json", "-q")
    held = json.loads((tmp_path / "runs/small/runs.json").read_text())
    assert json.loads(again.out) == {"out": "runs/small", **held}
    assert [run["seed"] for run in held["runs"]] == [0, 1]


def test_data_of_another_recipe(finished: Path, tmp_path: Path, zoo_command: Command) -> None:
    result = zoo_command("compare", "cora", "--data", finished / "small.json", "--set", "train.num_epochs=1", "-q")
    assert result.code == 0
    recipe = json.loads((tmp_path / "runs/compare-file/cora/split-0-seed-0/recipe.json").read_text())
    small = json.loads((finished / "small.json").read_text())
    assert recipe["data"]["path"] == small["data"]["path"]
    assert (recipe["model"]["conv"], recipe["train"]["num_epochs"]) == ({"type": "gcn"}, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["rev_dep"], 3, "rev_dep: no shipped recipe of that name; did you mean 'rev_deep'?"),
        (["rev_64", "--data", "minesweper"], 3, "did you mean 'minesweeper'?"),
        (["absent/folder"], 3, "absent/folder: no such recipe file"),
        (["rev_64", "--set", "data.split=1"], 2, "every run has a split of its own; --splits says how many"),
        (["rev_64", "--splits", "none"], 2, "'none': expected a number from 1 on, or all"),
        (["rev_64", "--set", "model.num_layer=1"], 1, "model.num_layer: unknown key; did you mean 'num_layers'?"),
        (["rev_64", "minesweeper"], 1, "minesweeper: data.dataset is minesweeper, but ogbn-proteins for rev_64; only"),
        (["quickstart", "quickstart"], 1, "quickstart: two of the models have this name"),
        ([], 2, "Missing argument 'RECIPE...'"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(
    arguments: list[str], code: int, expected: str, zoo_command: Command, tmp_path: Path
) -> None:
    result = zoo_command("compare", *arguments)
    (line,) = result.err
    assert result.code == code
    assert expected in line
    assert not (tmp_path / "runs").exists()
