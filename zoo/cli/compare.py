"""``revgnn-zoo compare`` and ``bench``: what models need, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.common import (
    check_free_split,
    device_options,
    echo,
    echo_json,
    echo_table,
    json_option,
    many_options,
    reference,
    set_option,
    training_options,
    zoo_command,
)
from zoo.spec.shipped import recipe_path

if TYPE_CHECKING:
    from zoo.spec.recipe import Recipe


@zoo_command(
    "compare",
    "revgnn-zoo compare rev_64 res_64 deq_64 --data minesweeper --out runs/mines",
    "revgnn-zoo compare mine.json other.json --splits 3 --seeds 2",
    "revgnn-zoo compare runs/mine runs/mines/rev_64 --out runs/both",
)
@click.argument("models", metavar="RECIPE...", nargs=-1, required=True)
@click.option("--data", "data", metavar="RECIPE", help="Put every recipe on the data of this one.")
@click.option("--seeds", "num_seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs on each split.")
@set_option
@click.option("--out", type=click.Path(path_type=Path), help="The folder of all files. [default: runs/compare-DATA]")
@many_options
@json_option
def compare_command(
    *,
    models: tuple[str, ...],
    data: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare models: the metric against memory, parameters and time.

    RECIPE is a shipped name or a file, which is trained on every split; or the folder of a finished run, of several
    runs of one recipe, or of a bundle. All must be measured on the same data, in the same metric and under the same
    protocol, which --data sees to: data, loss, partitions and evaluation are then those of that recipe, model,
    optimizer and epochs stay.

    Writes compare.md, compare.png and compare.json, and NAME/split-I-seed-J for each run. Runs that are finished are
    not trained again; after Ctrl-C the same command continues.
    """
    check_free_split(assignments, "all")
    chosen = [_model(model, data, assignments) for model in models]
    if out is None:
        name = next((model.data.dataset for model in chosen if not isinstance(model, Path)), "runs")
        out = Path("runs") / f"compare-{name}"
    from zoo.workflows.compare import compare
    from zoo.workflows.compare_report import HEAD, caption, rows

    results = compare(chosen, out, **options)
    if as_json:
        echo_json({"out": str(out), **results.model_dump(mode="json", exclude_none=True)})
        return
    # The caption names the number of runs, and compare.md has all columns.
    optional = [HEAD.index(name) for name in ("training", "runs", "channels")]
    echo_table(HEAD, rows(results), right=range(1, len(HEAD)), optional=optional)
    echo()
    for line in caption(results):
        echo(line)
    echo(f"written: {out}/compare.md, compare.png, compare.json")


def _model(text: str, data: str | None, assignments: tuple[str, ...]) -> Recipe | Path:
    from zoo.spec.recipe import read_recipe
    from zoo.workflows.recipes import recipe_on_data

    folder = reference(text)
    if isinstance(folder, Path) and folder.is_dir():
        return folder
    path = recipe_path(text)
    return read_recipe(text, assignments) if data is None else recipe_on_data(path, recipe_path(data), assignments)


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
    head = ["layers", "parameters", "s/step", "s/epoch", "step memory", "memory in all"]
    echo_table(head, rows, right=range(len(head)))
    costs = [row.cost for row in results.rows if row.cost is not None]
    if costs:
        parts = "1 part" if costs[0].num_parts == 1 else f"{costs[0].num_parts:,} parts"
        echo(f"{results.recipe}: {costs[0].num_nodes:,} nodes, {costs[0].num_edges:,} edges, {parts}")
        echo("in all: with parameters, gradients, optimizer state and the part")
