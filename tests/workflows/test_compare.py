"""Comparing models: two tiny ones on a tiny graph with three splits.

Tasks run in this process but where processes are the point.
"""

import io
import json
import math
import shutil
import signal
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tests.workflows.small import NUM_NODES, changed, write_graph
from zoo.data.datasets import DATASETS
from zoo.errors import BundleError, RecipeError, RunError
from zoo.spec.base import parse_spec
from zoo.spec.recipe import Recipe, parse_recipe
from zoo.spec.results import ReportedResult
from zoo.workflows import compare as compare_module
from zoo.workflows import runs as many_module
from zoo.workflows import train as train_module
from zoo.workflows.compare import compare, read_entries
from zoo.workflows.compare_report import (
    HEAD,
    BaselineEntry,
    CompareResults,
    Mean,
    caption,
    markdown,
    picture,
    rows,
)
from zoo.workflows.export import export
from zoo.workflows.plot import png
from zoo.workflows.progress import Progress
from zoo.workflows.recipes import recipe_on_data
from zoo.workflows.session import StopRequest
from zoo.workflows.worker import MeasureRequest, Task, TrainRequest, run_tasks, work

NUM_SPLITS = 3
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TINY: dict[str, Any] = {
    "schema_version": 2,
    "name": "tiny_rev",
    "summary": "A recipe for tests.",
    "data": {"dataset": "file", "path": "three_splits.npz"},
    "model": {"type": "rev", "num_layers": 2, "hidden_channels": 8, "conv": {"type": "gcn"}},
    "train": {"num_epochs": 2, "loss": "cross_entropy", "optimizer": {"type": "adam", "lr": 0.01}},
    "eval": {"metric": "accuracy"},
}


def tiny(**places: Any) -> Recipe:
    return parse_recipe(changed(TINY, **places), where="tiny")


def tiny_res(**places: Any) -> Recipe:
    return tiny(name="tiny_res", model__type="res", **places)


def in_this_process(tasks: list[Task], *, devices: list[str], **_: Any) -> Iterator[tuple[Task, dict[str, Any]]]:
    for task in tasks:
        yield task, work(task.request.model_copy(update={"device": devices[0]}))  # type: ignore[arg-type]


def write_splits(folder: Path, num_splits: int) -> None:
    rng = np.random.RandomState(1)
    parts = np.stack([rng.permutation(NUM_NODES) * 3 // NUM_NODES for _ in range(num_splits)])  # [num_splits, N]
    masks = {name: parts == index for index, name in enumerate(("train_mask", "valid_mask", "test_mask"))}
    write_graph(folder / "three_splits.npz", **masks)


@pytest.fixture(autouse=True, scope="module")
def _no_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("data")
    write_splits(folder, NUM_SPLITS)
    with pytest.MonkeyPatch.context() as context:
        context.setenv("ZOO_DATA", str(folder))
        for module in (compare_module, many_module):
            context.setattr(module, "run_tasks", in_this_process)
        context.setattr(train_module, "plot", lambda run: None)
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, _no_processes: None) -> tuple[CompareResults, Path]:
    """Two models on two splits; tests that change the folder make a copy."""
    out = tmp_path_factory.mktemp("compared") / "out"
    result = compare([tiny(), tiny_res()], out, num_splits=2, device="cpu", quiet=True)
    return result, out


@pytest.fixture(autouse=True)
def _no_chart(compared: tuple[CompareResults, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # A picture takes longer than all else in a comparison this small; the one above has its own.
    monkeypatch.setattr(compare_module, "png", lambda figure: b"")


def modified(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.glob("*/*/*")}


def test_figures_are_those_of_the_run_directories(compared: tuple[CompareResults, Path]) -> None:
    result, out = compared
    assert [model.name for model in result.models] == ["tiny_rev", "tiny_res"]
    for model in result.models:
        assert [(run.split, run.seed) for run in model.runs] == [(0, 0), (1, 0)]
        for run in model.runs:
            folder = out / model.name / f"split-{run.split}-seed-{run.seed}"
            recipe = json.loads((folder / "recipe.json").read_text())
            assert (recipe["data"]["split"], recipe["train"]["seed"]) == (run.split, run.seed)
            results = json.loads((folder / "results.json").read_text())
            held = {figure["split"]: figure["value"] for figure in results["results"]}
            assert (run.valid, run.test) == (held["valid"], held["test"])
            assert (run.train_s, model.num_parameters) == (results["train_s"], results["num_parameters"])
        tests = [run.test for run in model.runs]
        mean = sum(tests) / 2
        assert model.test.mean == pytest.approx(mean)
        assert model.test.std == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in tests)))
        assert model.train_s == pytest.approx(sum(run.train_s for run in model.runs), abs=1e-3)
        assert model.step_s > 0
        assert model.epoch_s > model.step_s
    baseline = result.baseline
    assert baseline is not None
    assert [row.split for row in baseline.runs] == [0, 1]
    assert baseline.test.mean == statistics.fmean(row.test for row in baseline.runs)


