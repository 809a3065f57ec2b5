"""One command that trains a teacher and then its student; and models that read labels, from training to the bundle."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from tests.workflows.small import NUM_NODES, small_recipe, write_graph
from tests.workflows.test_resume import outcome, run
from zoo.data.graph import directed_edges
from zoo.errors import RecipeError, RunError
from zoo.hub.card import render_card
from zoo.workflows import train as module
from zoo.workflows.evaluate import Protocol, eval_protocol, evaluate, predict
from zoo.workflows.export import export
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.load import describe_folder, load
from zoo.workflows.objective import KnownLabels, Objective
from zoo.workflows.run_dir import RunDir
from zoo.workflows.session import StoppedError

CPU = torch.device("cpu")
REUSE = {
    "train__label_reuse": {"mask_rate": 0.5, "num_iters": 1},
    "train__loss": "log_cross_entropy",
    "train__num_epochs": 3,
    "eval__select": "loss",
    "model__norm": "batch",
}
DISTILLED = {**REUSE, "train__distillation": {"alpha": 0.9, "temperature": 0.7}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph and a finished run of a teacher and its student; not to be changed."""
    folder = tmp_path_factory.mktemp("distilled")
    run(small_recipe(folder, **DISTILLED), folder / "run")
    return folder


def test_the_teacher_is_the_run_without_distillation(finished: Path, tmp_path: Path) -> None:
    run(small_recipe(finished, **REUSE), tmp_path / "plain")
    assert outcome(finished / "run/teacher") == outcome(tmp_path / "plain")
    assert outcome(finished / "run")[0] != outcome(tmp_path / "plain")[0]
    assert RunDir(finished / "run/teacher").recipe() == RunDir(tmp_path / "plain").recipe()
    results, teacher = RunDir(finished / "run").results(), RunDir(finished / "run/teacher").results()
    assert results is not None
    assert results.teacher == teacher
    assert results.results != results.teacher.results


def test_the_student_learns_from_what_the_best_teacher_predicts_in_its_evaluation(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.Tensor | None] = []
    original = Objective.__init__

    def noted(self: Objective, *arguments: Any) -> None:
        original(self, *arguments)
        given.append(arguments[4] if len(arguments) > 4 else None)

    monkeypatch.setattr(Objective, "__init__", noted)
    run(small_recipe(finished, **DISTILLED, train__seed=0), tmp_path / "run")
    teacher = load(tmp_path / "run/teacher")
    graph, split = recipe_graph(teacher.zoo_info.recipe)
    known = KnownLabels.of(teacher.zoo_info.recipe.train, graph, split, CPU)
    protocol = eval_protocol(teacher.zoo_info.recipe)
    expected = predict(teacher, graph, protocol, device=CPU, precision="fp32", known=known)
    assert len(given) == 2
    assert given[0] is None
    assert given[1] is not None
    assert torch.equal(given[1], expected)


