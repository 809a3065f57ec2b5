"""One task in a process of its own: train a recipe, or measure a training step; see ``zoo.workflows.processes``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from zoo.models.factory import build_model
from zoo.spec.base import Spec
from zoo.spec.recipe import Recipe
from zoo.spec.shape import input_shape
from zoo.workflows import session
from zoo.workflows.graphs import EdgePrecision, complete_recipe, recipe_graph
from zoo.workflows.load import Located, load_located
from zoo.workflows.processes import serve
from zoo.workflows.step_cost import NUM_STEPS, measure_training, random_graph
from zoo.workflows.train import train


class TrainRequest(Spec):
    """Train a recipe, or continue its run.

    Attributes:
        task: tells requests apart.
        recipe: what to train.
        folder: the run directory.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        num_threads: of the CPU; None: as PyTorch chooses.
    """

    task: Literal["train"] = "train"
    recipe: Recipe
    folder: str
    device: str
    num_threads: int | None = None


class MeasureRequest(Spec):
    """Measure training steps.

    Attributes:
        task: tells requests apart.
        recipe: its data, and how it trains.
        folder: a run directory or bundle that holds the model; None: the recipe's model with fresh weights.
        graph_size: nodes and edges of a random graph in place of the recipe's data.
        num_steps: steps that are timed.
        capture: replay CUDA graphs of one layer, on a GPU.
        edge_precision: of the edge features on a GPU.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        num_threads: of the CPU; None: as PyTorch chooses.
    """

    task: Literal["measure"] = "measure"
    recipe: Recipe
    folder: str | None = None
    graph_size: tuple[int, int] | None = None
    num_steps: int = NUM_STEPS
    capture: bool = False
    edge_precision: EdgePrecision = "fp32"
    device: str
    num_threads: int | None = None


Request = Annotated[TrainRequest | MeasureRequest, Field(discriminator="task")]


def work(request: TrainRequest | MeasureRequest) -> dict[str, Any]:
    """Do what a request asks for: the content of ``results.json``, or of a StepCost.

    Raises:
        ZooError: as :func:`zoo.workflows.train.train` and :func:`zoo.workflows.step_cost.measure_training`.
    """
    recipe, num_threads = request.recipe, request.num_threads
    if isinstance(request, TrainRequest):
        folder = Path(request.folder)
        return train(recipe, folder, device=request.device, resume=True, num_threads=num_threads, quiet=True).to_json()
    device = session.start(request.device, num_threads)
    # Memory may run out before the first step, while the graph or the model is made.
    with session.oom_as_run_error(recipe.name, "lower model.num_layers or use a machine with more"):
        if request.graph_size is None:
            recipe, loaded = complete_recipe(recipe)
            graph, split = recipe_graph(recipe, loaded)
        else:
            graph, split = random_graph(recipe, *request.graph_size)
        if request.folder is None:
            # As in training, so that the weights are those of the first epoch.
            session.seed_global(recipe.train.seed, "init")
            model = build_model(recipe.model, input_shape(recipe, graph.shape))
        else:
            model = load_located(Located(Path(request.folder)))
        cost = measure_training(
            model,
            recipe,
            graph,
            split,
            device,
            num_steps=request.num_steps,
            capture=request.capture,
            edge_precision=request.edge_precision,
        )
    return cost.model_dump(mode="json")


if __name__ == "__main__":
    sys.exit(serve(lambda text: work(TypeAdapter(Request).validate_json(text))))
