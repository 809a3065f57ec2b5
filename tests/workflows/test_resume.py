import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.forked import CONTEXT
from tests.workflows.small import small_recipe, write_graph
from zoo import tensor_file
from zoo.errors import RunError, ZooWarning
from zoo.models.factory import build_model
from zoo.ops.dispatch import set_backend
from zoo.spec.recipe import Recipe
from zoo.spec.results import Environment, RunResults
from zoo.workflows import state
from zoo.workflows import train as module
from zoo.workflows.run_dir import RunDir
from zoo.workflows.session import StoppedError
from zoo.workflows.state import RunState
from zoo.workflows.step import build_optimizer
from zoo.workflows.train import train

# What depends on the clock, not on the computation.
CLOCK = ("epoch_s", "peak_memory_bytes", "train_s", "rank_memory_bytes", "rank_busy_s")


def run(recipe: Recipe, out: Path, **options: Any) -> RunResults:
    return train(recipe, out, device="cpu", quiet=True, **options)


def outcome(out: Path) -> tuple[Any, ...]:
    """All that a run computed: weights, final state, log, results."""
    directory = RunDir(out)
    final = directory.latest_state()
    results = directory.results()
    assert final is not None
    assert results is not None
    records = [{key: value for key, value in record.items() if key not in CLOCK} for record in directory.metrics()]
    # A run that was stopped in its last evaluation carries the logits so far.
    tensors = {name: t.tolist() for name, t in final.tensors.items() if not name.startswith("evaluation/")}
    tree = {key: value for key, value in final.tree["cursor"].items() if key not in (*CLOCK, "log_bytes")}
    # A teacher has a run directory, and so an outcome, of its own.
    kept = {key: value for key, value in results.to_json().items() if key not in (*CLOCK, "teacher")}
    return (out / "best.safetensors").read_bytes(), tensors, tree, records, kept


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...]]:
    """The graph's folder and the outcome of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    run(small_recipe(folder), folder / "run")
    return folder, outcome(folder / "run")


def no_strays(out: Path) -> bool:
    return not [path.name for path in out.iterdir() if ".tmp-" in path.name]


# A run has 8 steps and 8 + 6 + 4 parts of evaluations; the numbers count both.
@pytest.mark.parametrize("stop_at", [1, 2, 3, 5, 8, 14, 25, 30])
def test_a_stopped_run_ends_like_one_that_was_not(
    stop_at: int, reference: tuple[Path, tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(reference[0])
    calls = iter(range(1, 1000))
    autocast = module.session.autocast

    def counted(*arguments: Any) -> Any:
        if next(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return autocast(*arguments)

    with monkeypatch.context() as context:
        context.setattr(module.session, "autocast", counted)
        with pytest.raises(StoppedError, match=r"SIGTERM at epoch .*; saved: .*state-\d+.safetensors") as error:
            run(recipe, tmp_path / "run")
    assert error.value.exit_code == 143
    run(recipe, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == reference[1]
    assert no_strays(tmp_path / "run")


def test_an_unfinished_run_of_version_1_is_resumed(
    reference: tuple[Path, tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = small_recipe(reference[0]), tmp_path / "run"
    original = module.training_step

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as context:
        context.setattr(module, "training_step", stopped)
        with pytest.raises(StoppedError):
            run(recipe, out)
    held = json.loads((out / "recipe.json").read_text())
    held["schema_version"] = 1
    held["train"] |= {"capture": False, "edge_precision": "fp32"}
    (out / "recipe.json").write_text(json.dumps(held))
    run(recipe, out, resume=True)
    assert outcome(out) == reference[1]


def test_ctrl_c_saves_too_and_a_second_one_leaves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(times: int) -> None:
        original = module.training_step

        def patched(*arguments: Any) -> Any:
            loss = original(*arguments)
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
            return loss

        monkeypatch.setattr(module, "training_step", patched)

    recipe = small_recipe(tmp_path)
    # A shell without job control starts its background processes with SIGINT ignored, and runs respect that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context():
            interrupt(1)
            with pytest.raises(StoppedError) as error:
                run(recipe, tmp_path / "once")
        assert error.value.exit_code == 130
        assert RunDir(tmp_path / "once").latest_state() is not None
        with monkeypatch.context():
            interrupt(2)
            with pytest.raises(KeyboardInterrupt):
                run(recipe, tmp_path / "twice")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def kill_runs(folder: Path, cases: Sequence[str]) -> None:
    """Fork a run for each case, which is killed before some call of a function of ``os``."""
    torch.set_num_threads(1)
    set_backend("chunked")
    # Save after every epoch, however long a save takes.
    state._MAX_SHARE = 1e9
    module.plot = lambda run, out=None: run.curves_path
    recipe = small_recipe(folder)
    # What the first run of a process imports is imported once.
    run(recipe, folder / "warm")
    for case in cases:
        child = os.fork()
        if child == 0:
            name, count = case.split("-")
            original, calls = getattr(os, name), iter(range(1, 1000))

            def patched(*arguments: Any) -> Any:
                if next(calls) == int(count):  # noqa: B023
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments)  # noqa: B023

            setattr(os, name, patched)
            run(recipe, folder / case)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, case


# Files are written, then flushed (fsync), then renamed (replace), then their folder is flushed (fsync). The counts hit
# the recipe, the log, the best weights and the states of several epochs, before and after the rename.
KILLS = ("replace-1", "replace-2", "replace-3", "fsync-6", "fsync-8", "fsync-13", "fsync-15")


@pytest.fixture(scope="module")
def killed_runs(reference: tuple[Path, tuple[Any, ...]]) -> Path:
    """Runs that were killed, each at another moment."""
    process = CONTEXT.Process(target=kill_runs, args=(reference[0], KILLS))
    process.start()
    process.join()
    assert process.exitcode == 0
    return reference[0]


@pytest.mark.parametrize("case", KILLS)
def test_a_killed_run_resumes_to_the_same_end(
    case: str, killed_runs: Path, reference: tuple[Path, tuple[Any, ...]]
) -> None:
    run(small_recipe(killed_runs), killed_runs / case, resume=True)
    assert outcome(killed_runs / case) == reference[1]
    assert no_strays(killed_runs / case)


@pytest.fixture(scope="module")
def stopped_once(reference: tuple[Path, tuple[Any, ...]], killed_runs: Path) -> Path:
    """A run stopped after 6 of its 8 steps, with the states of two steps."""
    out, steps = reference[0] / "stopped", []
    original = module.training_step

    def patched(*arguments: Any) -> Any:
        loss = original(*arguments)
        steps.append(loss)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with pytest.MonkeyPatch.context() as context:
        context.setattr(module, "training_step", patched)
        # Save after every epoch, however long a save takes.
        context.setattr(state, "_MAX_SHARE", 1e9)
        with pytest.raises(StoppedError):
            run(small_recipe(reference[0]), out)
    assert [path.name for path in RunDir(out).states()] == ["state-6.safetensors", "state-4.safetensors"]
    return out


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    shutil.copytree(stopped_once, tmp_path / "run")
    return tmp_path / "run"


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGE = {
    "halved": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: b"\0" * len(data),
    "last_bytes_zero": lambda data: data[:-400] + b"\0" * 400,
    "one_bit_of_the_data": lambda data: flip(data, len(data) - 50),
    "one_digit_of_the_tree": lambda data: data.replace(b'"step": 6', b'"step": 7', 1),
    "header_length": lambda data: b"\xff" * 7 + b"\x3f" + data[8:],
    "noise": lambda data: bytes(i * 37 % 251 for i in range(len(data))),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_state_is_passed_over(kind: str, reference: tuple[Path, tuple[Any, ...]], stopped: Path) -> None:
    newest = RunDir(stopped).states()[0]
    before = newest.read_bytes()
    newest.write_bytes(DAMAGE[kind](before))
    assert newest.read_bytes() != before
    with pytest.warns(ZooWarning, match=r"state-6.safetensors: damaged") as warnings:
        run(RunDir(stopped).recipe(), stopped, resume=True)
    assert len(warnings) == 1
    assert outcome(stopped) == reference[1]


def test_without_a_whole_state_nothing_is_touched(stopped: Path) -> None:
    for path in RunDir(stopped).states():
        path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    with pytest.warns(ZooWarning), pytest.raises(RunError, match="no saved state can be continued"):
        run(RunDir(stopped).recipe(), stopped, resume=True)
    assert {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()} == before


def test_restore_then_save_gives_the_same_file(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock alone goes on.
    monkeypatch.setattr(RunState, "epoch_s", lambda state: state.cursor.epoch_s)
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    directory = RunDir(copy)
    saved = directory.states()[0]
    before = saved.read_bytes()
    tree = directory.latest_state().tree  # type: ignore[union-attr]
    recipe = directory.recipe()
    model = build_model(recipe.model, directory_shape(directory))
    optimizer = build_optimizer(recipe.train.optimizer, model)
    environment = Environment.model_validate(tree["environment"])
    restored = RunState(recipe, directory, model, optimizer, tree["identity"], environment)
    assert restored.restore()
    saved.unlink()
    assert restored.save() == saved
    assert saved.read_bytes() == before


def directory_shape(directory: RunDir) -> Any:
    best = directory.best()
    assert best is not None
    return best.epoch.shape


@pytest.mark.parametrize(
    "spec",
    [{"type": "adamw"}, {"type": "sgd", "momentum": 0.9, "lr": 0.1}, {"type": "sgd", "lr": 0.1}, {"type": "rmsprop"}],
)
def test_every_optimizer_resumes_exactly(spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"train__optimizer": {"lr": 0.01, **spec}, "train__num_epochs": 2, "model__norm": "batch"}
    recipe = small_recipe(tmp_path, **keys)
    run(recipe, tmp_path / "whole")
    original, calls = module.training_step, iter(range(1, 100))

    def patched(*arguments: Any) -> Any:
        loss = original(*arguments)
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with monkeypatch.context() as context:
        context.setattr(module, "training_step", patched)
        with pytest.raises(StoppedError):
            run(recipe, tmp_path / "cut")
    run(recipe, tmp_path / "cut", resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_optimizer_state_is_kept_by_name(finished_run: Path) -> None:
    saved = RunDir(finished_run).latest_state()
    assert saved is not None
    names = {name.removeprefix("model/") for name in saved.tensors if name.startswith("model/")}
    for key in ("exp_avg", "exp_avg_sq", "step"):
        assert {
            n.removeprefix(f"optimizer/{key}/") for n in saved.tensors if n.startswith(f"optimizer/{key}/")
        } == names


def test_a_run_on_other_data_is_not_continued(stopped: Path) -> None:
    recipe = RunDir(stopped).recipe()
    graph = Path(recipe.data.path)
    before = graph.read_bytes()
    try:
        write_graph(graph, y=np.arange(90) // 30)
        with pytest.raises(RunError, match="cannot continue: the data changed since the state was saved"):
            run(recipe, stopped, resume=True)
    finally:
        graph.write_bytes(before)


def test_a_changed_number_of_threads_is_told(stopped: Path) -> None:
    try:
        with pytest.warns(ZooWarning, match="num_threads was 1 and is now 2: results may differ slightly"):
            run(RunDir(stopped).recipe(), stopped, resume=True, num_threads=2)
    finally:
        torch.set_num_threads(1)


def fill_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[str], bool]) -> None:
    """Let files of some names fail at the last step of their writing."""
    replace = os.replace

    def replace_if_there_is_space(source: Path, target: Path) -> None:
        if is_full(Path(target).name):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_if_there_is_space)


def test_a_full_disk_while_training_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path)
    calls = iter(range(1, 100))
    fill_disk(monkeypatch, lambda name: name.startswith("state-") and next(calls) in (1, 2))
    monkeypatch.setattr(state, "_MAX_SHARE", 1e9)
    with pytest.warns(ZooWarning, match="No space left on device") as warnings:
        results = run(recipe, tmp_path / "run")
    assert results.num_epochs == 4
    # It is said once until there is room again.
    assert len(warnings) == 1


def test_a_full_disk_at_the_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_MAX_SHARE", 0.0)
    fill_disk(monkeypatch, lambda name: name == "state-8.safetensors")
    with pytest.raises(RunError, match=r"state-8.safetensors: cannot be written: No space left on device"):
        run(small_recipe(tmp_path), tmp_path / "run")
    assert RunDir(tmp_path / "run").results() is None


def test_a_state_of_a_newer_format_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDir(stopped)
    saved = directory.latest_state()
    assert saved is not None
    with monkeypatch.context() as context:
        context.setattr(tensor_file, "FORMAT", 3)
        directory.write_state(6, saved.tensors, saved.tree)
    # The state before it is not taken: the newer version has trained further.
    with pytest.raises(RunError, match=r"state-6.* written by a newer version of revgnn-zoo; continue .* with that"):
        run(directory.recipe(), stopped, resume=True)


def test_the_cursor_survives_json() -> None:
    cursor = state.Cursor(epoch=3, part=1, step=5, loss_sum=0.1 + 0.2, num_losses=1, log_bytes=10, train_s=1.5)
    assert state.Cursor(**json.loads(json.dumps(dataclasses.asdict(cursor)))) == cursor
