"""``revgnn-zoo train``, and ``plot``, which draws what it recorded."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from zoo.cli.common import (
    check_free_split,
    echo,
    echo_figures,
    echo_json,
    echo_table,
    json_option,
    many_options,
    printable,
    training_options,
    zoo_command,
)
from zoo.workflows.launched import is_shared

if TYPE_CHECKING:
    from zoo.spec.recipe import Recipe


@zoo_command(
    "train",
    "revgnn-zoo train quickstart",
    "revgnn-zoo train my.json --set train.num_epochs=5 --out runs/mine",
    "revgnn-zoo train minesweeper --seeds 2 --splits all --devices cuda:0,cuda:1",
    "revgnn-zoo train --resume runs/mine --set train.num_epochs=50  # longer",
)
@click.argument("recipe", metavar="RECIPE")
@click.option("--out", type=click.Path(path_type=Path), help="The run directory. [default: runs/NAME-TIME]")
@click.option("--resume", is_flag=True, help="Continue a run: RECIPE is its directory, or --out names it.")
@click.option("--baseline", is_flag=True, help="Also fit a logistic regression to the node features.")
@click.option("--check-inversion", is_flag=True, help="Record how exactly a reversible stack restores its input.")
@click.option("--report-depth", is_flag=True, help="Write norms by layer, at start and end, with a picture.")
@click.option("--max-time", type=click.FloatRange(0, 1e5), metavar="HOURS", help="Save and stop after so long.")
@click.option("--seeds", "num_seeds", type=click.IntRange(1, 10_000), help="So many runs, from the recipe's seed on.")
@click.option("--dry-run", is_flag=True, help="Only check the recipe, and measure the memory of its steps.")
@click.option("--world-size", type=click.IntRange(1), help="With --dry-run: processes that would share the run.")
@training_options
@many_options
@json_option
def train_command(
    *,
    recipe: str,
    assignments: tuple[str, ...],
    out: Path | None,
    resume: bool,
    num_seeds: int | None,
    num_splits: int | str | None,
    max_time: float | None,
    dry_run: bool,
    world_size: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a recipe and evaluate its best weights.

    RECIPE is a shipped name or a file. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU and the end of --max-time
    save the state, print the command that continues, and stop with exit code 128 + the signal's number (142 for the
    time).
    With --resume, RECIPE may be the directory of a run, which holds its recipe with every --set that it was given. A
    larger train.num_epochs makes a run longer, also one that is finished, unless its learning rate follows a cosine.

    With --seeds or --splits there are several runs, OUT/split-I-seed-J, in one process for each device, and their mean
    and standard deviation, in OUT/runs.json too. The default of --out is then runs/NAME. Runs that are finished are not
    trained again; the same command continues. `compare` takes the folder OUT.

    Under torchrun the processes share the parts of each step (train.parts_per_step); on CPUs 1, 2, 4 ... of them give
    the same result to the last bit. --dry-run checks such a run in one process.
    """
    if world_size is not None and not dry_run:
        raise click.UsageError("--world-size: goes with --dry-run; torchrun --nproc-per-node starts processes")
    from zoo.spec.recipe import read_recipe

    if dry_run:
        if is_shared():
            raise click.UsageError("--dry-run: start it without torchrun; --world-size stands for its processes")
        if out is not None or resume or as_json or num_seeds is not None or num_splits is not None:
            raise click.UsageError("--dry-run: goes without --out, --resume, --json, --seeds and --splits")
        from zoo.workflows.bench import dry_run as measure

        kept = {key: options[key] for key in ("device", "num_threads", "capture", "edge_precision")}
        for line in measure(read_recipe(recipe, assignments), world_size or 1, **kept):
            echo(line)
        return
    options["max_time_s"] = None if max_time is None else max_time * 3600
    if num_seeds is not None or num_splits is not None:
        if is_shared():
            raise click.UsageError("--seeds and --splits: start them without torchrun, with --devices")
        if resume:
            raise click.UsageError("--resume: of one run; with --seeds or --splits, the same command continues")
        check_free_split(assignments, num_splits)
        runs = {"num_seeds": num_seeds or 1, "num_splits": num_splits}
        _train_many(read_recipe(recipe, assignments), out, as_json=as_json, **runs, **options)
        return
    device = options["device"] or ""
    if "," in device:
        raise click.UsageError(f"--devices {device}: one run uses one device; several need --seeds or --splits")
    if out is None and (resume or (Path(recipe) / "recipe.json").is_file()):
        spec, out = _recipe_of_run(Path(recipe), assignments, resume=resume), Path(recipe)
    else:
        spec = read_recipe(recipe, assignments)
        if out is None and ("TORCHELASTIC_RUN_ID" in os.environ or is_shared()):
            raise click.UsageError("under torchrun, --out names the run, for all processes and when they start again")
        from zoo.workflows.run_dir import fresh_folder

        out = out or fresh_folder(spec.name)
    from zoo.spec.results import ranks_in_words
    from zoo.workflows.session import StoppedError
    from zoo.workflows.train import train

    try:
        results = train(spec, out, resume=resume, **options)
    except StoppedError as error:
        # A run that had not begun leaves nothing behind.
        advice = f"; continue with:\n{_continue_command(out)}" if out.exists() else ""
        click.echo(f"Stopped: {printable(str(error))}{advice}", err=True)
        raise click.exceptions.Exit(error.exit_code) from error
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
    if results.rank_memory_bytes and results.rank_busy_s:
        echo("  ".join(map(" ".join, ranks_in_words(results.rank_memory_bytes, results.rank_busy_s).items())))
    echo(f"run: {out}")