def test_table_picture_and_json_are_written(compared: tuple[CompareResults, Path]) -> None:
    result, out = compared
    assert CompareResults.model_validate_json((out / "compare.json").read_text()) == result
    lines = (out / "compare.md").read_text().splitlines()
    assert lines[0] == f"| {' | '.join(HEAD)} |"
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| tiny_rev", "| tiny_res", "| logistic regression"]
    test = result.models[0].test
    assert f"{test.mean:.4f} ± {test.std:.4f}" in lines[2]
    assert "- mean with the sample standard deviation over 2 runs (2 splits x 1 seed)" in lines
    assert matplotlib.image.imread(io.BytesIO((out / "compare.png").read_bytes())).shape[:2] == (720, 1950)


def test_finished_runs_are_not_trained_again(
    compared: tuple[CompareResults, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, out = compared
    shutil.copytree(out, tmp_path / "out")
    before, started = modified(tmp_path / "out"), []

    def noted(tasks: list[Task], **options: Any) -> Iterator[tuple[Task, dict[str, Any]]]:
        started.extend(task.label for task in tasks)
        return in_this_process(tasks, **options)

    monkeypatch.setattr(many_module, "run_tasks", noted)
    again = compare([tiny(), tiny_res()], tmp_path / "out", num_splits=2, device="cpu", quiet=True)
    assert (again, started) == (result, [])
    more = compare([tiny(), tiny_res()], tmp_path / "out", num_splits=1, num_seeds=2, device="cpu", quiet=True)
    assert started == ["tiny_rev, split 0, seed 1", "tiny_res, split 0, seed 1"]
    assert [run.seed for run in more.models[1].runs] == [0, 1]
    assert more.models[1].runs[0] == result.models[1].runs[0]
    assert before.items() <= modified(tmp_path / "out").items()


def test_all_splits_are_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []

    def noted(tasks: list[Task], **options: Any) -> Iterator[tuple[Task, dict[str, Any]]]:
        labels.extend(task.label for task in tasks)
        raise RunError("enough")

    monkeypatch.setattr(many_module, "run_tasks", noted)
    with pytest.raises(RunError, match="enough"):
        compare([tiny(train__seed=7)], tmp_path / "out", device="cpu", quiet=True)
    assert labels == [f"tiny_rev, split {split}, seed 7" for split in range(NUM_SPLITS)]


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Five minutes, so that a process that does not stop fails the test instead of holding up all others."""

    def too_late(signum: int, frame: object) -> None:
        raise TimeoutError("the test took longer than five minutes")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("time_limit")
@pytest.mark.usefixtures("real_workers")
def test_a_stop_is_passed_on_and_the_run_is_saved_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_BACKEND", "chunked")
    # As a shell does to its background processes; those that they start inherit it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    recipe, folder = tiny(train__num_epochs=100_000), tmp_path / "run"
    request = TrainRequest(recipe=recipe, folder=str(folder), device="cpu", num_threads=1)

    class Stop(StopRequest):
        """Ctrl-C as soon as something is recorded."""

        def __bool__(self) -> bool:
            if (folder / "metrics.jsonl").exists():
                self.signum = signal.SIGINT
            return super().__bool__()

    started: list[str] = []

    class Stages(Progress):
        """Notes which tasks begin."""

        def stage(self, label: str) -> None:
            started.append(label)

    stop, progress = Stop(), Stages(2, unit="run", quiet=True)
    tasks = [Task("first", request), Task("second", request)]
    try:
        ended = list(run_tasks(tasks, devices=["cpu"], stop=stop, progress=progress))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ended, started, stop.name) == ([], ["first"], "SIGINT")
    num_done = len((folder / "metrics.jsonl").read_text().splitlines())
    assert num_done >= 1
    last = max(int(path.stem.partition("-")[2]) for path in folder.glob("state-*.safetensors"))
    # One line for each whole epoch, one step in each; the signal may come before the next one's end.
    assert last in (num_done, num_done + 1)


@pytest.mark.usefixtures("real_workers")
def test_a_failing_process_is_named_with_its_last_line_and_leaving_the_loop_ends_the_others(
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
    recipes = {"tiny, split 0": absent, "endless": tiny(train__num_epochs=100_000)}
    tasks = [
        Task(label, TrainRequest(recipe=recipe, folder=str(tmp_path / label), device="cpu", num_threads=1))
        for label, recipe in recipes.items()
    ]

    def leave_at_the_first_end() -> None:
        progress = Progress(2, unit="run", quiet=True)
        for task, error in run_tasks(tasks, devices=["cpu", "cpu"], stop=StopRequest(), progress=progress):
            assert task is tasks[0]
            assert isinstance(error, RunError)
            assert str(error).startswith("tiny, split 0: data.path: no such file or folder: ")
            raise KeyError(task.label)

    with pytest.raises(KeyError, match="tiny, split 0") as caught:
        leave_at_the_first_end()
    # The exception that is held here keeps the frames of the loop alive, and the tasks end all the same.
    assert caught.tb is not None
    assert len(processes) == 2
    assert all(process.returncode is not None for process in processes)


def test_memory_is_that_of_activations() -> None:
    found = {}
    for recipe in (tiny(), tiny_res()):
        model = recipe.model.model_copy(update={"num_layers": 12, "hidden_channels": 64})
        data = recipe.data.model_copy(update={"dataset": "digits", "path": ""})
        deep = recipe.model_copy(update={"model": model, "data": data})
        found[recipe.name] = work(MeasureRequest(recipe=deep, device="cpu", num_steps=1))
    # 12 layers, of which plain autograd keeps at least one [1797, 64] tensor each.
    assert found["tiny_res"]["peak_bytes"] > 12 * 1797 * 64 * 4
    assert found["tiny_rev"]["peak_bytes"] < 0.75 * found["tiny_res"]["peak_bytes"]


def test_runs_and_bundles_are_taken_as_they_are(
    compared: tuple[CompareResults, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, out = compared
    bundle, _ = export(out / "tiny_res" / "split-0-seed-0", tmp_path / "bundle")
    found = compare([out / "tiny_rev" / "split-0-seed-0", bundle], tmp_path / "out", device="cpu", quiet=True)
    assert found.splits == (0,)
    assert not list((tmp_path / "out").glob("*/"))
    for model, old in zip(found.models, result.models, strict=True):
        (run,) = model.runs
        assert run.test == pytest.approx(old.runs[0].test, abs=2e-3)
        assert model.test == Mean(mean=run.test)
        assert model.num_parameters == old.num_parameters
    assert found.models[1].train_s is None
    assert rows(found)[1][-1] == "-"
    many = compare([out / "tiny_rev"], tmp_path / "many", device="cpu", quiet=True)
    assert many.models[0].test == result.models[0].test
    assert many.splits == (0, 1)


def test_only_what_was_measured_alike_is_compared(compared: tuple[CompareResults, Path], tmp_path: Path) -> None:
    _, out = compared

    def refused(models: list[Any], expected: str, error: type[Exception] = RunError, **options: Any) -> None:
        with pytest.raises(error, match=expected):
            compare(models, tmp_path / "new", device="cpu", quiet=True, **options)
        assert not (tmp_path / "new").exists()

    half = {"type": "random", "num_parts": 2}
    other = tiny_res(test={"num_views": 3, "partition": half})
    refused([tiny(), other], "tiny_res: test is 3 views of 2 parts, but whole graph for tiny_rev; ", RecipeError)
    refused([tiny(), tiny_res(eval__metric="micro_f1")], "tiny_res: eval.metric is micro_f1, but accuracy", RecipeError)
    refused([tiny(), tiny_res(data={"dataset": "cora"})], "data.dataset is cora, but file", RecipeError)
    elsewhere = tiny_res(data={"dataset": "file", "path": "other.npz"})
    refused([tiny(), elsewhere], "tiny_res: data.path is other.npz, but three_splits.npz for tiny_rev; ", RecipeError)
    refused([tiny(), tiny(model__num_layers=3)], "tiny_rev: two of the models have this name")
    refused([tiny()], "--splits 4: three_splits has 3 splits", num_splits=4)
    refused([tiny_res(), out / "tiny_rev"], "tiny_rev: measured on split 0, 1, the others on 0 to 2", num_splits=3)
    refused([tiny(train__loss="bce_with_logits")], "train.loss: 'bce_with_logits' does not fit", RecipeError)
    refused([tmp_path / "nothing"], "no such folder", BundleError)


def test_folders_of_other_runs_are_refused(compared: tuple[CompareResults, Path], tmp_path: Path) -> None:
    _, out = compared
    shutil.copytree(out, tmp_path / "out")
    with pytest.raises(RunError, match=r"split-0-seed-0: holds another run \(model.num_layers: 2 there, 3 here\)"):
        compare([tiny(model__num_layers=3)], tmp_path / "out", num_splits=1, device="cpu", quiet=True)
    run = tmp_path / "out" / "tiny_rev" / "split-0-seed-0"
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "data_sha256": "0" * 64}))
    with pytest.raises(RunError, match="was trained on other data than three_splits is now"):
        compare([tiny()], tmp_path / "out", num_splits=1, device="cpu", quiet=True)
    (run / "results.json").unlink()
    with pytest.raises(RunError, match="split-0-seed-0: the run is not finished"):
        read_entries([run])
    (tmp_path / "out" / "measured.json").write_text("{")
    with pytest.raises(RunError, match=r"measured\.json.*not JSON.*remove the file"):
        compare([tiny_res()], tmp_path / "out", num_splits=1, device="cpu", quiet=True)


def test_runs_on_splits_that_are_no_longer_there_are_refused(
    compared: tuple[CompareResults, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = compared
    write_splits(tmp_path, 1)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(RunError, match="split-1-seed-0: was trained on other data than three_splits is now"):
        compare([out / "tiny_rev"], tmp_path / "out", device="cpu", quiet=True)


def test_a_recipe_on_the_data_of_another_keeps_its_model_and_optimizer(tmp_path: Path) -> None:
    half = {"type": "random", "num_parts": 2}
    other = changed(
        TINY,
        name="other",
        data={"dataset": "minesweeper", "node_features": ["degree"]},
        train={**TINY["train"], "num_epochs": 9, "loss": "bce_with_logits", "partition": half},
        eval={"metric": "rocauc", "every": 5},
        test={"num_views": 2, "partition": half},
    )
    mine = changed(TINY, source={"paper": "p"}, train={**TINY["train"], "partition": {"type": "full"}, "seed": 3})
    for data in (mine, other):
        (tmp_path / f"{data['name']}.json").write_text(json.dumps(data))
    paths = (tmp_path / "tiny_rev.json", tmp_path / "other.json")
    there = recipe_on_data(*paths, ["train.num_epochs=4"])
    assert (there.name, there.source) == ("tiny_rev", None)
    assert there.model == tiny().model
    assert (there.train.num_epochs, there.train.seed, there.train.optimizer.lr) == (4, 3, 0.01)
    wanted = parse_recipe(other, where="other")
    assert (there.data, there.eval, there.test) == (wanted.data, wanted.eval, wanted.test)
    assert (there.train.loss, there.train.partition) == (wanted.train.loss, wanted.train.partition)
    back = recipe_on_data(*paths[::-1], [])
    assert (back.data, back.test, back.train.partition) == (tiny().data, tiny().test, tiny().train.partition)
    with pytest.raises(RecipeError, match=r"tiny_rev\.json on the data of other: train\.nothing: unknown key"):
        recipe_on_data(*paths, ["train.nothing=1"])


def test_reported_figures_are_rows_and_lines_if_near(
    compared: tuple[CompareResults, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, out = compared
    mean = result.models[0].test.mean
    near = {"split": "test", "metric": "accuracy", "mean": mean, "model": "GCN", "source": "a paper"}
    fields = [
        near,
        {**near, "mean": mean + 0.01, "std": 0.25},
        {**near, "metric": "rocauc"},
        {**near, "mean": mean + 3},
    ]
    known = replace(DATASETS["digits"], reported=tuple(ReportedResult.model_validate(item) for item in fields))
    monkeypatch.setattr("zoo.workflows.compare.DATASETS", {result.data.dataset: known})
    found = compare([out / "tiny_rev"], out.parent / "again", device="cpu", quiet=True)
    test = HEAD.index("test")
    assert [row[test] for row in rows(found)[2:]] == [f"{mean:.4f}", f"{mean + 0.01:.4f} ± 0.2500", f"{mean + 3:.4f}"]
    assert "| reported: GCN | - |" in markdown(found)
    alone = picture(result.model_copy(update={"models": result.models[:1], "reported": ()}))
    assert len(picture(found).axes[0].lines) == len(alone.axes[0].lines) + 2


def test_what_does_not_compare_is_said(compared: tuple[CompareResults, Path], tmp_path: Path) -> None:
    _, out = compared
    shutil.copytree(out, tmp_path / "out")
    run = tmp_path / "out" / "tiny_rev" / "split-0-seed-0"
    results = json.loads((run / "results.json").read_text())
    results["environment"]["device"] = "another CPU"
    (run / "results.json").write_text(json.dumps(results))
    models = [tiny(), tiny_res(data={**TINY["data"], "node_features": ["node", "degree"]})]
    found = compare([models[0]], tmp_path / "out", num_splits=1, device="cpu", quiet=True)
    assert not found.notes
    found = compare(models, tmp_path / "two", num_splits=1, device="cpu,cpu", quiet=True)
    assert any("data.node_features differs" in note for note in found.notes)
    assert any("up to 2 runs were trained at the same time" in note for note in found.notes)
    assert caption(found)[-2:] == list(found.notes)


@pytest.mark.parametrize("num_models", [2, 8, 14])
def test_the_legend_names_every_model_and_covers_no_panel(
    compared: tuple[CompareResults, Path], num_models: int
) -> None:
    first = compared[0].models[0]
    models = [
        first.model_copy(update={"name": f"model_{index}", "test": Mean(mean=0.88 + 0.002 * index, std=0.003)})
        for index in range(num_models)
    ]
    scores = BaselineEntry(runs=(), valid=Mean(mean=0.875), test=Mean(mean=0.875))
    result = compared[0].model_copy(update={"models": tuple(models), "baseline": scores})
    figure = picture(result)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [model.name for model in models]
    assert [text.get_text() for text in figure.axes[0].texts] == ["logistic regression"]
    renderer = canvas.get_renderer()
    box = legend.get_window_extent(renderer)
    assert not any(box.overlaps(axes.get_tightbbox(renderer)) for axes in figure.axes)
    assert box.y0 >= 0
    assert png(picture(result)).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["compare_cora", "compare_minesweeper"])
def test_results_written_before_are_read_and_drawn(name: str) -> None:
    data = json.loads((RESULTS / f"{name}.json").read_text())
    results = parse_spec(CompareResults, data, where=name)
    assert [row[0] for row in rows(results)][: len(data["models"])] == [model["name"] for model in data["models"]]
    assert png(picture(results)).startswith(b"\x89PNG")
    del data["models"][0]["name"]
    with pytest.raises(RecipeError, match=r"^old: models\[0\]\.name: missing$"):
        parse_spec(CompareResults, data, where="old")


def test_warnings_of_a_model_are_shown_once_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes, one that trains and one that measures: an equilibrium layer that may not iterate warns in both."""
    for module in (compare_module, many_module):
        monkeypatch.setattr(module, "run_tasks", run_tasks)
    monkeypatch.setenv("ZOO_BACKEND", "chunked")
    solver = {"type": "anderson", "max_iters": 2, "tol": 1e-9}
    model = {"type": "deq", "hidden_channels": 8, "conv": {"type": "gcn"}, "solver": solver}
    compare([tiny(name="tiny_deq", model=model)], tmp_path / "out", num_splits=1, device="cpu", num_threads=1)
    assert capsys.readouterr().err.count("Warning: tiny_deq: ") == 1
