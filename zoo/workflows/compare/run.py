"""A comparison from top to bottom: check, train what is not there yet, measure, write."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zoo.data.datasets import DATASETS
from zoo.data.graph import Graph
from zoo.errors import DataError, RunError
from zoo.files import atomic_write, make_folder, write_json
from zoo.spec.faults import parse_spec
from zoo.spec.recipe import Recipe
from zoo.spec.results import RunResults, baseline_in_words
from zoo.workflows import session
from zoo.workflows.baseline import linear_baseline
from zoo.workflows.compare.cache import Cache
from zoo.workflows.compare.entries import (
    Entry,
    Run,
    check_data,
    data_differences,
    read_entries,
    splits_to_run,
    with_runs,
)
from zoo.workflows.compare.plot import plot
from zoo.workflows.compare.results import (
    BaselineEntry,
    ComparedData,
    CompareEntry,
    CompareResults,
    Mean,
    RunScores,
)
from zoo.workflows.compare.table import markdown
from zoo.workflows.evaluate import evaluate, figures_by_split, test_protocol
from zoo.workflows.graphs import graph_digest, is_synthetic, recipe_graph
from zoo.workflows.processes import Task, run_tasks
from zoo.workflows.progress import Progress
from zoo.workflows.run_dir import recipe_digest
from zoo.workflows.session import StoppedError, StopRequest, stop_requests
from zoo.workflows.step_cost import StepCost
from zoo.workflows.worker import MeasureRequest, TrainRequest

_SPLITS = ("valid", "test")


@dataclass(frozen=True)
class _Job:
    """The options, the cache and the stop request that all steps of one comparison share."""

    device: torch.device
    num_threads: int | None
    num_jobs: int
    quiet: bool
    cache: Cache
    stop: StopRequest
    # Warnings, with their numbers masked.
    shown: set[str] = field(default_factory=set)

    def stop_if_asked(self, progress: str) -> None:
        if self.stop:
            message = f"{self.stop.name}: {progress}; the same command continues where it was"
            raise StoppedError(message, self.stop.signum)


def compare(
    models: Sequence[Recipe | Path],
    out: Path,
    *,
    num_splits: int | None = None,
    num_seeds: int = 1,
    num_jobs: int = 1,
    device: str | None = None,
    num_threads: int | None = None,
    quiet: bool = False,
) -> CompareResults:
    """Train or load several models, measure them alike, and write ``compare.json``, ``.md`` and ``.png``.

    A recipe is trained on each split with each seed, every run in a process of its own and in
    ``out / NAME / split-I-seed-J``. Runs that are finished are taken as they are, unfinished ones continued.

    Args:
        models: a recipe is trained; a path is that of a run directory, of a folder of runs, or of a bundle.
        out: the folder of all files.
        num_splits: train on the first so many splits; None: on all, or on those of the finished runs given.
        num_seeds: train with so many seeds, from the recipe's on.
        num_jobs: processes that train at the same time.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        num_threads: of the CPU, for each process.
        quiet: show no progress.

    Returns:
        The content of ``compare.json``.

    Raises:
        StoppedError: after a signal; the same call continues.
        ZooError: if the figures could not stand in one table, a model does not fit the data, or a run fails.
    """
    where = session.start(device, num_threads)
    entries = read_entries(models)
    graph, _ = recipe_graph(entries[0].recipe)
    splits = splits_to_run(entries, num_splits, graph)
    entries = [with_runs(entry, out, splits, num_seeds) for entry in entries]
    check_data(entries[0], graph)
    for entry in entries[1:]:
        # Each sees the graph in its own way; they are looked at one by one, since one alone may fill the memory.
        check_data(entry, recipe_graph(entry.recipe)[0])
    with stop_requests() as stop:
        job = _Job(where, num_threads, num_jobs, quiet, Cache(out / "measured.json"), stop)
        _train(entries, job)
        costs = _measure(entries, job)
        rows = tuple(_row(entry, _scores(entry, job), costs[entry.name]) for entry in entries)
        baseline = _baseline(entries[0].recipe, graph, splits, job)
    recipe = entries[0].recipe
    synthetic, known = is_synthetic(recipe, graph), DATASETS.get(recipe.data.dataset)
    reported = () if known is None or synthetic else known.reported
    data = ComparedData(
        dataset=recipe.data.dataset,
        name=graph.name,
        num_nodes=graph.num_nodes,
        num_edges=graph.num_edges,
        is_synthetic=synthetic,
    )
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
        notes=tuple(_notes(entries, job.cache)),
    )
    make_folder(out, RunError)
    write_json(out / "compare.json", results.model_dump(mode="json", exclude_none=True), RunError)
    atomic_write(out / "compare.png", [plot(results)], RunError)
    atomic_write(out / "compare.md", [markdown(results).encode()], RunError)
    return results


def _train(entries: Sequence[Entry], job: _Job) -> None:
    """Train the runs of recipes that are not finished."""
    runs = {f"{e.name}, {run.label}": (e, run) for e in entries if e.kind == "recipe" for run in e.runs}
    missing = {label: (entry, run) for label, (entry, run) in runs.items() if run.results() is None}
    if job.num_jobs > 1 and len(missing) > 1:
        job.cache.put("num_jobs", job.num_jobs)
    with Progress(len(runs), unit="run", quiet=job.quiet, done=len(runs) - len(missing)) as progress:
        if runs and not missing:
            progress.line("all runs are there already")

        def on_result(label: str, answer: dict[str, Any]) -> None:
            results = parse_spec(RunResults, answer, where=label, error=RunError)
            test = _of_test_protocol(results, missing[label][1].recipe)["test"]
            shown = {"test": f"{test:.4f}", "train_s": f"{results.train_s:.1f}"}
            progress.step(label, shown)
            progress.figures(label, shown)

        _run(missing, TrainRequest, job, job.num_jobs, progress, on_result)
    num_finished = sum(run.results() is not None for _, run in runs.values()) if job.stop else 0
    job.stop_if_asked(f"{num_finished} of {len(runs)} runs are finished")


def _measure(entries: Sequence[Entry], job: _Job) -> dict[str, StepCost]:
    """Measure a training step of each entry, by name, one after the other whatever ran at the same time before.

    The weights are those at the end of training: some models take longer the further they are.
    """
    keys = {f"{entry.name}, a training step": _cost_key(entry, job) for entry in entries}
    first = {label: (entry, entry.runs[0]) for label, entry in zip(keys, entries, strict=True)}
    missing = {label: run for label, run in first.items() if job.cache.get(keys[label]) is None}
    with Progress(len(missing), unit="measurement", quiet=job.quiet) as progress:

        def on_result(label: str, answer: dict[str, Any]) -> None:
            job.cache.put(keys[label], answer)
            progress.step(label, {})

        _run(missing, MeasureRequest, job, 1, progress, on_result)
    job.stop_if_asked("all runs are finished")
    costs = [parse_spec(StepCost, job.cache.get(key), where=label, error=RunError) for label, key in keys.items()]
    return {entry.name: cost for entry, cost in zip(entries, costs, strict=True)}


def _run(
    runs: Mapping[str, tuple[Entry, Run]],
    request: type[TrainRequest | MeasureRequest],
    job: _Job,
    num_jobs: int,
    progress: Progress,
    on_result: Callable[[str, dict[str, Any]], None],
) -> None:
    """Train or measure runs in processes of their own, and show each warning of a model once, in whatever numbers."""

    def on_done(task: Task, answer: dict[str, Any], warnings: Sequence[str]) -> None:
        for line in (f"Warning: {runs[task.label][0].name}: {warning}" for warning in warnings):
            # Residuals and the like differ from run to run, and the same warning ten times hides the others.
            key = re.sub(r"\d+", "0", line)
            if key not in job.shown:
                job.shown.add(key)
                progress.line(line)
        on_result(task.label, answer)

    common: dict[str, Any] = {"device": str(job.device), "num_threads": job.num_threads}
    run_tasks(
        [Task(label, request(recipe=run.recipe, folder=str(run.folder), **common)) for label, (_, run) in runs.items()],
        num_jobs=num_jobs,
        stop=job.stop,
        on_start=lambda task: progress.stage(task.label),
        on_done=on_done,
    )


def _cost_key(entry: Entry, job: _Job) -> str:
    """The key of an entry's step in the cache: a digest of all that its cost depends on."""
    run, environment = entry.runs[0], session.environment(job.device)
    results = run.results()
    facts = [recipe_digest(run.recipe), results and results.data_sha256, environment.model_dump()]
    return "cost " + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _scores(entry: Entry, job: _Job) -> tuple[RunScores, ...]:
    """The scores of each run of an entry; a bundle is evaluated here."""
    rows = []
    for run in entry.runs:
        results = None if entry.kind == "bundle" else run.results()
        row: dict[str, Any] = {"split": run.split, "seed": run.seed}
        if results is None:
            path, device = run.recipe.data.path or None, str(job.device)
            compared = evaluate(
                run.folder, splits=_SPLITS, data_path=path, device=device, num_threads=job.num_threads, quiet=job.quiet
            )
            row |= figures_by_split([item.figure for item in compared])
        else:
            # A teacher is trained for the sake of its student.
            train_s = results.train_s + (0.0 if results.teacher is None else results.teacher.train_s)
            row |= {"num_epochs": results.num_epochs, "best_epoch": results.best_epoch, "train_s": train_s}
            row |= _of_test_protocol(results, run.recipe)
        rows.append(RunScores.model_validate(row))
        job.stop_if_asked("all runs are finished")
    return tuple(rows)


