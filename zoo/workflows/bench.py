"""Time and memory of a training step at several depths: what fits this machine?"""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import OutOfMemoryError, RunError
from zoo.spec.base import Spec, parse_spec
from zoo.spec.recipe import Recipe
from zoo.spec.results import Environment
from zoo.workflows import session
from zoo.workflows.graphs import EdgePrecision
from zoo.workflows.progress import Progress
from zoo.workflows.session import StoppedError, stop_requests
from zoo.workflows.step_cost import NUM_STEPS, StepCost, data_set_size
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
    request = MeasureRequest(
        recipe=recipes[0],
        graph_size=graph_size,
        num_steps=num_steps,
        capture=capture,
        edge_precision=edge_precision,
        device=str(where),
        num_threads=num_threads,
    )
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
