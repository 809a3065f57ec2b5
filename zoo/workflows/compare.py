"""A comparison from top to bottom: check, train what is not there yet, measure, write."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from zoo.data.datasets import DATASETS
from zoo.data.graph import Graph
from zoo.errors import DataError, RecipeError, RunError
from zoo.files import atomic_write, make_folder, write_json
from zoo.hub.config import read_config
from zoo.json_object import read_json_object
from zoo.spec.base import parse_spec
from zoo.spec.recipe import Recipe
from zoo.spec.results import RunScores, baseline_in_words
from zoo.spec.shape import DataSpec
from zoo.workflows import compare_report as report
from zoo.workflows import session
from zoo.workflows.baseline import linear_baseline
from zoo.workflows.compare_report import BaselineEntry, ComparedData, CompareEntry, CompareResults
from zoo.workflows.evaluate import evaluate, test_protocol
from zoo.workflows.graphs import complete_recipe, graph_digest, is_synthetic, recipe_graph
from zoo.workflows.load import is_run
from zoo.workflows.options import TrainOptions
from zoo.workflows.plot import png
from zoo.workflows.progress import Progress
from zoo.workflows.recipes import check_same_recipe, recipe_digest
from zoo.workflows.run_dir import RunDir
from zoo.workflows.runs import (
    RUN_NAME,
    Run,
    check_runs,
    first_splits,
    means,
    run_recipe,
    run_scores,
    runs_of,
    test_figures,
    train_runs,
)
from zoo.workflows.session import StoppedError, StopRequest, stop_requests
from zoo.workflows.step_cost import StepCost
from zoo.workflows.worker import MeasureRequest, Task, run_tasks


@dataclass(frozen=True)
class _Job:
    """Everything that the steps of one comparison share.

    Attributes:
        measured: costs of steps and scores of baselines by a digest of what they depend on, as in ``cache``.
        cache: a JSON file, so that an interrupted comparison need not repeat measurements.
    """

    device: torch.device
    num_threads: int | None
    devices: tuple[str, ...]
    quiet: bool
    progress: Progress
    stop: StopRequest
    measured: dict[str, Any]
    cache: Path

    def keep(self, key: str, value: Any) -> None:
        # The whole file each time: it is small, and a process may be killed after any measurement.
        self.measured[key] = value
        make_folder(self.cache.parent, RunError)
        write_json(self.cache, self.measured, RunError)

    def stop_if_asked(self) -> None:
        if self.stop:
            message = f"{self.stop.name}: all runs are finished; the same command continues where it was"
            raise StoppedError(message, self.stop.signum)


def compare(
    models: Sequence[Recipe | Path],
    out: Path,
    *,
    num_splits: int | Literal["all"] | None = None,
    num_seeds: int = 1,
    device: str | None = None,
    num_threads: int | None = None,
    quiet: bool = False,
) -> CompareResults:
    """Train or load several models, measure them alike, and write ``compare.json``, ``.md`` and ``.png``.

    A recipe is trained on each split with each seed, in ``out / NAME / split-I-seed-J``, by one process for each
    device. Runs that are finished are taken as they are, unfinished ones continued.

    Args:
        models: a recipe is trained; a path is that of a run directory, of a folder of runs, or of a bundle.
        out: the folder of all files.
        num_splits: train on the first so many splits, or on "all"; None: on all, or on those of finished runs given.
        num_seeds: train with so many seeds, from the recipe's on.
        device: ``cpu``, ``cuda``, ``cuda:N``, or several of them, such as ``cuda:0,cuda:1``: as many train at the same
            time, and the first measures. None: the GPU if there is one.
        num_threads: of the CPU, for each process.
        quiet: show no progress.

    Returns:
        The content of ``compare.json``.

    Raises:
        StoppedError: after a signal; the same call continues.
        ZooError: if the figures could not stand in one table, a model does not fit the data, or a run fails.
    """
    devices = session.resolve_devices(device)
    where = session.start(devices[0], num_threads)
    entries = read_entries(models)
    graph, _ = recipe_graph(entries[0].recipe)
    splits = _splits_to_run(entries, num_splits, graph)
    for index, entry in enumerate(entries):
        if entry.is_trained_here:
            entries[index] = replace(entry, runs=runs_of(entry.recipe, out / entry.name, splits, num_seeds))
    check_runs(entries[0].recipe, entries[0].runs, graph)
    for entry in entries[1:]:
        # Each recipe prepares the graph in its own way. They are checked in turn, as one graph may fill the memory.
        check_runs(entry.recipe, entry.runs, recipe_graph(entry.recipe)[0])
    cache = out / "measured.json"
    measured = _read_cache(cache)
    runs = [run for entry in entries if entry.is_trained_here for run in entry.runs]
    done = sum(run.results() is not None for run in runs)
    with stop_requests() as stop:
        with Progress(len(runs) + len(entries), unit="task", quiet=quiet, done=done) as progress:
            job = _Job(where, num_threads, devices, quiet, progress, stop, measured, cache)
            if len(devices) > 1 and len(runs) - done > 1:
                # Cached, because a later call that finds these runs finished still has to note it beside their times.
                job.keep("num_jobs", len(devices))
            train_runs(runs, TrainOptions(num_threads=num_threads), devices=devices, stop=stop, progress=progress)
            # After all training, because parallel jobs would compete with the measured step for the machine.
            costs = _measure(entries, job)
        rows = tuple(_row(entry, cost, job) for entry, cost in zip(entries, costs, strict=True))
        baseline = _baseline(entries[0].recipe, graph, splits, job)
    recipe = entries[0].recipe
    known = DATASETS.get(recipe.data.dataset)
    data = ComparedData(
        dataset=recipe.data.dataset,
        name=graph.name,
        num_nodes=graph.num_nodes,
        num_edges=graph.num_edges,
        is_synthetic=is_synthetic(recipe, graph),
    )
    # Figures that others reported hold for the real data alone.
    reported = () if known is None or data.is_synthetic else known.reported
    results = CompareResults(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        environment=session.environment(where),
        data=data,
        metric=recipe.metric,
        protocol=str(test_protocol(recipe)),
        splits=splits,
        models=rows,
        baseline=baseline,
        reported=tuple(figure for figure in reported if figure.metric == recipe.metric),
        notes=tuple(_notes(entries, measured.get("num_jobs", 1))),
    )
    make_folder(out, RunError)
    # The JSON comes first, because picture and table can be made from it again.
    write_json(out / "compare.json", results.model_dump(mode="json", exclude_none=True), RunError)
    atomic_write(out / "compare.png", [png(report.picture(results))], RunError)
    atomic_write(out / "compare.md", [report.markdown(results).encode()], RunError)
    return results


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, error=RunError, max_bytes=1 << 26) if path.exists() else {}
    except RunError as error:
        raise RunError(f"{error}; remove the file") from error


def _measure(entries: Sequence[Entry], job: _Job) -> list[StepCost]:
    """Measure a training step of each entry, one after the other, with the weights at the end of training.

    Some models take longer the further they are.
    """
    keys = {f"{entry.name}, a training step": _cost_key(entry, job) for entry in entries}
    tasks = []
    for (label, key), entry in zip(keys.items(), entries, strict=True):
        if key in job.measured:
            job.progress.step(label, {})
            continue
        recipe, folder = entry.runs[0].recipe, str(entry.runs[0].folder)
        request = MeasureRequest(recipe=recipe, folder=folder, num_threads=job.num_threads)
        tasks.append(Task(label, request, model=recipe.name))
    # A new process for each: what others leave in memory would be taken for free.
    for task, answer in run_tasks(tasks, devices=job.devices[:1], stop=job.stop, progress=job.progress):
        if isinstance(answer, RunError):
            raise answer
        job.keep(keys[task.label], answer)
        job.progress.step(task.label, {})
    job.stop_if_asked()
    return [parse_spec(StepCost, job.measured[key], where=label, error=RunError) for label, key in keys.items()]


def _cost_key(entry: Entry, job: _Job) -> str:
    """The key of an entry's step in the cache: a digest of all that its cost depends on."""
    run, environment = entry.runs[0], session.environment(job.device)
    results = run.results()
    facts = [recipe_digest(run.recipe), results and results.data_sha256, environment.model_dump()]
    return "cost " + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _scores(run: Run, job: _Job) -> RunScores:
    """The scores of a run; a bundle is evaluated here."""
    results = run.results()
    if results is None:
        compared = evaluate(
            run.folder,
            split=("valid", "test"),
            data=run.recipe.data.path or None,
            device=str(job.device),
            num_threads=job.num_threads,
            quiet=job.quiet,
        )
        figures = test_figures([item.figure for item in compared], run.recipe)
        scores = RunScores(split=run.split, seed=run.recipe.train.seed, **figures)
    else:
        scores = run_scores(run, results)
    job.stop_if_asked()
    return scores


