"""Time and memory of a training step at several depths: what fits this machine?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.errors import OutOfMemoryError, RunError
from zoo.spec.base import Spec
from zoo.spec.faults import parse_spec
from zoo.spec.recipe import Recipe
from zoo.spec.results import Environment
from zoo.workflows import session
from zoo.workflows.graphs import EdgePrecision
from zoo.workflows.processes import Task, run_tasks
from zoo.workflows.progress import Progress
from zoo.workflows.session import StoppedError, stop_requests
from zoo.workflows.step_cost import NUM_STEPS, StepCost, data_set_size
from zoo.workflows.worker import MeasureRequest


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
    num_steps: int = NUM_STEPS,
    capture: bool = False,
    edge_precision: EdgePrecision = "fp32",
    device: str | None = None,
    num_threads: int | None = None,
    quiet: bool = False,
) -> BenchResults:
    """Measure training steps of a model with fresh weights, each depth in a process of its own.

    Args:
        recipes: one recipe at different depths.
        random_graph: take a random graph in place of the recipe's data.
        num_nodes: of the random graph; None: as many as the data set has.
        num_edges: of the random graph, each direction counted; None: as many as the data set has.
        num_steps: steps that are timed.
        capture: replay CUDA graphs of one layer, on a GPU.
        edge_precision: of the edge features on a GPU.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        num_threads: of the CPU.
        quiet: show no progress.

    Raises:
        StoppedError: after a signal.
        RunError: if a depth fails for want of something other than memory.
    """
    where = session.start(device, num_threads)
    graph_size = None
    if random_graph:
        # A user's own data set has no size before it is read, so it is looked up only where a number is missing.
        graph_size = (num_nodes, num_edges) if num_nodes and num_edges else data_set_size(recipes[0])
        graph_size = (num_nodes or graph_size[0], num_edges or graph_size[1])
    # Labels are keys: run_tasks hands a task back with its answer.
    labels = {f"{recipe.name}, {recipe.model.num_layers} layers": recipe for recipe in recipes}
    request = MeasureRequest(
        recipe=recipes[0],
        graph_size=graph_size,
        num_steps=num_steps,
        capture=capture,
        edge_precision=edge_precision,
        device=str(where),
        num_threads=num_threads,
    )
    tasks = [Task(label, request.model_copy(update={"recipe": recipe})) for label, recipe in labels.items()]
    rows: list[BenchRow] = []
    with Progress(len(tasks), unit="depth", quiet=quiet) as progress, stop_requests() as stop:

        def add(task: Task, cost: StepCost | None) -> None:
            rows.append(BenchRow(num_layers=labels[task.label].model.num_layers, cost=cost))
            progress.step(task.label, {})

        def on_done(task: Task, result: dict[str, Any], warnings: Sequence[str]) -> None:
            for warning in warnings:
                progress.line(f"Warning: {task.label}: {warning}")
            add(task, parse_spec(StepCost, result, where=task.label, error=RunError))

        def on_error(task: Task, error: RunError) -> None:
            # Running out of memory is what the user wants to know; any other fault would come again at every depth.
            if not isinstance(error, OutOfMemoryError):
                raise error
            add(task, None)

        def on_start(task: Task) -> None:
            progress.stage(task.label)

        if not run_tasks(tasks, num_jobs=1, stop=stop, on_start=on_start, on_done=on_done, on_error=on_error):
            raise StoppedError(f"{stop.name}: {len(rows)} of {len(tasks)} depths are measured", stop.signum)
    return BenchResults(recipe=recipes[0].name, environment=session.environment(where), rows=tuple(rows))