def _train_many(spec: Recipe, out: Path | None, *, as_json: bool, **options: Any) -> None:
    """Several runs of a recipe, and their mean."""
    from zoo.workflows.runs import train_many

    out = out or Path("runs") / spec.name
    results = train_many(spec, out, **options)
    if as_json:
        echo_json({"out": str(out), **results.model_dump(mode="json", exclude_none=True)})
        return
    means = [[split, results.metric, str(getattr(results, split)), results.protocol] for split in ("valid", "test")]
    echo_table(["split", "metric", "mean ± std", "protocol"], means)
    echo()
    echo(f"{len(results.runs)} runs, {results.num_parameters:,} parameters, {results.environment.machine}")
    echo(f"runs: {out}")


def _recipe_of_run(folder: Path, assignments: tuple[str, ...], *, resume: bool) -> Recipe:
    """The recipe of a run that is to be continued."""
    if not resume:
        raise click.UsageError(f"{folder} is a run, not a recipe; to continue it, add --resume")
    if not folder.is_dir():
        raise click.UsageError("--resume needs the directory of a run, either in place of RECIPE or as --out")
    from zoo.workflows.run_dir import RunDir

    return RunDir(folder).recipe(assignments)


def _continue_command(out: Path) -> str:
    """The command that continues a stopped run, with the options of this one that are not kept in the run."""
    context = click.get_current_context()
    words = ["revgnn-zoo", "train", "--resume", str(out)]
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        # Not all options are passed on; --debug is read elsewhere.
        if given and option.name in context.params.keys() - {"recipe", "assignments", "out", "resume"}:
            value = context.params[option.name or ""]
            words += [option.opts[-1]] if value is True else [option.opts[-1], str(value)]
    return shlex.join(words)


@zoo_command("plot", "revgnn-zoo plot runs/quickstart")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The PNG file. [default: RUN/curves.png]")
def plot_command(*, run: Path, out: Path | None, quiet: bool) -> None:
    """Plot the learning curves of a run, finished or not."""
    from zoo.workflows.plot import plot
    from zoo.workflows.run_dir import RunDir

    echo(f"curves: {plot(RunDir(run), out)}")
