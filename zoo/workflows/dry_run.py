"""Check what a run would need, and how its steps are shared, in one process and without a run directory."""

from __future__ import annotations

import math

from zoo.models.factory import build_model
from zoo.spec.recipe import Recipe
from zoo.spec.shape import input_shape
from zoo.workflows import session
from zoo.workflows.distributed import check_world_size
from zoo.workflows.graphs import EdgePrecision, complete_recipe, recipe_graph
from zoo.workflows.progress import task_lines
from zoo.workflows.step_cost import measure_training


def dry_run(
    recipe: Recipe,
    world_size: int = 1,
    *,
    device: str | None = None,
    num_threads: int | None = None,
    capture: bool = False,
    edge_precision: EdgePrecision = "fp32",
) -> list[str]:
    """Take the steps of one process of a run, and say what they cost.

    Args:
        recipe: what would be trained.
        world_size: W, the processes that would share it.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        num_threads: of the CPU.
        capture: replay CUDA graphs of one reversible layer, on a GPU.
        edge_precision: of the edge features on a GPU.

    Returns:
        Lines of text.

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
    cost = measure_training(
        model, one, graph, split, chosen, num_steps=1, capture=capture, edge_precision=edge_precision
    )
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
