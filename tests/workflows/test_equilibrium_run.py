"""An equilibrium model in the training loop."""

import json
from pathlib import Path

import pytest

from zoo.errors import ZooWarning
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows.train import train


def test_warm_up_and_solves_are_in_the_metrics(tmp_path: Path) -> None:
    solver = {"type": "anderson", "tol": 1e-2, "max_iters": 8}
    model = {"type": "deq", "hidden_channels": 8, "num_warmup_epochs": 1, "solver": solver, "conv": {"type": "sage"}}
    overrides = [f"model={json.dumps(model)}", "train.num_epochs=2", "eval.every=1"]
    with pytest.warns(ZooWarning, match="a (forward|backward) solve stopped at a residual of"):
        train(read_recipe(recipe_path("quickstart"), overrides), tmp_path / "run", device="cpu", quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    # The first epoch is unrolled: nothing is solved but in the evaluation.
    assert first.get("num_forward_solves", 0) == 0
    assert first["eval_num_forward_solves"] > 0
    assert second["num_forward_solves"] == second["num_backward_solves"] == 1
    assert 0 < second["mean_forward_iters"] <= 8