def _row(entry: Entry, cost: StepCost, job: _Job) -> CompareEntry:
    runs = [_scores(run, job) for run in entry.runs]
    times = [run.train_s for run in runs if run.train_s is not None]
    return CompareEntry(
        name=entry.name,
        type=entry.recipe.model.type,
        num_layers=entry.recipe.model.num_layers,
        hidden_channels=entry.recipe.model.hidden_channels,
        **means(runs),
        num_parameters=cost.num_parameters,
        peak_bytes=cost.peak_bytes,
        step_s=cost.median_step_s,
        epoch_s=cost.epoch_s,
        train_s=round(sum(times), 3) if len(times) == len(runs) else None,
    )


def _baseline(recipe: Recipe, graph: Graph, splits: Sequence[int], job: _Job) -> BaselineEntry | None:
    """A linear model of the node features on each split; None where it is not defined."""
    rows, metric = [], recipe.metric
    for index in splits:
        split = graph.splits[index]
        key = f"baseline {metric} {graph_digest(graph, split)}"
        if key not in job.measured:
            # It takes longer than an evaluation on wide features, so it is cached by a digest of all that it reads.
            try:
                job.keep(key, linear_baseline(graph, split, metric))
            except DataError:
                return None
        job.stop_if_asked()
        scores = job.measured[key]
        rows.append(RunScores(split=index, valid=scores["valid"], test=scores["test"]))
    return BaselineEntry(name=baseline_in_words(recipe.metric), **means(rows))


