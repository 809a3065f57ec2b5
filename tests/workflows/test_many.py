"""Several runs of one recipe; they run in this process but where processes are the point."""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.test_compare import in_this_process, tiny, write_splits
from zoo.errors import RunError
from zoo.spec.results import Mean, RunScores
from zoo.workflows import runs as many_module
from zoo.workflows.compare import compare
from zoo.workflows.compare_report import CompareEntry, p_value
from zoo.workflows.progress import Progress
from zoo.workflows.runs import ManyResults, train_many
from zoo.workflows.session import StopRequest
from zoo.workflows.train import train
from zoo.workflows.worker import Task, TrainRequest, run_tasks


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_splits(tmp_path, 3)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))


def test_each_split_and_seed_is_a_run_and_only_missing_ones_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def noted(tasks: list[Task], **options: Any) -> Any:
        started.extend(task.label for task in tasks)
        return in_this_process(tasks, **options)

    monkeypatch.setattr(many_module, "run_tasks", noted)
    out, options = tmp_path / "out", {"device": "cpu", "quiet": True}
    first = train_many(tiny(), out, num_splits=2, **options)
    assert [(run.split, run.seed) for run in first.runs] == [(0, 0), (1, 0)]
    started.clear()
    found = train_many(tiny(), out, num_splits="all", num_seeds=2, **options)
    assert started == [f"tiny_rev, split {place}" for place in ("2, seed 0", "0, seed 1", "1, seed 1", "2, seed 1")]
    assert ManyResults.model_validate_json((out / "runs.json").read_text()) == found
    tests = []
    for run in found.runs:
        results = json.loads((out / f"split-{run.split}-seed-{run.seed}" / "results.json").read_text())
        tests += [figure["value"] for figure in results["results"] if figure["split"] == "test"]
    assert found.test == Mean(mean=statistics.fmean(tests), std=statistics.stdev(tests))
    # The folder is one that a comparison takes.
    monkeypatch.setattr("zoo.workflows.compare.run_tasks", in_this_process)
    assert compare([out], tmp_path / "compared", **options).models[0].test == found.test


def test_what_cannot_be_several_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--splits 4: three_splits has 3 splits"):
        train_many(tiny(), tmp_path / "out", num_splits=4, device="cpu")
    with pytest.raises(RunError, match="--device gpu: no such device"):
        train_many(tiny(), tmp_path / "out", device="cpu,gpu")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.json").write_text("{}")
    with pytest.raises(RunError, match="out: holds a single run; choose another --out for several"):
        train_many(tiny(), tmp_path / "out", device="cpu")


def test_a_warm_process_trains_as_a_new_one_and_is_replaced_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_BACKEND", "chunked")
    processes: list[Any] = []

    def noted(command: list[str], **options: Any) -> Any:
        processes.append(popen(command, **options))
        return processes[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", noted)
    absent = tiny(data={"dataset": "file", "path": str(tmp_path / "absent.npz")})
    recipes = {"fails": absent, "first": tiny(), "second": tiny(train__seed=1)}
    tasks = [
        Task(label, TrainRequest(recipe=recipe, folder=str(tmp_path / label), device="", num_threads=1))
        for label, recipe in recipes.items()
    ]
    progress = Progress(3, unit="run", quiet=True)
    ended = {
        task.label: answer
        for task, answer in run_tasks(tasks, devices=["cpu"], warm=True, stop=StopRequest(), progress=progress)
    }
    assert isinstance(ended["fails"], RunError)
    assert len(processes) == 2
    assert all(process.returncode == 0 for process in processes)
    train(tiny(train__seed=1), tmp_path / "here", device="cpu", num_threads=1, quiet=True)
    losses = [
        [json.loads(line)["train_loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("second", "here")
    ]
    assert losses[0] == losses[1]
    assert ended["second"]["results"] == json.loads((tmp_path / "here" / "results.json").read_text())["results"]  # type: ignore[index]


def test_the_p_value_is_that_of_wilcoxon_over_pairs_of_runs() -> None:
    def entry(*tests: float) -> CompareEntry:
        runs = tuple(RunScores(split=split, seed=0, valid=test, test=test) for split, test in enumerate(tests))
        mean = Mean.of(tests)
        sizes = {"num_layers": 1, "hidden_channels": 1, "num_parameters": 1, "peak_bytes": 1}
        return CompareEntry(name="m", type="rev", runs=runs, valid=mean, test=mean, step_s=1, epoch_s=1, **sizes)

    first = entry(0.1, 0.2, 0.3, 0.4, 0.5)
    assert p_value(entry(0.11, 0.22, 0.33, 0.44, 0.55), first) == pytest.approx(2 / 2**5)
    # Of ranks 1 to 5, the two negative ones sum to 3: ten of the 32 signs are as far from the middle.
    assert p_value(entry(0.09, 0.18, 0.33, 0.44, 0.55), first) == pytest.approx(10 / 2**5)
    assert p_value(first, first) == 1
    assert p_value(entry(0.1), first) is None
