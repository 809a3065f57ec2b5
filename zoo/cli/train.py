"""``revgnn-zoo train``."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zoo.cli.common import (
    capture_option,
    chosen_recipe,
    common_options,
    device_options,
    echo,
    echo_figures,
    echo_json,
    edge_precision_option,
    example,
    json_option,
    set_option,
)

if TYPE_CHECKING:
    from zoo.workflows.graphs import EdgePrecision

EXAMPLE = example(
    "revgnn-zoo train quickstart",
    "revgnn-zoo train my.json --set train.num_epochs=5 --device cuda --out runs/mine --resume",
)


@click.command("train", epilog=EXAMPLE)
@click.argument("recipe", metavar="RECIPE")
@set_option
@click.option("--out", type=click.Path(path_type=Path), help="The run directory. [default: runs/NAME-TIME]")
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped; start it if it is not there.")
@click.option("--baseline", is_flag=True, help="Also fit a logistic regression to the node features.")
@capture_option
@edge_precision_option
@device_options
@json_option
@common_options
def command(
    *,
    recipe: str,
    assignments: tuple[str, ...],
    out: Path | None,
    resume: bool,
    baseline: bool,
    capture: bool,
    edge_precision: EdgePrecision,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a recipe and evaluate its best weights.

    RECIPE is a shipped name or a file. Ctrl-C or SIGTERM saves the state and stops; --resume continues.
    """
    if resume and out is None:
        raise click.UsageError("--resume needs --out, the directory of the run to continue")
    spec = chosen_recipe(recipe, assignments)
    out = out or _fresh_folder(spec.name)
    from zoo.workflows.train import train

    results = train(
        spec,
        out,
        device=device,
        resume=resume,
        baseline=baseline,
        num_threads=threads,
        capture=capture,
        edge_precision=edge_precision,
        quiet=quiet,
    )
    if as_json:
        echo_json({"run": str(out), **results.to_json()})
        return
    echo_figures(results.results, results.baseline)
    if results.teacher is not None:
        echo()
        echo("its teacher:")
        echo_figures(results.teacher.results)
    echo()
    echo(f"best epoch {results.best_epoch} of {results.num_epochs}, {results.num_parameters:,} parameters")
    echo(f"run: {out}")


def _fresh_folder(name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (f"{name}-{stamp}" + (f"-{number}" if number > 1 else "") for number in count(1))
    return next(path for path in (Path("runs") / text for text in names) if not path.exists())
