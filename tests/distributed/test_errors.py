"""A fault of one process reaches the user once, in one line, and ends all of them."""

import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.jobs import command, command_of_rank, command_with_fault, launch, said
from tests.distributed.test_equal import SHARED
from tests.workflows.small import write_recipe
from zoo.errors import RunError
from zoo.spec.recipe import read_recipe
from zoo.workflows import ranks
from zoo.workflows.session import StopRequest
from zoo.workflows.state import RunState
from zoo.workflows.train import train

OPTIONS = ["--device", "cpu", "-q"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), **SHARED)


def only_line(folder: Path) -> str:
    """The only line, but for warnings, that all ranks together print."""
    lines = [line for rank in (0, 1) for line in said(folder, rank).splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_more_processes_than_parts_of_a_step_are_refused(recipe: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    arguments = ["train", str(recipe), "--out", out, "--set", "train.parts_per_step=1", *OPTIONS]
    assert launch(2, command, *arguments, folder=tmp_path) == [1, 1]
    line = only_line(tmp_path)
    assert "2 processes share the parts of a step, but train.parts_per_step is 1: start 1, or --set" in line
    assert "another result" in line
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("train", "quickstart", "--dry-run"), "--dry-run: start it without torchrun"),
        (("compare", "quickstart", "small_rev"), "compare: start it without torchrun"),
    ],
)
def test_what_processes_cannot_share_is_refused(arguments: tuple[str, ...], fault: str, tmp_path: Path) -> None:
    assert launch(2, command, *arguments, folder=tmp_path) == [2, 2]
    assert fault in only_line(tmp_path)


def test_a_program_must_join_its_processes(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"MASTER_ADDR": "localhost", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(RunError, match=r"torchrun started several processes: .*process_group"):
        train(read_recipe(recipe), tmp_path / "run", device="cpu", quiet=True)


def test_a_signal_during_an_exchange_is_found_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, asked = StopRequest(), []

    def exchange(value: tuple[int, list[Any]]) -> list[tuple[int, list[Any]]]:
        asked.append(value[0])
        stop.signum = signal.SIGTERM
        return [value, (0, [])]

    monkeypatch.setattr(ranks, "exchange", exchange)
    agree = RunState._agree
    run = SimpleNamespace(model=torch.nn.Linear(1, 1))
    assert [agree(run, stop), agree(run, stop)] == [False, True]  # type: ignore[arg-type]
    assert asked == [0, signal.SIGTERM]


def test_processes_of_different_recipes_stop_before_they_begin(recipe: Path, tmp_path: Path) -> None:
    arguments = ["train", str(recipe), "--out", str(tmp_path / "run"), *OPTIONS]
    extra = {1: ["--set", "train.seed=7"]}
    assert launch(2, command_of_rank, arguments, extra, folder=tmp_path) == [1, 1]
    assert "Error: rank 1 has another recipe than rank 0: " in only_line(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("memory", r"Error: rank 1: .*epoch 1, part 5: this machine is out of memory; raise train.partition.num_parts"),
        ("killed", r"Error: a process of this run ended without a word"),
        ("diverged", r"Error: .*: epoch 1, part 5: the loss is nan; the last good state is state-1.safetensors"),
        ("stopped", r"Error: rank 0: the disk is full"),
    ],
)
def test_a_process_that_fails_ends_all(fault: str, expected: str, recipe: Path, tmp_path: Path) -> None:
    arguments = ["train", str(recipe), "--out", str(tmp_path / "run"), *OPTIONS]
    # The other one had nothing to save.
    code = {"killed": -9, "stopped": 143}.get(fault, 1)
    assert launch(2, command_with_fault, arguments, fault, folder=tmp_path) == [1, code]
    line = only_line(tmp_path)
    assert re.match(expected, line), line


def test_an_error_that_nobody_expects_comes_with_its_rank(recipe: Path, tmp_path: Path) -> None:
    arguments = ["train", str(recipe), "--out", str(tmp_path / "run"), *OPTIONS]
    assert launch(2, command_with_fault, arguments, "unforeseen", folder=tmp_path) == [1, 1]
    assert said(tmp_path, 0) == ""
    assert said(tmp_path, 1).startswith("rank 1:\n")
    assert said(tmp_path, 1).endswith("ValueError: unforeseen\n")


def test_predictions_are_shared_and_written_once(recipe: Path, tmp_path: Path) -> None:
    run, data = str(tmp_path / "run"), str(recipe.parent / "multiclass.npz")
    assert launch(1, command, "train", str(recipe), "--out", run, *OPTIONS, folder=tmp_path) == [0]
    parts = ["--parts", "5", "--views", "3", "--device", "cpu"]
    logits, evaluated = [], []
    for world_size in (1, 2):
        out = str(tmp_path / f"{world_size}.npz")
        codes = launch(world_size, command, "predict", run, "--data", data, "--out", out, *parts, "-q", folder=tmp_path)
        assert codes == [0] * world_size
        logits.append(np.load(out)["logits"])
        assert launch(world_size, command, "eval", run, "--json", *parts, "-q", folder=tmp_path) == [0] * world_size
        evaluated.append((tmp_path / "out-0").read_text())
    assert logits[0].tobytes() == logits[1].tobytes()
    assert evaluated[0] == evaluated[1] != ""
    assert (tmp_path / "out-1").read_text() == ""
