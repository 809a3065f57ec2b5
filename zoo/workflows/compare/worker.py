"""One task in a process of its own, read from stdin: train a recipe, or measure a training step of a trained model."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.errors import RunError, ZooError
from zoo.layers.equilibrium import start_epoch
from zoo.spec.recipe import Recipe, parse_recipe
from zoo.workflows import session
from zoo.workflows.evaluate import num_parts_of
from zoo.workflows.graphs import place_graph, recipe_graph
from zoo.workflows.load import load_for_evaluation
from zoo.workflows.memory import finish, measure_steps, prompt_release
from zoo.workflows.objective import Objective
from zoo.workflows.train import build_optimizer, epoch_parts, train, training_step

# Memory is the same each time; time is not.
_NUM_MEMORY_STEPS, _NUM_TIME_STEPS, _NUM_CUTS = 2, 5, 3


def measure_training(recipe: Recipe, folder: Path, device: torch.device) -> dict[str, Any]:
    """Measure training steps of a model as they are at the end of its training.

    Args:
        recipe: for its data and how it trains.
        folder: the run directory or bundle that holds its weights; some models take longer the further they are.
        device: where.

    Returns:
        ``num_parameters``, ``peak_bytes`` of a step beyond parameters, gradients, optimizer state and the part,
        ``step_s``, and ``epoch_s``: of cutting the graph into parts and a step on each.

    Raises:
        RunError: if no part has a train node, or memory runs out.
    """
    model = load_for_evaluation(folder).model.to(device).train()
    graph, split = recipe_graph(recipe)
    spec = recipe.train
    # What a teacher says does not matter, only that it costs what it costs.
    teacher = None if spec.distillation is None else torch.zeros(graph.num_nodes, graph.num_tasks)
    objective = Objective(spec, graph, split, device, teacher)
    graph = place_graph(graph, device)
    optimizer = build_optimizer(spec.optimizer, model)
    start_epoch(model, spec.num_epochs)
    part = next((p for p in epoch_parts(graph, spec, 1) if bool(objective.is_train[p.nodes].any())), None)
    if part is None:
        raise RunError("no part has a train node; lower train.partition.num_parts")
    part = part.to(device)

    def step() -> None:
        training_step(model, optimizer, part, objective, spec)
        optimizer.zero_grad(set_to_none=True)

    session.seed_global(spec.seed, "dropout", 0)
    with session.memory_explained("a training step", "raise train.partition.num_parts"):
        with prompt_release():
            memory = measure_steps(step, model, device=device, num_steps=_NUM_MEMORY_STEPS)
        timed = measure_steps(step, model, device=device, num_steps=_NUM_TIME_STEPS)
    cuts = []
    for epoch in range(1, _NUM_CUTS + 1):
        started = time.perf_counter()
        for other in epoch_parts(graph, spec, epoch):
            other.to(device)
        finish(device)
        cuts.append(time.perf_counter() - started)
    step_s: Any = timed["median_step_s"]
    return {
        "num_parameters": memory["num_parameters"],
        "peak_bytes": memory["peak_bytes"],
        "step_s": step_s,
        "epoch_s": statistics.median(cuts) + num_parts_of(spec.partition) * step_s,
    }


def work(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a request asks for: ``task`` "train" or "measure", ``recipe``, ``folder``, ``device``, ``num_threads``.

    Raises:
        ZooError: as :func:`zoo.workflows.train.train` and :func:`measure_training`.
    """
    device, num_threads, folder = request["device"], request["num_threads"], Path(request["folder"])
    recipe = parse_recipe(request["recipe"], where=str(folder))
    if request["task"] == "train":
        return train(recipe, folder, device=device, resume=True, num_threads=num_threads, quiet=True).to_json()
    return measure_training(recipe, folder, session.start(device, num_threads))


def main() -> int:
    """Read a request from stdin and print its result as JSON; an error is one line on stderr."""
    try:
        result = work(json.load(sys.stdin))
    except ZooError as error:
        print(" ".join(str(error).split("\n")), file=sys.stderr)
        return error.exit_code
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
