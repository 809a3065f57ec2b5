"""Time and memory of training steps: at several depths, and of one process of a run that many share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from zoo.errors import OutOfMemoryError, RunError
from zoo.models.factory import build_model
from zoo.spec.base import Spec, parse_spec
from zoo.spec.recipe import Recipe
from zoo.spec.results import Environment
from zoo.spec.shape import input_shape
from zoo.workflows import session
from zoo.workflows.distributed import check_world_size
from zoo.workflows.graphs import complete_recipe, recipe_graph
from zoo.workflows.progress import Progress, task_lines
from zoo.workflows.session import StoppedError, stop_requests
from zoo.workflows.step_cost import StepCost, data_set_size, measure_training
from zoo.workflows.worker import MeasureRequest, Task, run_tasks


class BenchRow(Spec):
    """A depth and what a step costs there; None where memory ran out."""

    num_layers: int
    cost: StepCost | None


class BenchResults(Spec):
    """The content of ``revgnn-zoo bench --json``."""

    recipe: str
    environment: Environment
    rows: tuple[BenchRow, ...]


def bench(
    recipes: Sequence[Recipe],
    *,
    random_graph: bool = False,
    num_nodes: int | None = None,
    num_edges: int | None = None,
    quiet: bool = False,
    **options: Any,
) -> BenchResults:
    """Measure training steps of a recipe with fresh weights at several depths, each in a process of its own.

    Args:
        recipes: one recipe at different depths.
        random_graph: take a random graph in place of the recipe's data.
        num_nodes: of the random graph; None: as many as the data set has.
        num_edges: of the random graph, each direction counted; None: as many as the data set has.
        quiet: show no progress.
        options: the other attributes of a :class:`MeasureRequest`, such as ``device`` and ``num_steps``.

    Raises:
        StoppedError: after a signal.
        RunError: if a depth fails for want of something other than memory.
    """
    request = MeasureRequest(recipe=recipes[0], **options)
    where = session.start(request.device, request.num_threads)
    if random_graph:
        # A user's own data set has no size before it is read, so it is looked up only where a number is missing.
        size = (num_nodes, num_edges) if num_nodes and num_edges else data_set_size(recipes[0])
        request = request.model_copy(update={"graph_size": (num_nodes or size[0], num_edges or size[1])})
    tasks = [
        Task(f"{recipe.name}, {recipe.model.num_layers} layers", request.model_copy(update={"recipe": recipe}))
        for recipe in recipes
    ]
    rows: list[BenchRow] = []
    with Progress(len(tasks), unit="depth", quiet=quiet) as progress, stop_requests() as stop:
        # One at a time, so they end in the order of the recipes.
        ended = run_tasks(tasks, devices=[str(where)], stop=stop, progress=progress)
        for recipe, (task, result) in zip(recipes, ended, strict=False):
            cost = None
            if not isinstance(result, RunError):
                cost = parse_spec(StepCost, result, where=task.label, error=RunError)
            elif not isinstance(result, OutOfMemoryError):
                # Running out of memory is a result; any other fault would come again at every depth.
                raise result
            rows.append(BenchRow(num_layers=recipe.model.num_layers, cost=cost))
            progress.step(task.label, {})
        if stop:
            raise StoppedError(f"{stop.name}: {len(rows)} of {len(tasks)} depths are measured", stop.signum)
    return BenchResults(recipe=recipes[0].name, environment=session.environment(where), rows=tuple(rows))


def dry_run(
    recipe: Recipe, world_size: int = 1, *, device: str | None = None, num_threads: int | None = None, **options: Any
) -> list[str]:
    """Lines on what a run of so many processes would need: the steps of one of them are taken here.

    ``options`` are ``capture`` and ``edge_precision`` of :func:`measure_training`.

    Raises:
        ZooError: if such a run could not begin, or memory runs out.
    """
    spec = recipe.train
    check_world_size(spec.parts_per_step, world_size)
    chosen = session.start(device, num_threads)
    recipe, graph = complete_recipe(recipe, None)
    graph, split = recipe_graph(recipe, graph)
    model = build_model(recipe.model, input_shape(recipe, graph.shape))
    lines = task_lines(recipe, graph, split, model)
    # The parts that one process takes of a step, one after the other.
    own = math.ceil(spec.parts_per_step / world_size)
    one = recipe.model_copy(update={"train": spec.model_copy(update={"parts_per_step": own})})
    cost = measure_training(model, one, graph, split, chosen, num_steps=1, **options)
    num_steps = math.ceil(spec.partition.num_parts / spec.parts_per_step)
    busy = spec.parts_per_step / (own * world_size)
    sizes = {"graph": cost.graph_bytes, "part": cost.part_bytes, "state": cost.state_bytes, "step": cost.peak_bytes}
    memory = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in sizes.items() if size)
    return [
        *lines,
        f"shared  {world_size:,} processes, each {own:,} of the {spec.parts_per_step:,} parts of a step, "
        f"{busy:.0%} of the time busy",
        f"steps   {num_steps * spec.num_epochs:,} in all; one takes {cost.median_step_s:.3g} s here, and the sum of "
        f"{cost.num_parameters * 4 / 2**20:,.1f} MiB of gradients over the processes",
        f"needs   {cost.total_bytes / 2**20:,.1f} MiB in each process ({memory})",
    ]