# Either run has 6 steps, 12 parts of validations and 10 of the last evaluations; 4 more predict for the student.
@pytest.mark.parametrize("stop_at", [1, 22, 28, 30, 45, 58])
def test_a_run_stopped_in_either_phase_ends_like_one_that_was_not(
    stop_at: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(finished, **DISTILLED)
    calls = iter(range(1, 1000))
    autocast = module.session.autocast

    def counted(*arguments: Any) -> Any:
        if next(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return autocast(*arguments)

    monkeypatch.setattr(module.session, "autocast", counted)
    # While the teacher predicts, the student has nothing to save: the run stops at once.
    expected = "SIGTERM before the first step" if 29 <= stop_at <= 32 else r"at epoch .*; saved: "
    with pytest.raises(StoppedError, match=expected):
        run(recipe, tmp_path / "run")
    in_teacher = RunDir(tmp_path / "run/teacher").results() is None
    assert in_teacher == (stop_at <= 28)
    monkeypatch.undo()
    with pytest.raises(RunError, match="continue it with --resume"):
        run(recipe, tmp_path / "run")
    run(recipe, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(finished / "run")
    assert outcome(tmp_path / "run/teacher") == outcome(finished / "run/teacher")


def test_a_teacher_of_other_data_is_refused(finished: Path, tmp_path: Path) -> None:
    # As a run that was killed after its teacher was done and before the student had anything to keep.
    recipe = small_recipe(tmp_path, **DISTILLED)
    shutil.copytree(finished / "run/teacher", tmp_path / "run/teacher")
    shutil.copy(finished / "run/recipe.json", tmp_path / "run")
    for place in ("run", "run/teacher"):
        text = (tmp_path / place / "recipe.json").read_text(encoding="utf-8")
        (tmp_path / place / "recipe.json").write_text(text.replace(str(finished), str(tmp_path)), encoding="utf-8")
    write_graph(Path(recipe.data.path), x=np.ones((NUM_NODES, 6), dtype=np.float32))
    with pytest.raises(RunError, match="the data changed since the teacher was trained"):
        run(recipe, tmp_path / "run", resume=True)


def test_a_run_that_fails_before_its_teacher_has_begun_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.split: 7 is too large"):
        run(small_recipe(tmp_path, **DISTILLED, data__split=7), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_lowest_validation_loss_wins_and_its_weights_are_kept(finished: Path) -> None:
    for folder in (finished / "run", finished / "run/teacher"):
        losses = [record["valid_loss"] for record in RunDir(folder).metrics()]
        results, best = RunDir(folder).results(), RunDir(folder).best()
        assert results is not None
        assert best is not None
        assert results.best_epoch == best.epoch.epoch == 1 + losses.index(min(losses))
        assert best.epoch.value == min(losses)
        loaded = load(folder)
        graph, split = recipe_graph(loaded.zoo_info.recipe)
        objective = Objective(loaded.zoo_info.recipe.train, graph, split, CPU)
        protocol = eval_protocol(loaded.zoo_info.recipe)
        logits = predict(loaded, graph, protocol, device=CPU, precision="fp32", known=objective.known)
        # The loss of the labels alone, for a student too.
        assert objective.valid_loss(logits[objective.valid]) == min(losses)


def test_patience_looks_at_the_loss_where_that_selects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.9, 0.5, 0.6, 0.5, 0.1])
    original = module._measure

    def fake(*arguments: Any) -> Any:
        # The metric rises all the time.
        figures, _ = original(*arguments)
        loss = next(losses, 0.0)
        return [figure.model_copy(update={"value": 1 - loss / 10}) for figure in figures], loss

    monkeypatch.setattr(module, "_measure", fake)
    recipe = small_recipe(tmp_path, **{**REUSE, "train__num_epochs": 30}, train__patience=2)
    results = run(recipe, tmp_path / "run")
    # Epoch 4 only equals epoch 2, and that is not better.
    assert (results.num_epochs, results.best_epoch) == (4, 2)


def test_a_validation_loss_is_recorded_whatever_selects(finished_run: Path) -> None:
    records = RunDir(finished_run).metrics()
    assert all(record["valid_loss"] > 0 for record in records)


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "valid_loss", lambda self, logits: float("inf"))
    with pytest.raises(RunError, match="epoch 1, evaluation: the loss on the valid nodes is inf"):
        run(small_recipe(tmp_path, **REUSE), tmp_path / "run")


def test_eval_of_the_run_and_of_its_bundle_read_the_labels_too(finished: Path, tmp_path: Path) -> None:
    bundle, config = export(finished / "run", tmp_path / "bundle")
    recorded = {(figure.split, figure.num_views): figure.value for figure in config.results}
    for folder in (finished / "run", bundle):
        path = str(finished / "multiclass.npz")
        figures = [comparison.figure for comparison in evaluate(folder, data=path, device="cpu", quiet=True)]
        assert {(figure.split, figure.num_views) for figure in figures} == {(s, 3) for s in ("train", "valid", "test")}
        assert all(figure.value == recorded[figure.split, figure.num_views] for figure in figures)
    assert "| features | node, known labels |" in render_card(config)
    _, shape, _ = describe_folder(finished / "run")
    assert shape == config.shape
    # 6 features and 3 classes.
    assert config.shape.num_node_features == 9


def test_a_loaded_model_predicts_from_features_and_labels_side_by_side(finished: Path, tmp_path: Path) -> None:
    bundle, _ = export(finished / "run", tmp_path / "bundle")
    model, recipe = zoo.load(bundle), RunDir(finished / "run").recipe()
    graph, split = recipe_graph(recipe)
    edge_index, edge_attr = directed_edges(graph)
    assert graph.x is not None
    labels = torch.zeros(NUM_NODES, 3)
    labels[split.train, graph.y[split.train]] = 1
    others = torch.ones(NUM_NODES, dtype=torch.bool)
    others[split.train] = False
    with torch.no_grad():
        logits = model(torch.cat([graph.x, labels], 1), edge_index, edge_attr)
        labels[others] = logits.softmax(1)[others]
        logits = model(torch.cat([graph.x, labels], 1), edge_index, edge_attr)
    known = KnownLabels.of(recipe.train, graph, split, CPU)
    measured = predict(model, graph, Protocol(1, 1, 0, "test"), device=CPU, precision="fp32", known=known)
    assert torch.allclose(measured, logits, atol=1e-5, rtol=1e-5)


def test_the_learning_rate_of_rmsprop_warms_up_in_a_line(tmp_path: Path) -> None:
    schedule = {"type": "constant", "num_warmup_epochs": 50}
    keys = {"train__optimizer": {"type": "rmsprop", "lr": 0.002}, "train__schedule": schedule}
    spec = small_recipe(tmp_path, **keys, train__num_epochs=2000).train
    optimizer = module.build_optimizer(spec.optimizer, nn.Linear(1, 1))
    assert isinstance(optimizer, torch.optim.RMSprop)
    for epoch in (1, 2, 25, 49, 50, 51, 52, 2000):
        module.set_learning_rate(optimizer, spec, epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.002 * min(epoch, 50) / 50)
