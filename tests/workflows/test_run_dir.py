import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workflows.small import small_recipe
from zoo.errors import RunError, ZooError
from zoo.files import write_json
from zoo.workflows.export import export
from zoo.workflows.load import describe_folder, load
from zoo.workflows.plot import plot
from zoo.workflows.recipes import recipe_digest
from zoo.workflows.run_dir import RunDir, open_run
from zoo.workflows.step import diverged
from zoo.workflows.train import train


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, out: Path, *, resume: bool = False, **places: object) -> str:
    """The message with which a run is refused; the folder must stay as it is."""
    before = tree(folder)
    with pytest.raises(RunError) as error:
        train(small_recipe(folder, **places), out, device="cpu", quiet=True, resume=resume)
    after = tree(folder)
    after.pop("multiclass.npz", None)
    before.pop("multiclass.npz", None)
    assert after == before
    return str(error.value)


def test_another_run_is_never_overwritten(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    for resume in (False, True):
        message = refused(tmp_path, tmp_path / "run", resume=resume, train__seed=5, model__num_layers=4)
        assert "holds another run (" in message
        assert "model.num_layers: 2 there, 4 here" in message
        assert "train.seed: 0 there, 5 here" in message


def test_a_finished_run_is_left_alone(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished_run.iterdir() if path.is_file()
    }
    results = train(RunDir(finished_run).recipe(), finished_run, device="cpu")
    assert results == RunDir(finished_run).results()
    assert "already done" in capsys.readouterr().err
    del before[".lock"]
    after = {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished_run.iterdir() if path.is_file()
    }
    del after[".lock"]
    assert after == before


def test_an_unfinished_run_needs_resume(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    recipe = RunDir(finished_run).recipe()
    with pytest.raises(RunError, match="holds an unfinished run of this recipe; continue it with --resume"):
        train(recipe, tmp_path / "run", device="cpu", quiet=True)


def test_a_run_that_ended_before_its_first_epoch_is_no_obstacle(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", small_recipe(tmp_path), resume=False):
        pass
    with open_run(tmp_path / "run", small_recipe(tmp_path, train__seed=3), resume=False) as run:
        assert run.recipe().train.seed == 3


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    assert "not empty (it holds 'chapter.txt') and not a run" in refused(tmp_path, tmp_path / "thesis")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "is not a folder" in refused(tmp_path, tmp_path / "file")
    assert "cannot be written: Not a directory" in refused(tmp_path, tmp_path / "file" / "run")


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "is not a folder" in refused(tmp_path, tmp_path / "link")


def test_a_place_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: object, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as a user whom no permission stops.
    monkeypatch.setattr(os, "mkdir", forbidden)
    with (
        pytest.raises(RunError, match="run: cannot be written: Permission denied"),
        open_run(tmp_path / "run", small_recipe(tmp_path), resume=False),
    ):
        pass


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert "cannot be written: File name too long" in refused(tmp_path, tmp_path / ("a" * 300))


def test_a_run_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    with open_run(tmp_path / "run", recipe, resume=False):
        message = refused(tmp_path, tmp_path / "run", resume=True)
    assert f"in use by process {os.getpid()}" in message
    with open_run(tmp_path / "run", recipe, resume=True):
        pass


def test_stale_temporary_files_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json.tmp-0123abcd").write_text("half")
    with open_run(run, recipe, resume=False):
        assert sorted(path.name for path in run.iterdir()) == [".lock", "recipe.json"]
    (run / "state-5.safetensors.tmp-0123abcd").write_text("half")
    (run / "notes.tmp-of-mine").write_text("precious")
    (run / "metrics.jsonl").write_text("")
    with open_run(run, recipe, resume=True):
        assert not (run / "state-5.safetensors.tmp-0123abcd").exists()
        assert (run / "notes.tmp-of-mine").read_text() == "precious"


def test_the_newest_two_states_are_kept(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", small_recipe(tmp_path), resume=False) as run:
        for step in (2, 10, 9):
            run.write_state(step, {"a": torch.tensor(float(step))}, {"step": step})
        assert [path.name for path in run.states()] == ["state-10.safetensors", "state-9.safetensors"]
        latest = run.latest_state()
    assert latest is not None
    assert latest.tree == {"step": 10}


def test_only_what_decides_the_numbers_is_in_the_digest(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    assert recipe_digest(small_recipe(tmp_path, summary="Other words.")) == recipe_digest(recipe)
    assert recipe_digest(small_recipe(tmp_path, train__seed=0)) == recipe_digest(recipe)
    assert recipe_digest(small_recipe(tmp_path, train__seed=1)) != recipe_digest(recipe)


@pytest.mark.parametrize("damage", ["", "{", '{"results": []}{', '{"name": "small", "name": 1}'])
def test_a_damaged_recipe_or_log_is_an_error(damage: str, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "recipe.json").write_text(damage)
    with pytest.raises(ZooError, match=r"recipe\.json"):
        RunDir(tmp_path / "run").recipe()
    (tmp_path / "run" / "metrics.jsonl").write_text(f"{damage}\n")
    if damage:
        with pytest.raises(RunError, match=r"metrics\.jsonl:1"):
            RunDir(tmp_path / "run").metrics()


RESULTS: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "name: missing"),
    "no_figures": (lambda d: d.pop("results"), "results: missing"),
    "a_figure_without_a_value": (lambda d: d["results"][0].pop("value"), "results[0].value: missing"),
    "a_figure_above_one": (lambda d: d["results"][0].update(value=2.0), "results[0].value"),
    "figures_as_text": (lambda d: d.update(results="good"), "results: expected a list"),
    "no_epochs": (lambda d: d.pop("num_epochs"), "num_epochs: missing"),
    "no_environment": (lambda d: d.pop("environment"), "environment: missing"),
    "a_nameless_device": (lambda d: d["environment"].pop("device"), "environment.device: missing"),
    "a_baseline_of_text": (lambda d: d.update(baseline={"test": "good"}), "baseline.test"),
    "an_unknown_key": (lambda d: d.update(result=1), "result: unknown key"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_malformed_results_are_an_error(case: str, finished_run: Path, tmp_path: Path) -> None:
    change, expected = RESULTS[case]
    shutil.copytree(finished_run, tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    data = json.loads(path.read_text()) if callable(change) else change
    if callable(change):
        change(data)
    path.write_text(json.dumps(data))
    recipe = RunDir(finished_run).recipe()
    readers: tuple[Callable[[], object], ...] = (
        lambda: RunDir(tmp_path / "run").results(),
        lambda: export(tmp_path / "run"),
        lambda: describe_folder(tmp_path / "run"),
        lambda: train(recipe, tmp_path / "run", device="cpu", quiet=True),
    )
    for read in readers:
        with pytest.raises(RunError) as error:
            read()
        assert f"{path}: {expected}" in str(error.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{}", "epoch: missing"),
        ('{"epoch": 1}', "train_loss: missing"),
        ('{"epoch": "1", "train_loss": 0.5}', "epoch: expected an integer"),
        ('{"epoch": 1, "train_loss": 0.5, "valid_accuracy": "good"}', "valid_accuracy: expected a number"),
        ('{"epoch": 1, "train_loss": null}', "train_loss"),
    ],
)
def test_a_malformed_line_of_the_log_is_an_error(line: str, expected: str, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + line + "\n")
    for read in (RunDir.metrics, plot):
        with pytest.raises(RunError) as error:
            read(RunDir(tmp_path / "run"))
        assert f"{path}:5: {expected}" in str(error.value)


def test_damaged_results_are_measured_again(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    path, recipe = tmp_path / "run" / "results.json", RunDir(finished_run).recipe()
    before = json.loads(path.read_text())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"results.json.*; without that file, train --resume measures the results again"):
        train(recipe, tmp_path / "run", device="cpu", quiet=True, resume=True)
    path.unlink()
    train(recipe, tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert json.loads(path.read_text())["results"] == before["results"]


def test_a_shortened_log_is_noticed(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="shorter than when the state was saved"):
        RunDir(tmp_path / "run").append_metrics([], 10)


def test_a_folder_that_is_deleted_under_a_run_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"recipe\.json: cannot be written: No such file or directory"),
        open_run(tmp_path / "run", small_recipe(tmp_path), resume=False) as run,
    ):
        write_json(Path(shutil.move(run.path, tmp_path / "away")).parent / "run" / "recipe.json", {}, RunError)


def test_a_run_that_diverges_after_its_folder_is_gone_says_that_it_diverged(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", small_recipe(tmp_path), resume=False) as directory:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(RunError, match="run: cannot be read: No such file or directory"):
            directory.states()
        error = diverged(directory, "epoch 1, part 2", "the loss is nan", torch.nn.Linear(2, 2))
    assert "epoch 1, part 2: the loss is nan; no state was saved yet" in str(error)


def test_who_comes_too_late_leaves_the_folder_of_the_first_alone(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    real = Path.exists

    def not_yet(path: Path, **options: Any) -> bool:
        # As it was before the first came.
        return path != tmp_path / "run" and real(path, **options)

    with open_run(tmp_path / "run", recipe, resume=False):
        with pytest.MonkeyPatch.context() as context:
            context.setattr(Path, "exists", not_yet)
            with (
                pytest.raises(RunError, match="in use by process"),
                open_run(tmp_path / "run", recipe, resume=False),
            ):
                pass
        assert (tmp_path / "run" / "recipe.json").is_file()


def test_without_room_for_the_lock_nothing_is_in_the_way_of_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(Path, "write_text", full)
    with (
        pytest.raises(RunError, match="cannot be written: No space left on device"),
        open_run(tmp_path / "run", small_recipe(tmp_path), resume=False),
    ):
        pass
    # What is left is at most the file of the lock, and that is no obstacle.
    monkeypatch.undo()
    with open_run(tmp_path / "run", small_recipe(tmp_path), resume=False):
        pass


def test_a_file_system_that_cannot_flush_folders_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    with open_run(tmp_path / "run", small_recipe(tmp_path), resume=False) as run:
        assert run.recipe().name == "small"


def test_a_finished_run_without_its_weights_says_what_is_missing(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").unlink()
    for read in (export, load):
        with pytest.raises(RunError, match=r"best.safetensors is missing; put it back from a copy, or train again"):
            read(tmp_path / "run")