def _of_test_protocol(results: RunResults, recipe: Recipe) -> Mapping[str, float]:
    """The figures of a run that were measured as its recipe's test says, by split."""
    protocol = str(test_protocol(recipe))
    figures = [figure for figure in results.results if figure.protocol == protocol and figure.split in _SPLITS]
    return figures_by_split(figures)


def _row(entry: Entry, runs: tuple[RunScores, ...], cost: StepCost) -> CompareEntry:
    times = [run.train_s for run in runs if run.train_s is not None]
    return CompareEntry(
        name=entry.name,
        type=entry.recipe.model.type,
        num_layers=entry.recipe.model.num_layers,
        hidden_channels=entry.recipe.model.hidden_channels,
        runs=runs,
        valid=Mean.of([run.valid for run in runs]),
        test=Mean.of([run.test for run in runs]),
        num_parameters=cost.num_parameters,
        peak_bytes=cost.peak_bytes,
        step_s=cost.median_step_s,
        epoch_s=cost.epoch_s,
        train_s=round(sum(times), 3) if len(times) == len(runs) else None,
    )


def _baseline(recipe: Recipe, graph: Graph, splits: Sequence[int], job: _Job) -> BaselineEntry | None:
    """A linear model of the node features on each split; None where it is not defined."""
    rows = []
    for index in splits:
        split, metric = graph.splits[index], recipe.metric
        key = f"baseline {metric} {graph_digest(graph, split)}"
        scores = job.cache.get(key)
        if scores is None:
            # It takes longer than an evaluation on wide features, so it is cached by a digest of all that it reads.
            try:
                scores = linear_baseline(graph, split, metric)
            except DataError:
                return None
            job.cache.put(key, scores)
        job.stop_if_asked("all runs are finished")
        rows.append(RunScores(split=index, valid=scores["valid"], test=scores["test"]))
    valid, test = Mean.of([row.valid for row in rows]), Mean.of([row.test for row in rows])
    return BaselineEntry(name=baseline_in_words(recipe.metric), runs=tuple(rows), valid=valid, test=test)


def _notes(entries: Sequence[Entry], cache: Cache) -> list[str]:
    """The circumstances under which figures of the table do not compare."""
    notes = data_differences(entries)
    if cache.get("num_jobs"):
        notes.append(f"up to {cache.get('num_jobs')} runs were trained at the same time: training times do not compare")
    trained = [run.results() for entry in entries if entry.kind != "bundle" for run in entry.runs]
    machines = sorted({results.environment.machine for results in trained if results is not None})
    if len(machines) > 1:
        notes.append(f"trained on {', '.join(machines)}: training times do not compare")
    return notes
