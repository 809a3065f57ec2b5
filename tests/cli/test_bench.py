import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Result
from zoo.errors import OutOfMemoryError
from zoo.workflows import bench as bench_module
from zoo.workflows.worker import Task

Command = Callable[..., Result]


def test_depths_of_a_recipe_on_a_random_graph_fit_eighty_columns(
    zoo_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes of their own."""
    monkeypatch.setenv("ZOO_BACKEND", "chunked")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    size = (
        "--random-graph",
        "--nodes",
        100,
        "--edges",
        400,
        "--set",
        "model.hidden_channels=8",
        "--set",
        "train.partition.num_parts=2",
    )
    result = zoo_command("bench", "rev_deep", "--layers", "3,2", *size, "--steps", 1, "--device", "cpu", "-q")
    assert (result.code, result.err) == (0, [])
    head, two, three, data, note = result.out.splitlines()
    assert head.split("  ")[0].strip() == "layers"
    assert [line.split()[0] for line in (two, three)] == ["2", "3"]
    assert data == "rev_deep: 100 nodes, 400 edges, 2 parts"
    assert note.startswith("in all: ")
    assert max(map(len, result.out.splitlines())) <= 80


def test_a_depth_that_does_not_fit_is_a_row(
    finished: Path, zoo_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_tasks(tasks: list[Task], **_: object) -> list[tuple[Task, OutOfMemoryError]]:
        return [(task, OutOfMemoryError("no")) for task in tasks]

    monkeypatch.setattr(bench_module, "run_tasks", run_tasks)
    result = zoo_command("bench", finished / "small.json", "-q", "--device", "cpu")
    assert result.out.splitlines()[1].split() == ["2", "-", "-", "-", "-", "out", "of", "memory"]
    rows = json.loads(zoo_command("bench", finished / "small.json", "-q", "--json").out)["rows"]
    assert rows == [{"num_layers": 2, "cost": None}]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["rev_dep"], 3, "rev_dep: no shipped recipe of that name; did you mean 'rev_deep'?"),
        (["rev_deep", "--layers", "7,x"], 2, "--layers 7,x: expected whole numbers, such as 7,14,28"),
        (["rev_deep", "--layers", "0"], 1, "model.num_layers: "),
        (["rev_deep", "--nodes", "100"], 2, "--nodes and --edges are of a random graph; add --random-graph"),
        (["cora", "--random-graph", "--nodes", "100"], 1, "cora: its size is known only when it is read; give --nodes"),
        (["deq_64", "--layers", "7"], 1, "model.num_layers: unknown key"),
    ],
)
def test_a_wrong_question_is_one_clear_line(
    arguments: list[str], code: int, expected: str, zoo_command: Command
) -> None:
    result = zoo_command("bench", *arguments)
    (line,) = result.err
    assert result.code == code
    assert expected in line
