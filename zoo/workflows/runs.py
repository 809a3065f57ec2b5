"""Train from Python: one run, or several of one recipe over splits and seeds, on the devices that are named."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from zoo.data.graph import Graph
from zoo.errors import RecipeError, RunError
from zoo.files import write_json
from zoo.spec.base import Spec, parse_spec
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.results import Environment, Mean, Measured, RunResults, RunScores
from zoo.spec.shape import input_shape
from zoo.workflows import session
from zoo.workflows.evaluate import test_protocol
from zoo.workflows.graphs import adapt_recipe, as_graph, complete_recipe, graph_digest, recipe_graph
from zoo.workflows.load import empty_model, is_run
from zoo.workflows.options import TrainOptions
from zoo.workflows.progress import Progress
from zoo.workflows.recipes import check_same_recipe
from zoo.workflows.run_dir import GRAPH_FILE, RECIPE_FILE, RunDir, fresh_folder
from zoo.workflows.session import StoppedError, StopRequest, stop_requests
from zoo.workflows.train import train as train_recipe
from zoo.workflows.worker import Task, TrainRequest, run_tasks

RUN_NAME = re.compile(r"^split-(\d+)-seed-(\d+)$")


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    data: object = None,
    out: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    resume: bool = False,
    on_epoch: Callable[[Mapping[str, float]], object] | None = None,
    **options: Any,
) -> RunDir:
    """Train a recipe and evaluate its best weights, as ``revgnn-zoo train`` does.

    A graph that is given is kept in the run directory, so that the run can be resumed, evaluated and moved like any
    other. The recipe is adapted to it: loss and metric follow from the labels where the recipe's do not fit them.

    >>> import zoo
    >>> losses = []
    >>> run = zoo.train("quickstart", out="runs/mine", quiet=True, device="cpu",
    ...     overrides={"model.num_layers": 2, "model.hidden_channels": 8, "train.num_epochs": 2},
    ...     on_epoch=lambda record: losses.append(record["train_loss"]))
    >>> len(losses)
    2
    >>> [comparison.figure.split for comparison in zoo.evaluate(run, split="test", quiet=True, device="cpu")]
    ['test']

    Args:
        recipe: the name of a shipped recipe, a JSON file, or a recipe; with ``resume`` also the folder of a run, which
            holds its recipe and its graph.
        data: a ``torch_geometric.data.Data`` or a ``zoo.Graph``; None: the recipe's own data set.
        out: the run directory; None: a new folder below ``runs``.
        overrides: values of the recipe by dotted key, such as ``{"train.num_epochs": 5}``.
        resume: continue an unfinished run, or one that has fewer epochs than the recipe; start one that is not there.
        on_epoch: called after each epoch with its line of ``metrics.jsonl``: ``epoch``, ``train_loss`` and more; for
            example ``wandb.log``.
        options: the attributes of :class:`zoo.TrainOptions`, such as ``device="cuda:1"`` and ``quiet=True``.

    Returns:
        The run directory, which ``zoo.evaluate``, ``zoo.load`` and ``zoo.push`` take; ``results()`` holds its figures.

    Raises:
        RunError: if the run directory or an option cannot be used, or a loss or gradient is not finite.
        ZooError: if the recipe does not fit its data, or these cannot be loaded.
    """
    if on_epoch is not None and not callable(on_epoch):
        raise RunError(f"on_epoch: expected a function, got {on_epoch!r}")
    if resume and isinstance(recipe, str | os.PathLike) and (Path(recipe) / RECIPE_FILE).is_file():
        folder = Path(recipe)
        chosen = RunDir(folder).recipe(overrides)
    else:
        chosen = read_recipe(recipe, overrides)
        folder = fresh_folder(chosen.name) if out is None else Path(out)
    graph = None
    if data is not None:
        graph = as_graph(data)
        chosen = adapt_recipe(chosen, graph, str((folder / GRAPH_FILE).absolute()))
    train_recipe(chosen, folder, graph=graph, resume=resume, on_epoch=on_epoch, **options)
    return RunDir(folder)


@dataclass(frozen=True)
class Run:
    """One model: a recipe with its split and its seed, and the folder of its weights."""

    recipe: Recipe
    folder: Path

    @property
    def split(self) -> int:
        """The split of the data that it learns from."""
        return self.recipe.data.split

    @property
    def label(self) -> str:
        """A name among several runs."""
        return f"{self.recipe.name}, split {self.split}, seed {self.recipe.train.seed}"

    def results(self) -> RunResults | None:
        """The results of a finished run; None if it is not finished, or the folder is that of a bundle."""
        return RunDir(self.folder).results() if (self.folder / "recipe.json").is_file() else None


class ManyResults(Spec):
    """The content of ``runs.json``, what leaderboards ask for; ``environment`` is that of the first run."""

    name: str
    metric: str
    protocol: str
    runs: tuple[RunScores, ...]
    valid: Mean
    test: Mean
    num_parameters: int
    environment: Environment


def train_many(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    out: str | os.PathLike[str],
    *,
    num_seeds: int = 1,
    num_splits: int | Literal["all"] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    **options: Any,
) -> ManyResults:
    """Train a recipe with several seeds and on several splits, each run in ``out / split-I-seed-J``.

    Runs that are finished are taken as they are, unfinished ones continued.

    >>> import zoo
    >>> found = zoo.train_many("quickstart", "runs/seeds", num_seeds=2, quiet=True, device="cpu",
    ...     overrides={"model.num_layers": 2, "model.hidden_channels": 8, "train.num_epochs": 2})
    >>> [run.seed for run in found.runs], found.test.std is not None
    ([0, 1], True)

    Args:
        recipe: the name of a shipped recipe, a JSON file, or a recipe.
        out: the folder of all runs.
        num_seeds: so many seeds, from the recipe's on.
        num_splits: the first so many splits of the data, or "all"; None: the recipe's own.
        overrides: values of the recipe by dotted key.
        options: the attributes of :class:`zoo.TrainOptions`. ``device`` may name several, such as ``cuda:0,cuda:1``: as
            many runs train at the same time, each device in one process. ``num_threads`` are those of each process;
            None: those of this machine, shared by the processes.

    Returns:
        Mean and standard deviation, which ``out / "runs.json"`` holds too.

    Raises:
        StoppedError: after a signal or ``max_time_s``; the same call continues.
        ZooError: if there are not so many splits, the model does not fit the data, or a run fails.
    """
    if num_seeds < 1:
        raise RunError(f"num_seeds: expected an integer of at least 1, got {num_seeds!r}")
    chosen = parse_spec(TrainOptions, options, where="options", error=RunError)
    out, devices = Path(out), session.resolve_devices(chosen.device)
    if is_run(out):
        raise RunError(f"{out}: holds a single run; choose another --out for several")
    recipe, loaded = complete_recipe(read_recipe(recipe, overrides))
    graph, _ = recipe_graph(recipe, loaded)
    splits = (recipe.data.split,) if num_splits is None else first_splits(graph, num_splits)
    runs = runs_of(recipe, out, splits, num_seeds)
    check_runs(recipe, runs, graph)
    # The workers have their own.
    del graph, loaded
    done = sum(run.results() is not None for run in runs)
    with (
        stop_requests(chosen.max_time_s) as stop,
        Progress(len(runs), unit="run", quiet=chosen.quiet, done=done) as progress,
    ):
        train_runs(runs, chosen, devices=devices, stop=stop, progress=progress)
    found = [(run, results) for run in runs if (results := run.results()) is not None]
    scores = [run_scores(run, results) for run, results in found]
    summary = ManyResults(
        name=recipe.name,
        metric=recipe.metric,
        protocol=str(test_protocol(recipe)),
        **means(scores),
        num_parameters=found[0][1].num_parameters,
        environment=found[0][1].environment,
    )
    write_json(out / "runs.json", summary.model_dump(mode="json", exclude_none=True), RunError)
    return summary


def first_splits(graph: Graph, num_splits: int | Literal["all"] | None) -> tuple[int, ...]:
    """The first so many splits of a graph; "all" and None: all. A RunError if there are not so many."""
    count = len(graph.splits)
    wanted = count if num_splits in (None, "all") else int(num_splits)
    if not 1 <= wanted <= count:
        raise RunError(f"--splits {num_splits}: {graph.name} has {count} split{'' if count == 1 else 's'}")
    return tuple(range(wanted))


def runs_of(recipe: Recipe, folder: Path, splits: Sequence[int], num_seeds: int) -> tuple[Run, ...]:
    """The runs of a recipe, ``folder / split-I-seed-J``, seed by seed from the recipe's on.

    Raises:
        RunError: if one of the folders holds the run of another recipe.
    """
    seeds, runs = range(recipe.train.seed, recipe.train.seed + num_seeds), []
    for seed, split in itertools.product(seeds, splits):
        run = Run(run_recipe(recipe, split, seed), folder / f"split-{split}-seed-{seed}")
        if (run.folder / "recipe.json").is_file():
            check_same_recipe(run.folder, RunDir(run.folder).recipe(), run.recipe)
        runs.append(run)
    return tuple(runs)


def run_recipe(recipe: Recipe, split: int, seed: int) -> Recipe:
    """A recipe with a split and a seed."""
    train, data = recipe.train.model_copy(update={"seed": seed}), recipe.data.model_copy(update={"split": split})
    return recipe.model_copy(update={"train": train, "data": data})


def check_runs(recipe: Recipe, runs: Sequence[Run], graph: Graph) -> None:
    """Make sure, before anything is trained, that the model fits its graph and that finished runs saw this very one.

    Raises:
        RecipeError: if the model does not fit.
        RunError: if a run saw other data.
    """
    try:
        empty_model(recipe.model, input_shape(recipe, graph.shape))
    except (RecipeError, ValueError) as error:
        raise RecipeError(f"{recipe.name}: does not fit {graph.name}: {error}") from error
    digests: dict[int, str] = {}
    for run in runs:
        results = run.results()
        if results is None:
            continue
        if run.split not in digests and run.split < len(graph.splits):
            digests[run.split] = graph_digest(graph, graph.splits[run.split])
        if digests.get(run.split) != results.data_sha256:
            raise RunError(f"{run.folder}: was trained on other data than {graph.name} is now; move it away")


def train_runs(
    runs: Sequence[Run], options: TrainOptions, *, devices: Sequence[str], stop: StopRequest, progress: Progress
) -> None:
    """Train the runs that are not finished, with one warm process for each device.

    Raises:
        StoppedError: after a signal.
        RunError: if a run fails; the others save their states.
    """
    missing = {run.label: run for run in runs if run.results() is None}
    num_finished = len(runs) - len(missing)
    if runs and not missing:
        progress.line("all runs are there already")
    if options.num_threads is None and len(devices) > 1:
        # Each process would take all cores, and threads that wait for a core slow down those that have one.
        options = options.model_copy(update={"num_threads": max(1, torch.get_num_threads() // len(devices))})
    # The time is watched here, for all of them.
    options = options.model_copy(update={"max_time_s": None})
    tasks = []
    for label, run in missing.items():
        todo = TrainRequest(recipe=run.recipe, folder=str(run.folder), **options.model_dump())
        tasks.append(Task(label, todo, model=run.recipe.name))
    # No more processes than there are runs.
    for task, answer in run_tasks(tasks, devices=devices[: len(tasks)], warm=True, stop=stop, progress=progress):
        if isinstance(answer, RunError):
            # Leaving the loop stops the other processes, which save their states.
            raise answer
        results = parse_spec(RunResults, answer, where=task.label, error=RunError)
        test = test_figures(results.results, missing[task.label].recipe)["test"]
        shown = {"test": f"{test:.4f}", "train_s": f"{results.train_s:.1f}"}
        progress.step(task.label, shown)
        progress.figures(task.label, shown)
        num_finished += 1
    if stop:
        message = f"{num_finished} of {len(runs)} runs are finished; the same command continues where it was"
        raise StoppedError(f"{stop.name}: {message}", stop.signum)


def test_figures(figures: Sequence[Measured], recipe: Recipe) -> dict[str, Any]:
    """The figures on valid and test nodes that were measured as the recipe's test says, by split."""
    protocol = str(test_protocol(recipe))
    return {f.split: f.value for f in figures if f.protocol == protocol and f.split in ("valid", "test")}


def means(runs: Sequence[RunScores]) -> dict[str, Any]:
    """Runs with the means of their scores, as a row of results holds them."""
    valid, test = Mean.of([run.valid for run in runs]), Mean.of([run.test for run in runs])
    return {"runs": tuple(runs), "valid": valid, "test": test}


def run_scores(run: Run, results: RunResults) -> RunScores:
    """The scores of a finished run."""
    return RunScores(
        split=run.split,
        seed=run.recipe.train.seed,
        num_epochs=results.num_epochs,
        best_epoch=results.best_epoch,
        # A teacher is trained for the sake of its student.
        train_s=results.train_s + (0.0 if results.teacher is None else results.teacher.train_s),
        **test_figures(results.results, run.recipe),
    )