def _notes(entries: Sequence[Entry], num_jobs: int) -> list[str]:
    """The circumstances under which figures of the table do not compare."""
    notes = _data_differences(entries)
    if num_jobs > 1:
        notes.append(f"up to {num_jobs} runs were trained at the same time: training times do not compare")
    trained = [run.results() for entry in entries for run in entry.runs]
    machines = sorted({results.environment.machine for results in trained if results is not None})
    if len(machines) > 1:
        notes.append(f"trained on {', '.join(machines)}: training times do not compare")
    return notes


@dataclass(frozen=True)
class Entry:
    """A row of the table: a recipe, and one run of it for each split and seed; a bundle has one.

    A recipe is trained here; finished runs and bundles are not.
    """

    recipe: Recipe
    runs: tuple[Run, ...]
    is_trained_here: bool = False

    @property
    def name(self) -> str:
        """Its name in the table."""
        return self.recipe.name

    @property
    def splits(self) -> tuple[int, ...]:
        """The splits that it is measured on, ascending."""
        return tuple(sorted({run.split for run in self.runs}))


def read_entries(models: Sequence[Recipe | Path]) -> list[Entry]:
    """Make an entry of each recipe, run directory, folder of run directories, or bundle; recipes have no runs yet.

    Raises:
        ZooError: if a folder is none of these, or holds a run that is not finished; if two have one name, or the
            figures of two cannot stand in one table.
    """
    entries = [
        _folder_entry(model) if isinstance(model, Path) else Entry(model, (), is_trained_here=True) for model in models
    ]
    path = next((entry for entry in entries if entry.is_trained_here), entries[0]).recipe.data.path
    if path:
        # The file may have been moved since a model was trained; a digest shows whether the data are the same.
        entries = [entry if entry.is_trained_here else _with_path(entry, path) for entry in entries]
    names = [entry.name for entry in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RunError(f"{twice[0]}: two of the models have this name; each needs a recipe with one of its own")
    _check_alike(entries, lambda recipe: {"data.dataset": recipe.data.dataset, "data.path": recipe.data.path})
    # Only now are data read: a recipe may leave its metric to them.
    entries = [
        replace(entry, recipe=complete_recipe(entry.recipe)[0]) if entry.is_trained_here else entry for entry in entries
    ]
    _check_alike(entries, lambda recipe: {"eval.metric": recipe.eval.metric, "test": str(test_protocol(recipe))})
    return entries


def _folder_entry(folder: Path) -> Entry:
    members = sorted(path for path in folder.iterdir() if RUN_NAME.match(path.name)) if folder.is_dir() else []
    if not (is_run(folder) or members):
        recipe = read_config(folder).recipe
        return Entry(recipe, (Run(recipe, folder),))
    runs = tuple(Run(RunDir(path).recipe(), path) for path in members or [folder])
    for run in runs:
        # The runs of one row may differ in split and seed alone.
        check_same_recipe(run.folder, run.recipe, run_recipe(runs[0].recipe, run.split, run.recipe.train.seed))
        if run.results() is None:
            command = f"revgnn-zoo train --resume {run.folder}"
            raise RunError(f"{run.folder}: the run is not finished; continue it with: {command}")
    return Entry(runs[0].recipe, runs)


def _with_path(entry: Entry, path: str) -> Entry:
    if entry.recipe.data.dataset != "file":
        return entry
    runs = tuple(replace(run, recipe=_with_data(run.recipe, path=path)) for run in entry.runs)
    return replace(entry, recipe=_with_data(entry.recipe, path=path), runs=runs)


def _check_alike(entries: Sequence[Entry], facts_of: Callable[[Recipe], Mapping[str, str | None]]) -> None:
    """Refuse figures on other data, in another metric or under another protocol."""
    first = entries[0]
    expected = facts_of(first.recipe)
    for entry in entries:
        for key, value in facts_of(entry.recipe).items():
            if value != expected[key]:
                raise RecipeError(
                    f"{entry.name}: {key} is {value}, but {expected[key]} for {first.name}; "
                    "only models measured alike are compared: put all recipes on the data of one with --data"
                )


def _data_differences(entries: Sequence[Entry]) -> list[str]:
    """A line for each key of the data that the models set differently, as they may, on the same graph."""
    lines = []
    for key in DataSpec.model_fields.keys() - {"dataset", "path", "split"}:
        values = {entry.name: getattr(entry.recipe.data, key) for entry in entries}
        if len(set(values.values())) > 1:
            lines.append(f"data.{key} differs: " + ", ".join(f"{value} for {name}" for name, value in values.items()))
    return sorted(lines)


def _splits_to_run(entries: Sequence[Entry], num_splits: int | Literal["all"] | None, graph: Graph) -> tuple[int, ...]:
    """The splits that every entry is measured on: the first so many, or "all"; None: those of finished runs, else all.

    Raises:
        RunError: if there are not so many splits, or existing runs were measured on others.
    """
    existing = [entry for entry in entries if entry.runs]
    splits = existing[0].splits if existing and num_splits is None else first_splits(graph, num_splits)
    for entry in existing:
        if entry.splits != splits:
            raise RunError(
                f"{entry.name}: measured on split {_listed(entry.splits)}, the others on {_listed(splits)}; "
                "only figures on the same splits are compared"
            )
    return splits


def _with_data(recipe: Recipe, **keys: str | int) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=keys)})


def _listed(splits: Sequence[int]) -> str:
    consecutive = len(splits) > 2 and list(splits) == list(range(splits[0], splits[-1] + 1))
    return f"{splits[0]} to {splits[-1]}" if consecutive else ", ".join(map(str, splits))
