"""``revgnn-zoo bench``."""

from __future__ import annotations

from typing import Any

import click

from zoo.cli.common import device_options, echo, echo_json, echo_table, json_option, training_options, zoo_command

HEAD = ("layers", "parameters", "s/step", "s/epoch", "step memory", "memory in all")


@zoo_command(
    "bench", "revgnn-zoo bench quickstart --layers 7,14,28", "revgnn-zoo bench rev_deep --layers 14,112 --random-graph"
)
@click.argument("recipe")
@click.option("--layers", "depths", metavar="L,L,...", help="Depths to measure. [default: the recipe's]")
@click.option("--random-graph", is_flag=True, help="Take a random graph of the data set's size in place of the data.")
@click.option("--nodes", "num_nodes", type=click.IntRange(64), help="Of the random graph. [default: the data set's]")
@click.option("--edges", "num_edges", type=click.IntRange(1), help="Of the random graph, each direction counted.")
@click.option("--steps", "num_steps", type=click.IntRange(1), default=5, show_default=True, help="Timed steps.")
@training_options
@device_options
@json_option
def bench_command(
    *,
    recipe: str,
    depths: str | None,
    random_graph: bool,
    num_nodes: int | None,
    num_edges: int | None,
    assignments: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Measure time and memory of a training step: what fits this machine?

    RECIPE is a shipped name or a file. A random graph has features and labels as wide as those of the data. Each depth
    runs in a process of its own and may run out of memory.
    """
    if not random_graph and (num_nodes is not None or num_edges is not None):
        raise click.UsageError("--nodes and --edges are of a random graph; add --random-graph")
    try:
        layers = sorted({int(text) for text in depths.split(",")}) if depths is not None else []
    except ValueError as error:
        raise click.UsageError(f"--layers {depths}: expected whole numbers, such as 7,14,28") from error
    from zoo.spec.recipe import read_recipe

    changes = [[*assignments, f"model.num_layers={number}"] for number in layers] or [list(assignments)]
    recipes = [read_recipe(recipe, change) for change in changes]
    from zoo.workflows.bench import bench

    results = bench(recipes, random_graph=random_graph, num_nodes=num_nodes, num_edges=num_edges, **options)
    if as_json:
        echo_json(results.model_dump(mode="json"))
        return
    rows = []
    for row in results.rows:
        cost = row.cost
        if cost is None:
            rows.append([str(row.num_layers), "-", "-", "-", "-", "out of memory"])
            continue
        memory = [f"{size / 2**20:,.1f} MiB" for size in (cost.peak_bytes, cost.total_bytes)]
        seconds = [f"{cost.median_step_s:.3g}", f"{cost.epoch_s:.3g}"]
        rows.append([str(row.num_layers), f"{cost.num_parameters:,}", *seconds, *memory])
    echo_table(HEAD, rows, right=range(len(HEAD)))
    costs = [row.cost for row in results.rows if row.cost is not None]
    if costs:
        parts = "1 part" if costs[0].num_parts == 1 else f"{costs[0].num_parts:,} parts"
        echo(f"{results.recipe}: {costs[0].num_nodes:,} nodes, {costs[0].num_edges:,} edges, {parts}")
        echo("in all: with parameters, gradients, optimizer state and the part")
