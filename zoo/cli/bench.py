"""``revgnn-zoo bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zoo.cli.common import (
    capture_option,
    chosen_recipe,
    common_options,
    device_options,
    edge_precision_option,
    example,
    json_option,
    say,
    say_json,
    say_table,
    set_option,
)

if TYPE_CHECKING:
    from zoo.workflows.graphs import EdgePrecision

HEAD = ("layers", "parameters", "s/step", "s/epoch", "step memory", "memory in all")
EXAMPLE = example(
    "revgnn-zoo bench quickstart --layers 7,14,28",
    "revgnn-zoo bench rev_deep --layers 14,112,1001 --nodes 132534 --edges 79122504",
)


@click.command("bench", epilog=EXAMPLE)
@click.argument("recipe")
@click.option("--layers", "depths", metavar="L,L,...", help="Depths to measure. [default: the recipe's]")
@click.option("--nodes", "num_nodes", type=click.IntRange(64), help="Of a random graph in place of the recipe's data.")
@click.option("--edges", "num_edges", type=click.IntRange(1), help="Of that graph, each direction counted.")
@click.option("--steps", "num_steps", type=click.IntRange(1), default=5, show_default=True, help="Timed steps.")
@set_option
@capture_option
@edge_precision_option
@device_options
@json_option
@common_options
def command(
    *,
    recipe: str,
    depths: str | None,
    num_nodes: int | None,
    num_edges: int | None,
    num_steps: int,
    assignments: tuple[str, ...],
    capture: bool,
    edge_precision: EdgePrecision,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure time and memory of a training step: what fits this machine?

    RECIPE is a shipped name or a file. Its own data are read, unless --nodes and --edges ask for a random graph with
    features and labels as wide as theirs. Each depth runs in a process of its own and may run out of memory.
    """
    if (num_nodes is None) != (num_edges is None):
        raise click.UsageError("--nodes and --edges go together")
    try:
        layers = sorted({int(text) for text in depths.split(",")}) if depths is not None else []
    except ValueError as error:
        raise click.UsageError(f"--layers {depths}: expected whole numbers, such as 7,14,28") from error
    changes = [[*assignments, f"model.num_layers={number}"] for number in layers] or [list(assignments)]
    recipes = [chosen_recipe(recipe, change) for change in changes]
    from zoo.workflows.bench import bench

    graph_size = None if num_nodes is None or num_edges is None else (num_nodes, num_edges)
    results = bench(
        recipes,
        graph_size=graph_size,
        num_steps=num_steps,
        capture=capture,
        edge_precision=edge_precision,
        device=device,
        num_threads=threads,
        quiet=quiet,
    )
    if as_json:
        say_json(results.model_dump(mode="json"))
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
    say_table(HEAD, rows, right=range(len(HEAD)))
    costs = [row.cost for row in results.rows if row.cost is not None]
    if costs:
        parts = "1 part" if costs[0].num_parts == 1 else f"{costs[0].num_parts:,} parts"
        say(f"{results.recipe}: {costs[0].num_nodes:,} nodes, {costs[0].num_edges:,} edges, {parts}")
        say("in all: with parameters, gradients, optimizer state and the part")
