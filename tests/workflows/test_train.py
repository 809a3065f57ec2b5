import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.workflows.small import NUM_NODES, small_recipe, write_graph
from zoo.data.graph import Graph, Part
from zoo.errors import DataError, RecipeError, RunError
from zoo.spec.recipe import Recipe
from zoo.spec.results import RunResults
from zoo.workflows import state
from zoo.workflows import train as module
from zoo.workflows.evaluate import eval_protocol, measure, predict
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.load import load
from zoo.workflows.objective import Objective
from zoo.workflows.run_dir import RunDir
from zoo.workflows.session import StoppedError
from zoo.workflows.step import set_learning_rate
from zoo.workflows.train import train

CPU = torch.device("cpu")


def run(recipe: Recipe, out: Path, **options: Any) -> RunResults:
    return train(recipe, out, device="cpu", quiet=True, **options)


def test_a_run_leaves_the_promised_files(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    states = {name for name in names if name.startswith("state-")}
    assert "state-8.safetensors" in states
    assert len(states) <= 2
    files = {"recipe.json", "metrics.jsonl", "best.safetensors", "results.json", "curves.png", ".lock"}
    assert names - states - {"tensorboard"} == files
    assert (finished_run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_results_say_what_was_measured_and_how(finished_run: Path) -> None:
    results = RunDir(finished_run).results()
    assert results is not None
    protocols = [(r.split, r.num_views, r.num_parts) for r in results.results]
    # As the recipe's test says, and then as it validates.
    assert protocols == [(split, views, 2) for views in (3, 2) for split in ("train", "valid", "test")]
    assert results.num_epochs == 4
    assert results.num_steps == 8
    assert results.num_parameters == sum(p.numel() for p in load(finished_run).parameters())
    assert len(results.data_sha256) == 64
    text = results.model_dump_json()
    for private in (str(Path.home()), str(finished_run.parent)):
        assert private not in text


def test_the_log_has_each_epoch_once(finished_run: Path) -> None:
    records = RunDir(finished_run).metrics()
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    for record in records:
        assert {"train_loss", "train_accuracy", "valid_accuracy", "test_accuracy", "lr", "epoch_s"} <= set(record)


def test_the_model_learns(tmp_path: Path) -> None:
    results = run(small_recipe(tmp_path, train__num_epochs=25, eval__every=5), tmp_path / "run")
    test = next(r.value for r in results.results if r.split == "test")
    assert test > 0.8


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_every_task_trains(task: str, tmp_path: Path) -> None:
    results = run(small_recipe(tmp_path, task=task, train__num_epochs=10), tmp_path / "run")
    values = [r.value for r in results.results if r.split == "test"]
    assert min(values) > 0.6


def test_the_best_validation_metric_wins_and_the_first_of_equals(tmp_path: Path) -> None:
    results = run(small_recipe(tmp_path, train__num_epochs=8), tmp_path / "run")
    values = [record["valid_accuracy"] for record in RunDir(tmp_path / "run").metrics()]
    assert results.best_epoch == 1 + values.index(max(values))
    # The saved weights are those of that epoch: they give the same figure again.
    loaded = load(tmp_path / "run")
    graph, split = recipe_graph(loaded.zoo_info.recipe)
    protocol = eval_protocol(loaded.zoo_info.recipe)
    logits = predict(loaded, graph, protocol, device=CPU, precision="fp32")
    assert measure(graph, split, "accuracy", logits, protocol, ("valid",))[0].value == max(values)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    run(recipe, tmp_path / "a")
    run(recipe, tmp_path / "b")
    run(small_recipe(tmp_path, train__seed=1), tmp_path / "c")
    files = [(tmp_path / name / "best.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_every_epoch_has_its_own_partition(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    graph, _ = recipe_graph(recipe)
    parts = [[part.nodes.tolist() for part in module.epoch_parts(graph, recipe.train, epoch)] for epoch in (1, 2, 1)]
    assert parts[0] == parts[2]
    assert parts[0] != parts[1]
    assert sorted(node for nodes in parts[0] for node in nodes) == list(range(NUM_NODES))


def test_evaluation_comes_every_k_epochs_and_at_the_end(tmp_path: Path) -> None:
    run(small_recipe(tmp_path, train__num_epochs=5, eval__every=2), tmp_path / "run")
    evaluated = [record["epoch"] for record in RunDir(tmp_path / "run").metrics() if "valid_accuracy" in record]
    assert evaluated == [2, 4, 5]


def test_patience_ends_a_run_that_does_not_improve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.7, 0.6, 0.7, 0.9, 0.9])

    def fake(model: nn.Module, task: Any, protocol: Any, *rest: Any) -> tuple[list[Any], float]:
        figures = measure(task.graph, task.split, "accuracy", torch.zeros(NUM_NODES, 3), protocol)
        value = next(values, 0.0)
        return [figure.model_copy(update={"value": value}) for figure in figures], 0.0

    monkeypatch.setattr(module, "_measure", fake)
    results = run(small_recipe(tmp_path, train__num_epochs=30, train__patience=2), tmp_path / "run")
    # Epoch 4 only equals epoch 2, and that is not better.
    assert (results.num_epochs, results.best_epoch) == (4, 2)


def test_parts_without_train_nodes_are_skipped(tmp_path: Path) -> None:
    mask = torch.zeros(NUM_NODES, dtype=torch.bool)
    mask[:2] = True
    others = torch.arange(NUM_NODES) % 2 == 0
    graph = write_graph(
        tmp_path / "few.npz",
        train_mask=mask.numpy(),
        valid_mask=(~mask & others).numpy(),
        test_mask=(~mask & ~others).numpy(),
    )
    recipe = small_recipe(tmp_path, data__path=str(graph), train__partition__num_parts=10)
    results = run(recipe, tmp_path / "run")
    assert 4 <= results.num_steps <= 8


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_and_bf16_train(optimizer: str, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, train__optimizer={"type": optimizer, "lr": 0.01}, train__precision="bf16")
    run(recipe, tmp_path / "run")
    losses = [record["train_loss"] for record in RunDir(tmp_path / "run").metrics()]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


def test_a_baseline_stands_beside_the_results(tmp_path: Path) -> None:
    results = run(small_recipe(tmp_path), tmp_path / "run", baseline=True)
    assert set(results.baseline) == {"valid", "test"}
    assert 0.5 < results.baseline["test"] <= 1


def test_a_baseline_is_added_to_a_finished_run(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    recipe, before = RunDir(finished_run).recipe(), RunDir(finished_run).results()
    assert before is not None
    assert before.baseline is None
    results = run(recipe, tmp_path / "run", baseline=True)
    assert results == before.model_copy(update={"baseline": results.baseline}) == RunDir(tmp_path / "run").results()
    assert results.baseline == run(recipe, tmp_path / "fresh", baseline=True).baseline


def test_a_baseline_on_other_data_is_refused(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, train__num_epochs=1)
    run(recipe, tmp_path / "run")
    write_graph(Path(recipe.data.path), x=np.ones((NUM_NODES, 6), dtype=np.float32))
    with pytest.raises(RunError, match="the data changed since the run"):
        run(recipe, tmp_path / "run", baseline=True)


def too_much() -> None:
    """What PyTorch itself says if there is not enough memory."""
    torch.empty(1 << 60, dtype=torch.uint8)


def numpy_too_much() -> None:
    np.empty(1 << 60, dtype=np.uint8)


def gpu_too_much() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("place", "fault", "expected"),
    [
        ("recipe_graph", numpy_too_much, "run: this machine is out of memory; lower model.num_layers"),
        ("build_model", too_much, "run: this machine is out of memory; lower model.num_layers"),
        ("training_step", too_much, "epoch 1, part 1: this machine is out of memory; raise train.partition.num_parts"),
        ("training_step", gpu_too_much, "epoch 1, part 1: the GPU is out of memory; raise train.partition.num_parts"),
        ("predict", too_much, "epoch 1, evaluation: this machine is out of memory; raise eval.partition.num_parts"),
    ],
)
def test_too_little_memory_is_one_line_and_leaves_no_folder(
    place: str, fault: Callable[[], None], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path)
    monkeypatch.setattr(module, place, lambda *arguments, **options: fault())
    with pytest.raises(RunError) as error:
        run(recipe, tmp_path / "run")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_another_error_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(module, "build_model", wrong)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(small_recipe(tmp_path), tmp_path / "run")


def spoil(monkeypatch: pytest.MonkeyPatch, at_step: int, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace the loss of one step."""
    original, calls = Objective.step_loss, iter(range(1, 1000))

    def patched(self: Objective, model: nn.Module, part: Part) -> torch.Tensor | None:
        usual = original(self, model, part)
        return loss(usual) if usual is not None and next(calls) == at_step else usual

    monkeypatch.setattr(Objective, "step_loss", patched)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_and_keeps_the_last_good_state(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path)
    # The gradient of the square root at 0 is infinite, its value is not.
    worse = {"loss": lambda loss: loss * math.nan, "gradient": lambda loss: loss + (loss - loss).sqrt()}
    spoil(monkeypatch, 6, worse[kind])
    # Save after every epoch, however long a save takes.
    monkeypatch.setattr(state, "_MAX_SHARE", 1e9)
    with pytest.raises(RunError) as error:
        run(recipe, tmp_path / "run")
    assert "epoch 3, part 2" in str(error.value)
    assert ("the loss is nan" if kind == "loss" else "the norm of its gradient is nan") in str(error.value)
    kept = RunDir(tmp_path / "run").latest_state()
    assert kept is not None
    assert kept.tree["cursor"]["epoch"] == 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.tensors.values())
    # Nothing is lost: without the fault, the run goes on to the same end as one that never met it.
    monkeypatch.undo()
    run(recipe, tmp_path / "run", resume=True)
    run(recipe, tmp_path / "other")
    assert (tmp_path / "run/best.safetensors").read_bytes() == (tmp_path / "other/best.safetensors").read_bytes()


def test_predictions_that_are_not_finite_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def infinite(model: nn.Module, graph: Graph, *rest: Any, **options: Any) -> torch.Tensor:
        return torch.full((NUM_NODES, 3), torch.inf)

    monkeypatch.setattr(module, "predict", infinite)
    with pytest.raises(RunError, match="epoch 1, evaluation: some predictions are NaN or infinite"):
        run(small_recipe(tmp_path), tmp_path / "run")


MISFITS = {
    "loss": ({"train__loss": "bce_with_logits"}, "train.loss: 'bce_with_logits' does not fit a multiclass task"),
    "metric": ({"eval__metric": "rocauc"}, "eval.metric: the metric 'rocauc' does not fit a multiclass task"),
    "split": ({"data__split": 1}, "data.split: 1 is too large; multiclass has 1 split"),
    "eval_parts": ({"eval__partition__num_parts": 91}, "eval.partition.num_parts: 91 parts of 90 nodes"),
    "test_parts": ({"test__partition__num_parts": 91}, "test.partition.num_parts: 91 parts of 90 nodes"),
    "parts": ({"train__partition__num_parts": 91}, "train.partition.num_parts: 91 parts of 90 nodes"),
    "clusters": (
        {"test__partition": {"type": "metis", "num_parts": 2, "num_clusters": 91}},
        "test.partition.num_clusters: 91 clusters of 90 nodes",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_recipe_that_does_not_fit_its_data_is_refused(case: str, tmp_path: Path) -> None:
    places, expected = MISFITS[case]
    with pytest.raises(RecipeError) as error:
        run(small_recipe(tmp_path, **places), tmp_path / "run")
    assert expected in str(error.value)
    # A run that had nothing to keep leaves nothing behind.
    assert not (tmp_path / "run").exists()


def test_a_known_data_set_is_checked_before_it_is_loaded(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, data={"dataset": "ogbn-proteins", "node_features": ["edge_sum"]})
    with pytest.raises(RecipeError, match="does not fit a multilabel task"):
        recipe_graph(recipe)


def test_missing_data_are_reported_and_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        run(small_recipe(tmp_path, data__path="nowhere.npz"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_is_a_function_of_the_epoch(tmp_path: Path) -> None:
    schedule = {"type": "cosine", "num_warmup_epochs": 2}
    spec = small_recipe(tmp_path, train__num_epochs=6, train__schedule=schedule).train
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    for epoch in range(1, 7):
        set_learning_rate(optimizer, spec, epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    cosine = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([0.005, 0.01, *(0.01 * value for value in cosine)])


def test_progress_goes_to_stderr_as_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_recipe(tmp_path)
    train(recipe, tmp_path / "a", device="cpu")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 4
    assert all(word in lines[-1] for word in ("epoch 4/4", "loss", "valid_accuracy", "epoch_s", "memory"))
    run(recipe, tmp_path / "b")
    assert capsys.readouterr().err == ""


def test_a_run_says_at_once_with_what_and_on_what_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.workflows.progress.named_backend", lambda: None)
    monkeypatch.setattr("zoo.workflows.progress.backend_for", lambda device: ("chunked", "numba is not installed"))
    train(small_recipe(tmp_path), tmp_path / "a", device="cpu")
    shown = capsys.readouterr().err.splitlines()
    lines = {line.split()[0]: line for line in shown if not line.startswith("epoch ")}
    assert lines["run"] == f"run     {tmp_path / 'a'}"
    assert "CPU" in lines["device"]
    assert lines["device"].endswith("kernels: chunked")
    assert 'pip install "revgnn-zoo[fast]"' in lines["hint"]
    assert "90 nodes" in lines["data"]
    assert "6 node and 3 edge features" in lines["data"]
    assert "40 train, 25 valid, 25 test" in lines["task"]
    assert lines["model"] == "model   rev, 2 layers x 8 channels, 675 parameters"
    assert lines["length"] == "length  at most 4 epochs of 2 steps"
    assert shown.index(lines["device"]) < shown.index(lines["data"])


def test_training_imports_what_it_needs_alone() -> None:
    code = (
        "import sys, zoo.workflows.train; print({'sklearn', 'matplotlib', 'pandas', 'scipy', 'ogb'} & set(sys.modules))"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "set()\n"


def test_batch_normalization_of_a_single_node_is_refused_in_one_line(tmp_path: Path) -> None:
    parts = {"type": "random", "num_parts": NUM_NODES}
    with pytest.raises(RunError, match=r"one node, and batch normalization needs two; lower train.partition.num_parts"):
        run(small_recipe(tmp_path, model__norm="batch", train__partition=parts), tmp_path / "run")


def test_a_run_whose_time_is_up_is_saved_and_continued(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="--max-time at epoch 1, part 1/2; saved: ") as error:
        run(small_recipe(tmp_path), tmp_path / "run", max_time_s=0.0)
    assert error.value.exit_code == 142
    assert run(small_recipe(tmp_path), tmp_path / "run", resume=True).num_epochs == 4
