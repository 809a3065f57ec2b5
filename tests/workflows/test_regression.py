"""Numbers in place of classes: losses, selection by the lowest error, and every step from training to loading."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import zoo
from tests.workflows.small import NUM_NODES, small_recipe, write_graph
from zoo.errors import RecipeError
from zoo.spec.results import Measured
from zoo.workflows.baseline import linear_baseline
from zoo.workflows.evaluate import compare_with_published, evaluate
from zoo.workflows.export import export
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.objective import LOSSES
from zoo.workflows.plot import plot
from zoo.workflows.run_dir import RunDir
from zoo.workflows.session import StoppedError
from zoo.workflows.train import train

train_module = sys.modules["zoo.workflows.train"]

NAN = float("nan")
LONG = {"train__num_epochs": 40} | {f"{key}__partition": {"type": "full"} for key in ("train", "eval", "test")}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("mse", (1 + 9) / 3), ("mae", (1 + 3) / 3), ("huber", (0.5 + 2.5) / 3)],
)
def test_losses_are_means_over_the_known_numbers(loss: str, expected: float) -> None:
    y = torch.tensor([[1.0, NAN], [5.0, 2.0]])
    logits = torch.tensor([[2.0, 7.0], [2.0, 2.0]], requires_grad=True)
    value = LOSSES["regression", loss](logits, y)
    assert value.item() == pytest.approx(expected)
    value.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] == 0


def test_a_regression_is_trained_evaluated_exported_and_loaded(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, task="regression", **LONG)
    results = train(recipe, tmp_path / "run", device="cpu", quiet=True, baseline=True)
    figures = {figure.split: figure.value for figure in results.results}
    assert figures["test"] < 0.9 < 2.0  # a constant is 2.0 off on average
    run = RunDir(tmp_path / "run")
    lowest = min(run.metrics(), key=lambda record: record["valid_mae"])
    assert results.best_epoch == lowest["epoch"]
    assert figures["valid"] == lowest["valid_mae"]
    assert results.baseline is not None
    assert plot(run).exists()
    folder, config = export(tmp_path / "run")
    assert config.shape.num_tasks == 1
    assert "| test | mae |" in (folder / "README.md").read_text()
    for place in (tmp_path / "run", folder):
        compared = evaluate(place, data=recipe.data.path, device="cpu", quiet=True)
        assert {c.figure.split: c.figure.value for c in compared} == pytest.approx(figures)
        assert not any(c.is_regression for c in compared)
    graph, _ = recipe_graph(recipe)
    edge_index, edge_attr = zoo.directed_edges(graph)
    assert graph.x is not None
    assert zoo.load(folder)(graph.x, edge_index, edge_attr).shape == (NUM_NODES, 1)


@pytest.mark.parametrize("metric", ["mae", "rmse", "r2"])
def test_a_run_stopped_and_resumed_selects_the_same_epoch(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, task="regression", eval__metric=metric, train__num_epochs=6)
    whole = train(recipe, tmp_path / "whole", device="cpu", quiet=True)
    records = RunDir(tmp_path / "whole").metrics()
    best = (max if metric == "r2" else min)(records, key=lambda record: record[f"valid_{metric}"])
    assert whole.best_epoch == best["epoch"]
    _stop_in_epoch(4, monkeypatch)
    with pytest.raises(StoppedError):
        train(recipe, tmp_path / "parts", device="cpu", quiet=True)
    monkeypatch.undo()
    resumed = train(recipe, tmp_path / "parts", device="cpu", quiet=True, resume=True)
    assert (resumed.best_epoch, resumed.results) == (whole.best_epoch, whole.results)
    again = (tmp_path / "parts" / "best.safetensors").read_bytes()
    assert again == (tmp_path / "whole" / "best.safetensors").read_bytes()


def _stop_in_epoch(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a signal come during an epoch."""
    before = train_module.set_learning_rate

    def stop(optimizer: torch.optim.Optimizer, spec: object, number: int) -> None:
        before(optimizer, spec, number)  # type: ignore[arg-type]
        if number == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train_module, "set_learning_rate", stop)


def test_patience_counts_epochs_without_a_lower_error(tmp_path: Path) -> None:
    changes = {"train__patience": 2, "train__optimizer": {"type": "sgd", "lr": 1e-9}, "train__num_epochs": 50}
    recipe = small_recipe(tmp_path, task="regression", **changes)
    results = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    assert results.num_epochs < 50
    assert results.num_epochs == results.best_epoch + 2


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"train__loss": "cross_entropy"}, "'cross_entropy' does not fit a regression task; expected 'mse' or 'mae'"),
        ({"eval__metric": "accuracy"}, "'accuracy' does not fit a regression task; use mae, rmse, r2"),
        ({"train__label_reuse": {}}, "label_reuse goes with a loss of classes"),
    ],
)
def test_what_is_for_classes_is_refused(places: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_graph(small_recipe(tmp_path, task="regression", **places))


def test_the_baseline_predicts_numbers(tmp_path: Path) -> None:
    y = np.stack([np.arange(NUM_NODES) % 3, np.ones(NUM_NODES)], 1) * 4.0
    y[::9] = NAN
    write_graph(tmp_path / "regression.npz", task="regression", y=y)
    graph, split = recipe_graph(small_recipe(tmp_path, task="regression"))
    scores = linear_baseline(graph, split, "r2")
    assert 0.3 < scores["test"] < 1


def test_an_error_may_differ_by_a_share_of_itself(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, task="regression")

    def mae(value: float) -> Measured:
        return Measured(split="test", metric="mae", value=value, num_views=1, num_parts=1)

    for value, close, far in ((4000.0, 4001.0, 4010.0), (4e-6, 4.001e-6, 5e-6)):
        assert not compare_with_published([mae(close)], [mae(value)], recipe, {"test": 10})[0].is_regression
        assert compare_with_published([mae(far)], [mae(value)], recipe, {"test": 10})[0].is_regression


def test_results_of_any_size_are_written(tmp_path: Path) -> None:
    figure = Measured(split="test", metric="r2", value=-3.5, num_views=1, num_parts=1)
    assert json.loads(figure.model_dump_json())["value"] == -3.5
    for metric, value in (("mae", -1.0), ("r2", 1.5), ("mcc", -2.0), ("accuracy", 1.5)):
        with pytest.raises(ValidationError, match="must be from"):
            Measured.model_validate({**figure.model_dump(), "metric": metric, "value": value})
