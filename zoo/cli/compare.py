"""``revgnn-zoo compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.common import (
    check_free_split,
    echo,
    echo_json,
    echo_table,
    json_option,
    many_options,
    reference,
    set_option,
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
