"""Runs whose numbers are not finite, whose solves do not converge, or whose stack restores its input badly."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.workflows.small import small_recipe
from tests.workflows.test_resume import outcome, run
from zoo.data.graph import Part
from zoo.errors import RecipeError, RunError, ZooWarning
from zoo.layers.inputs import BlockInputs
from zoo.layers.reversible import ReversibleStack
from zoo.spec.recipe import Recipe
from zoo.tensor_file import read_saved
from zoo.workflows import train as module
from zoo.workflows.objective import Objective
from zoo.workflows.run_dir import RunDir
from zoo.workflows.session import StoppedError
from zoo.workflows.state import RunState

PARTS = 2


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Let some passes over a part overflow: batch statistics and the loss become NaN, as they would."""
    original, calls = Objective.step_loss, iter(range(1, 1000))

    def patched(self: Objective, model: nn.Module, part: Part) -> torch.Tensor | None:
        loss = original(self, model, part)
        if next(calls) in steps:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name.endswith("running_var"):
                        buffer.fill_(math.nan)
            return None if loss is None else loss * math.nan
        return loss

    monkeypatch.setattr(Objective, "step_loss", patched)


def skipping(folder: Path) -> Recipe:
    return small_recipe(folder, train__on_nonfinite="skip", model__norm="batch")


def test_a_step_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {4, 7})
    with pytest.warns(ZooWarning, match="epoch 2, part 2: the loss is nan; this step is skipped") as warned:
        results = run(skipping(tmp_path), tmp_path / "run")
    assert len(warned) == 1
    assert results.num_steps == 4 * PARTS - 2
    records = RunDir(tmp_path / "run").metrics()
    assert [record.get("num_skipped_steps", 0) for record in records] == [0, 1, 0, 1]
    tensors = read_saved(RunDir(tmp_path / "run").states()[0]).tensors
    assert any(name.endswith("running_var") for name in tensors)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_a_run_that_skips_resumes_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        spoil(context, {3})
        with pytest.warns(ZooWarning, match="skipped"):
            run(skipping(tmp_path), tmp_path / "whole")
    with monkeypatch.context() as context:
        spoil(context, {3})
        original, calls = module.training_step, iter(range(1, 1000))

        def stopped(*arguments: Any) -> Any:
            if next(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        context.setattr(module, "training_step", stopped)
        with pytest.warns(ZooWarning, match="skipped"), pytest.raises(StoppedError, match="epoch 2, part 1/2"):
            run(skipping(tmp_path), tmp_path / "cut")
    run(skipping(tmp_path), tmp_path / "cut", resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert RunDir(tmp_path / "cut").metrics()[1]["num_skipped_steps"] == 1


def test_an_epoch_of_skipped_steps_alone_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {3, 4})
    with pytest.warns(ZooWarning, match="skipped"), pytest.raises(RunError, match="epoch 2, part 2: the loss is nan"):
        run(skipping(tmp_path), tmp_path / "run")


def test_the_norms_of_all_layers_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Objective.step_loss

    def steep(self: Objective, model: nn.Module, part: Part) -> torch.Tensor | None:
        # The gradient of the square root at 0 is infinite, its value is not.
        loss, head = original(self, model, part), list(model.parameters())[-1]
        return None if loss is None else loss + (head - head.detach()).sqrt().sum()

    monkeypatch.setattr(Objective, "step_loss", steep)
    with pytest.raises(RunError, match=r"epoch 1, part 1: .* gradient is .*norms of all layers: nonfinite.json; lower"):
        run(small_recipe(tmp_path), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert report["place"] == "epoch 1, part 1"
    *others, last = report["norms"].values()
    assert last["gradients"] in ("inf", "nan")
    assert all(0 < layer["weights"] < 1e3 and layer["gradients"] < 1e6 for layer in others)
    # The report is in nobody's way.
    monkeypatch.undo()
    run(small_recipe(tmp_path), tmp_path / "run")


def never_solved(folder: Path, **places: Any) -> Recipe:
    solver = {"type": "anderson", "tol": 1e-9, "max_iters": 1}
    model = {"type": "deq", "hidden_channels": 8, "num_warmup_epochs": 1, "solver": solver, "conv": {"type": "sage"}}
    return small_recipe(folder, model=model, train__num_epochs=6, **places)


@pytest.mark.filterwarnings("ignore:a .* solve stopped:zoo.errors.ZooWarning")
def test_a_run_without_any_converged_solve_stops_if_asked(tmp_path: Path) -> None:
    for resume in (False, True):
        with pytest.raises(
            RunError, match=r"epoch 3: no forward solve converged in 2 epochs in a row; raise model.solv"
        ):
            run(never_solved(tmp_path, train__solve_patience=2), tmp_path / "run", resume=resume)
        # The first epoch is one of warm-up, in which nothing is solved.
        assert [record["epoch"] for record in RunDir(tmp_path / "run").metrics()] == [1, 2, 3]
    assert run(never_solved(tmp_path), tmp_path / "other").num_epochs == 6


def test_only_equilibria_have_solves_to_wait_for(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.solve_patience goes with models of family 'deq'"):
        small_recipe(tmp_path, train__solve_patience=2)


class Forgetful(nn.Module):
    """A block that is no function of its arguments: backward cannot restore its input."""

    def __init__(self, drift: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.drift, self.calls = drift, 0

    def forward(self, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        self.calls += 1
        return self.weight * torch.tanh(x) + self.drift * self.calls


@pytest.mark.parametrize("drift", [0.0, 0.01])
def test_the_error_of_the_inversion_is_that_of_the_restored_input(drift: float) -> None:
    stack = ReversibleStack([[Forgetful(0.0), Forgetful(drift)]])
    inputs = BlockInputs.from_edges(torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    x = torch.tensor([[1.0, -4.0], [2.0, 0.5]])
    stack.inversion_error = 0.0
    stack(x, inputs).sum().backward()
    # The second block adds its drift once in forward and twice in backward, and the largest entry is 4.
    assert stack.inversion_error == pytest.approx(drift / 4, rel=1e-3, abs=1e-15)


def test_the_error_of_the_inversion_is_recorded_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(tmp_path, train__num_epochs=2)
    assert run(recipe, tmp_path / "exact", check_inversion=True).max_inversion_error < 1e-12  # type: ignore[operator]
    errors = iter([1e-9, 1e-8, 1e-3, 1e-4])
    add = RunState.add_inversion_error
    monkeypatch.setattr(RunState, "add_inversion_error", lambda self, error: add(self, next(errors)))
    with pytest.warns(ZooWarning, match="restored its input only to 0.001 of its largest entry") as warned:
        results = run(recipe, tmp_path / "run", check_inversion=True)
    assert len(warned) == 1
    assert [record["max_inversion_error"] for record in RunDir(tmp_path / "run").metrics()] == [1e-8, 1e-3]
    assert results.max_inversion_error == json.loads((tmp_path / "run/results.json").read_text())["max_inversion_error"]
    assert results.max_inversion_error == 1e-3
    # Looking changes nothing.
    run(recipe, tmp_path / "plain")
    assert (tmp_path / "plain/best.safetensors").read_bytes() == (tmp_path / "exact/best.safetensors").read_bytes()


def test_what_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    plain, usual = small_recipe(tmp_path, model__reversible=False), small_recipe(tmp_path)
    for recipe, capture in ((plain, False), (usual, True)):
        with pytest.raises(
            RunError, match="--check-inversion: needs a model with a reversible stack, and goes without"
        ):
            run(recipe, tmp_path / "run", check_inversion=True, capture=capture)
    assert not (tmp_path / "run").exists()
