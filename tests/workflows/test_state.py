"""What a run keeps when it is stopped, killed, out of disk space or diverged."""

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workflows.small import small_recipe
from tests.workflows.test_resume import CLOCK, outcome, run
from zoo.errors import RunError, ZooWarning
from zoo.spec.recipe import Recipe
from zoo.tensor_file import digest_of, read_saved, write_saved, write_tensors
from zoo.workflows import state
from zoo.workflows import train as module
from zoo.workflows.plot import plot
from zoo.workflows.run_dir import RunDir
from zoo.workflows.session import StoppedError
from zoo.workflows.train import train


def stop_after(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, count: int) -> None:
    """Send SIGTERM when a function has been called so often."""
    original, calls = getattr(target, name), iter(range(1, 10_000))

    def patched(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(target, name, patched)


def improving(folder: Path) -> Recipe:
    """The small recipe, selected by the loss, which each of its four epochs lowers."""
    return small_recipe(folder, eval__select="loss")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted, and beside it its graph."""
    folder = tmp_path_factory.mktemp("whole")
    run(improving(folder), folder / "run")
    return folder


def stopped_run(recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int, share: float = 1e9) -> Path:
    """A run that is stopped after so many steps of one process; by default it saves a state after every epoch."""
    with monkeypatch.context() as context:
        stop_after(context, module, "training_step", num_steps)
        context.setattr(state, "_MAX_SHARE", share)
        with pytest.raises(StoppedError):
            run(recipe, out, resume=True)
    return out


def test_lost_best_weights_are_never_replaced_in_silence(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = stopped_run(improving(whole), tmp_path / "run", monkeypatch, 6)
    before = (out / "metrics.jsonl").read_bytes()
    (out / "best.safetensors").unlink()
    with (
        pytest.warns(ZooWarning, match=r"its best weights are lost: best\.safetensors is missing"),
        pytest.raises(RunError, match=r"no saved state can be continued \(2 tried\); put back what was lost"),
    ):
        run(improving(whole), out, resume=True)
    assert (out / "metrics.jsonl").read_bytes() == before
    assert len(RunDir(out).states()) == 2


def test_damaged_best_weights_leave_everything_as_it_is(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = stopped_run(improving(whole), tmp_path / "run", monkeypatch, 6)
    (out / "best.safetensors").write_bytes((out / "best.safetensors").read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.warns(ZooWarning, match="best.safetensors: damaged"), pytest.raises(RunError, match="put back"):
        run(improving(whole), out, resume=True)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_older_best_weights_lead_back_to_the_state_they_belong_to(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped_run(improving(whole), tmp_path / "run", monkeypatch, 3, share=-1.0)
    # A copy that is made while a run goes on may have the newest state and the best weights of before.
    older = (out / "best.safetensors").read_bytes()
    stopped_run(improving(whole), out, monkeypatch, 2, share=-1.0)
    assert (out / "best.safetensors").read_bytes() != older
    assert [path.name for path in RunDir(out).states()] == ["state-5.safetensors", "state-3.safetensors"]
    (out / "best.safetensors").write_bytes(older)
    with pytest.warns(ZooWarning, match=r"state-5.* its best weights are lost: best.safetensors is of epoch 1"):
        run(improving(whole), out, resume=True)
    assert outcome(out) == outcome(whole / "run")


def test_states_of_the_first_format_are_continued(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = stopped_run(improving(whole), tmp_path / "run", monkeypatch, 6)
    for path in [*RunDir(out).states(), out / "best.safetensors"]:
        write_format_1(path)
    run(improving(whole), out, resume=True)
    assert outcome(out)[1:] == outcome(whole / "run")[1:]


def test_one_process_that_a_launcher_starts_again_resumes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped_run(improving(whole), tmp_path / "run", monkeypatch, 6)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    longer = improving(whole)
    longer = longer.model_copy(update={"train": longer.train.model_copy(update={"num_epochs": 9})})
    with pytest.raises(RunError, match="holds another run"):
        run(longer, out)
    run(improving(whole), out)
    assert outcome(out) == outcome(whole / "run")


def test_an_evaluation_with_rows_of_other_nodes_begins_anew(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped_run(improving(whole), tmp_path / "run", monkeypatch, 6)
    for path in RunDir(out).states():
        saved = read_saved(path)
        # Earlier versions kept rows of all nodes.
        rows = {f"evaluation/{name}": torch.full((91, 3), 1e9) for name in ("eval", "test")}
        write_saved(path, {**saved.tensors, **rows}, {**saved.tree, "partials": {"eval": 1, "test": 1}})
    run(improving(whole), out, resume=True)
    assert outcome(out) == outcome(whole / "run")


def write_format_1(path: Path) -> None:
    """Save a file again as the first version did: without what has come since, a tensor for each name."""
    saved = read_saved(path)
    tree = {key: value for key, value in saved.tree.items() if key not in ("best", "partials", "solves")}
    if "cursor" in tree:
        new = ("epoch_s", "peak_memory_bytes", "record")
        tree["cursor"] = {key: value for key, value in tree["cursor"].items() if key not in new}
    text = json.dumps({"format": 1, **tree}, sort_keys=True)
    metadata = {"zoo": json.dumps({"sha256": digest_of(saved.tensors, text), "tree": text})}
    write_tensors(path, saved.tensors, metadata, RunError)


def test_each_part_of_an_evaluation_is_run_once_however_often_it_is_stopped(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    autocast = module.session.autocast

    def counted(*arguments: Any) -> Any:
        # A signal at each part of an evaluation, none while training.
        counts.append(1)
        if not torch.is_grad_enabled():
            os.kill(os.getpid(), signal.SIGTERM)
        return autocast(*arguments)

    monkeypatch.setattr(module.session, "autocast", counted)
    for num_stops in range(100):  # noqa: B007
        try:
            run(improving(whole), tmp_path / "run", resume=True)
            break
        except StoppedError:
            continue
    # 8 steps, 4 validations of 4 parts, and at the end 6 parts and 4.
    assert (num_stops, len(counts)) == (4 * 4 + 6 + 4, 8 + 4 * 4 + 6 + 4)
    assert outcome(tmp_path / "run") == outcome(whole / "run")


@pytest.mark.filterwarnings("ignore:a .* solve stopped:zoo.errors.ZooWarning")
@pytest.mark.parametrize("stop_at", [2, 4, 5, 8])
def test_counts_of_solves_are_exact_whatever_the_stops(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = {"type": "anderson", "tol": 1e-3, "max_iters": 30}
    model = {"type": "deq", "hidden_channels": 8, "solver": solver, "conv": {"type": "sage"}}
    parts = {"type": "random", "num_parts": 3}
    evaluation = {"eval": {"metric": "accuracy", "partition": parts}, "test": {"partition": parts}}
    recipe = small_recipe(tmp_path, model=model, train__num_epochs=2, train__partition=parts, **evaluation)
    run(recipe, tmp_path / "whole")
    autocast, calls = module.session.autocast, iter(range(1, 1000))

    def counted(*arguments: Any) -> Any:
        if next(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return autocast(*arguments)

    with monkeypatch.context() as context:
        context.setattr(module.session, "autocast", counted)
        with pytest.raises(StoppedError):
            run(recipe, tmp_path / "cut")
    run(recipe, tmp_path / "cut", resume=True)
    records = [RunDir(tmp_path / name).metrics() for name in ("whole", "cut")]
    for record in (*records[0], *records[1]):
        assert record["num_forward_solves"] == record["eval_num_forward_solves"] == 3
    exact = [[[(k, v) for k, v in record.items() if k not in CLOCK] for record in run] for run in records]
    assert exact[0] == exact[1]


def test_seconds_of_an_epoch_count_what_was_done_before_a_stop(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    clock = iter(range(0, 10_000_000, 100))
    monkeypatch.setattr(state.time, "monotonic", lambda: float(next(clock)))
    out = stopped_run(improving(whole), tmp_path / "run", monkeypatch, 3)
    saved = read_saved(RunDir(out).states()[0])
    before = saved.tree["cursor"]["epoch_s"]
    assert before >= 100
    results = run(improving(whole), out, resume=True)
    seconds = [record["epoch_s"] for record in RunDir(out).metrics()]
    assert seconds[1] > before
    assert results.train_s == sum(seconds)


def test_peak_memory_is_that_of_all_processes(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr(state.memory, "peak", lambda device: 5 << 40)
        out = stopped_run(improving(whole), tmp_path / "run", monkeypatch, 3)
    assert run(improving(whole), out, resume=True).peak_memory_bytes == 5 << 40


def fail(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[str], bool]) -> None:
    replace = os.replace

    def replace_if_there_is_space(source: Path, target: Path) -> None:
        if is_full(Path(target).name):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_if_there_is_space)


def test_a_full_disk_at_a_better_validation_does_not_end_the_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1, 100))
    fail(monkeypatch, lambda name: name == "best.safetensors" and next(calls) == 1)
    with pytest.warns(ZooWarning, match=r"best.safetensors: cannot be written: No space left on device"):
        run(improving(whole), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole / "run")


def test_saves_take_less_than_a_percent_of_a_long_run(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    # By this clock a step takes 100 seconds and a flush one; best weights, log and states together must stay cheap.
    begun = state.time.monotonic()
    clock = {"now": begun, "saving": 0.0, "steps": 0.0}
    monkeypatch.setattr(state.time, "monotonic", lambda: clock["now"])

    def takes(target: Any, name: str, seconds: float, kind: str) -> None:
        original = getattr(target, name)

        def patched(*arguments: Any, **options: Any) -> Any:
            clock["now"] += seconds
            clock[kind] += seconds
            return original(*arguments, **options)

        monkeypatch.setattr(target, name, patched)

    takes(module, "training_step", 100.0, "steps")
    takes(os, "fsync", 1.0, "saving")
    saved = []
    write_state = RunDir.write_state

    def noted(directory: RunDir, step: int, *arguments: Any) -> Path:
        saved.append(clock["steps"])
        return write_state(directory, step, *arguments)

    monkeypatch.setattr(RunDir, "write_state", noted)
    run(small_recipe(whole, eval__select="loss", train__num_epochs=40), tmp_path / "run")
    assert 10 < clock["saving"] < 0.01 * (clock["now"] - begun)
    # A state takes up to five flushes, hence one comes every 1,000 seconds.
    assert max(after - before for before, after in itertools.pairwise(saved)) <= 1200


def test_no_state_is_saved_without_its_best_weights(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(state, "_MAX_SHARE", 1e9)
    with monkeypatch.context() as context:
        fail(context, lambda name: name == "best.safetensors")
        with pytest.warns(ZooWarning), pytest.raises(RunError, match=r"best.safetensors: cannot be written"):
            run(improving(whole), tmp_path / "run")
    assert RunDir(tmp_path / "run").states() == []
    run(improving(whole), tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(whole / "run")


def test_an_old_state_that_cannot_be_removed_is_told(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_MAX_SHARE", 1e9)
    unlink = Path.unlink

    def refuse(path: Path, **options: Any) -> None:
        if path.name.startswith("state-") and path.suffix == ".safetensors":
            raise PermissionError(1, "Operation not permitted")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(ZooWarning, match=r"state-\d.safetensors: cannot be removed: Operation not permitted"):
        run(improving(whole), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole / "run")


@pytest.mark.parametrize("target", ["buffer", "weight", "optimizer"])
def test_numbers_that_are_not_finite_never_reach_the_disk(target: str, tmp_path: Path, monkeypatch: Any) -> None:
    recipe = small_recipe(tmp_path, model__norm="batch")
    monkeypatch.setattr(state, "_MAX_SHARE", 1e9)
    original, calls = module.training_step, iter(range(1, 100))
    spoiled = []

    def spoil(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *arguments: Any) -> Any:
        loss = original(model, optimizer, *arguments)
        if next(calls) == 5:
            name, tensor = {
                "buffer": lambda: next((n, b) for n, b in model.named_buffers() if n.endswith("running_var")),
                # A weight whose infinity does not show in the predictions would be rare; this one is not looked at.
                "weight": lambda: list(model.named_parameters())[-1],
                "optimizer": lambda: next(
                    (n, optimizer.state[p]["exp_avg_sq"]) for n, p in model.named_parameters() if p.requires_grad
                ),
            }[target]()
            spoiled.append(name)
            with torch.no_grad():
                tensor.fill_(float("inf"))
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(module, "training_step", spoil)
    with pytest.raises(RunError, match=r"epoch 3, part 1: .* is NaN or infinite; the last good state is state-4"):
        train(recipe, tmp_path / "run", device="cpu", quiet=True)
    try:
        train(recipe, tmp_path / "run", device="cpu", quiet=True, resume=True)
    except RunError as error:
        assert spoiled[0] in str(error)  # noqa: PT017
    for path in [*RunDir(tmp_path / "run").states(), tmp_path / "run" / "best.safetensors"]:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in read_saved(path).tensors.values())


def test_a_log_that_is_removed_under_a_run_is_not_begun_again(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def remove(record: Any) -> None:
        if record["epoch"] == 2:
            (out / "metrics.jsonl").unlink()

    message = "metrics.jsonl: shorter than when the state was saved"
    with pytest.warns(ZooWarning, match=message), pytest.raises(RunError, match=message):
        run(improving(whole), out, on_epoch=remove)
    assert RunDir(out).results() is None


def test_a_run_without_its_picture_is_finished(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "plot", plot)
    fail(monkeypatch, lambda name: name == "curves.png")
    with pytest.warns(ZooWarning, match=r"curves.png: cannot be written: .*; the run is finished, without its picture"):
        run(improving(whole), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole / "run")


def test_a_run_whose_recipe_is_removed_under_it_is_finished(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(module, "plot", plot)
    with pytest.warns(ZooWarning, match=r"recipe.json: no such file; the run is finished, without its picture"):
        run(improving(whole), out, on_epoch=lambda record: (out / "recipe.json").unlink(missing_ok=True))
    assert (out / "results.json").is_file()


def test_a_run_whose_folder_is_removed_under_it_names_what_is_missing(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def remove(record: Any) -> None:
        if record["epoch"] == 2:
            shutil.rmtree(out)

    missing = r"run/.*: cannot be written: No such file or directory"
    with pytest.warns(ZooWarning, match=missing), pytest.raises(RunError, match=missing):
        run(improving(whole), out, on_epoch=remove)


def test_a_run_copied_elsewhere_is_continued(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = stopped_run(improving(whole), tmp_path / "run", monkeypatch, 5)
    shutil.copytree(out, tmp_path / "copy")
    run(improving(whole), tmp_path / "copy", resume=True)
    assert outcome(tmp_path / "copy") == outcome(whole / "run")
