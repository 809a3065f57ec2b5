"""A comparison from top to bottom: check, train what is not there yet, measure, write."""

from __future__ import annotations

import datetime
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.data.datasets import DATASETS
from zoo.data.graph import Graph
from zoo.errors import DataError, RunError
from zoo.files import atomic_write, make_folder, write_json
from zoo.spec.faults import parse_spec
from zoo.spec.recipe import Recipe
from zoo.spec.results import RunResults
from zoo.workflows import session
from zoo.workflows.baseline import logistic_regression
from zoo.workflows.compare.draw import draw
from zoo.workflows.compare.entries import (
    Entry,
    Run,
    check_data,
    prepared_apart,
    read_entries,
    splits_to_run,
    with_runs,
)
from zoo.workflows.compare.memo import Memo
from zoo.workflows.compare.processes import Task, run_tasks
from zoo.workflows.compare.table import markdown
from zoo.workflows.evaluate import evaluate, figures_by_split, test_protocol
from zoo.workflows.graphs import graph_digest, is_synthetic, recipe_graph
from zoo.workflows.progress import Progress
from zoo.workflows.run_dir import recipe_digest
from zoo.workflows.session import StoppedError, StopRequest, stop_requests

_SPLITS = ("valid", "test")


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
) -> dict[str, Any]:
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
    place = session.start(device, num_threads)
    entries = read_entries(models)
    graph, _ = recipe_graph(entries[0].recipe)
    splits = splits_to_run(entries, num_splits, graph)
    entries = [with_runs(entry, out, splits, num_seeds) for entry in entries]
    check_data(entries[0], graph)
    for entry in entries[1:]:
        # Each sees the graph in its own way; they are looked at one by one, since one alone may fill the memory.
        check_data(entry, recipe_graph(entry.recipe)[0])
    memo = Memo(out / "measured.json")
    how = {"device": str(place), "num_threads": num_threads}
    with stop_requests() as stop:
        _train(entries, how, memo, stop, num_jobs=num_jobs, quiet=quiet)
        _measure(entries, how, memo, stop, place, quiet=quiet)
        figures = [_figures(entry, how, stop, quiet=quiet) for entry in entries]
        baseline = _baseline(entries[0].recipe, graph, splits, memo, stop)
    recipe = entries[0].recipe
    metric = recipe.eval.metric
    rows = [
        _row(entry, runs, memo.get(_measurement(entry, place))) for entry, runs in zip(entries, figures, strict=True)
    ]
    synthetic = is_synthetic(recipe, graph)
    known = DATASETS.get(recipe.data.dataset)
    quoted = [r for r in known.reported if r.metric == metric] if known and not synthetic else []
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "environment": session.environment(place).model_dump(),
        "data": {
            "dataset": recipe.data.dataset,
            "name": graph.name,
            "num_nodes": graph.num_nodes,
            "num_edges": graph.num_edges,
            "is_synthetic": synthetic,
        },
        "metric": metric,
        "protocol": str(test_protocol(recipe)),
        "splits": list(splits),
        "models": rows,
        "baseline": baseline,
        "reported": [r.model_dump(mode="json", exclude_none=True) for r in quoted],
        "notes": _notes(entries, memo),
    }
    make_folder(out, RunError)
    write_json(out / "compare.json", result, RunError)
    atomic_write(out / "compare.png", [draw(result)], RunError)
    atomic_write(out / "compare.md", [markdown(result).encode()], RunError)
    return result


def _train(
    entries: Sequence[Entry], how: Mapping[str, Any], memo: Memo, stop: StopRequest, *, num_jobs: int, quiet: bool
) -> None:
    wanted = [(entry, run) for entry in entries for run in entry.runs if entry.kind == "recipe"]
    missing = {f"{entry.name}, {run.label}": run for entry, run in wanted if run.results() is None}
    tasks = [Task(label, _request("train", run, how)) for label, run in missing.items()]
    if num_jobs > 1 and len(tasks) > 1:
        memo.put("num_jobs", num_jobs)
    with Progress(len(wanted), unit="run", quiet=quiet, done=len(wanted) - len(tasks)) as progress:
        if wanted and not tasks:
            progress.line("all runs are there already")

        def on_done(task: Task, answer: dict[str, Any], warnings: list[str]) -> None:
            for warning in warnings:
                progress.line(f"{task.label}: {warning}")
            results = parse_spec(RunResults, answer, where=task.label, error=RunError)
            test = _under_test_protocol(results, missing[task.label].recipe)["test"]
            shown = {"test": f"{test:.4f}", "train_s": f"{results.train_s:.1f}"}
            progress.step(task.label, shown)
            progress.figures(task.label, shown)

        done = run_tasks(
            tasks, num_jobs=num_jobs, stop=stop, on_start=lambda task: progress.stage(task.label), on_done=on_done
        )
    if not done:
        count = sum(run.results() is not None for _, run in wanted)
        _stop(stop, f"{count} of {len(wanted)} runs are finished")


def _measure(
    entries: Sequence[Entry],
    how: Mapping[str, Any],
    memo: Memo,
    stop: StopRequest,
    place: torch.device,
    *,
    quiet: bool,
) -> None:
    """Measure a training step of each entry, one after the other whatever else was done at the same time."""
    keys = {entry.name: _measurement(entry, place) for entry in entries}
    tasks = {f"{e.name}, a training step": e for e in entries if memo.get(keys[e.name]) is None}
    with Progress(len(tasks), unit="measurement", quiet=quiet) as progress:

        def on_done(task: Task, result: dict[str, Any], warnings: list[str]) -> None:
            memo.put(keys[tasks[task.label].name], result)
            progress.step(task.label, {})

        done = run_tasks(
            [Task(label, _request("measure", entry.runs[0], how)) for label, entry in tasks.items()],
            num_jobs=1,
            stop=stop,
            on_start=lambda task: progress.stage(task.label),
            on_done=on_done,
        )
    if not done:
        _stop(stop, "all runs are finished")


def _stop(stop: StopRequest, progress: str) -> None:
    raise StoppedError(f"{stop.name}: {progress}; the same command continues where it was", stop.signum)


def _request(task: str, run: Run, how: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": task, "recipe": run.recipe.to_json(), "folder": str(run.folder), **how}


def _measurement(entry: Entry, place: torch.device) -> str:
    """The key of an entry's measurement: what it depends on."""
    run = entry.runs[0]
    results, environment = run.results(), session.environment(place)
    digest = None if results is None else results.data_sha256
    what = [recipe_digest(run.recipe), digest, environment.model_dump()]
    return "step " + hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _figures(entry: Entry, how: Mapping[str, Any], stop: StopRequest, *, quiet: bool) -> list[dict[str, Any]]:
    """What each run of an entry measured."""
    rows = []
    for run in entry.runs:
        row: dict[str, Any] = {"split": run.split, "seed": run.seed}
        if entry.kind == "bundle":
            path = run.recipe.data.path or None
            compared = evaluate(run.folder, splits=_SPLITS, data_path=path, quiet=quiet, **how)
            row |= figures_by_split([item.figure for item in compared])
            row |= {"num_epochs": None, "best_epoch": None, "train_s": None}
        else:
            results = run.results()
            if results is None:
                raise RunError(f"{run.folder}: the run is not finished")
            row |= _under_test_protocol(results, run.recipe)
            # A teacher is trained for the sake of its student.
            train_s = results.train_s + (0.0 if results.teacher is None else results.teacher.train_s)
            row |= {"num_epochs": results.num_epochs, "best_epoch": results.best_epoch, "train_s": train_s}
        rows.append(row)
        if stop:
            _stop(stop, "all runs are finished")
    return rows


def _under_test_protocol(results: RunResults, recipe: Recipe) -> dict[str, float]:
    """The figures of a run that were measured as its recipe's test says, by split."""
    protocol = str(test_protocol(recipe))
    figures = [figure for figure in results.results if figure.protocol == protocol]
    return {name: value for name, value in figures_by_split(figures).items() if name in _SPLITS}


def _baseline(
    recipe: Recipe, graph: Graph, splits: Sequence[int], memo: Memo, stop: StopRequest
) -> dict[str, Any] | None:
    """Logistic regression on the node features of each split; None where it is not defined."""
    rows = []
    for index in splits:
        split, metric = graph.splits[index], recipe.eval.metric
        key = f"baseline {metric} {graph_digest(graph, split)}"
        scores = memo.get(key)
        if scores is None:
            try:
                scores = logistic_regression(graph, split, metric)
            except DataError:
                return None
            memo.put(key, scores)
        if stop:
            _stop(stop, "all runs are finished")
        rows.append({"split": index, **scores})
    return {"name": "logistic regression", "runs": rows, **{name: _mean([r[name] for r in rows]) for name in _SPLITS}}


def _row(entry: Entry, runs: list[dict[str, Any]], cost: Mapping[str, Any]) -> dict[str, Any]:
    model = entry.recipe.model
    times = [run["train_s"] for run in runs]
    return {
        "name": entry.name,
        "type": model.type,
        "num_layers": model.num_layers,
        "hidden_channels": model.hidden_channels,
        "runs": runs,
        **{name: _mean([run[name] for run in runs]) for name in _SPLITS},
        **cost,
        "train_s": None if None in times else round(sum(times), 3),
    }


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, which one value does not have."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def _notes(entries: Sequence[Entry], memo: Memo) -> list[str]:
    notes = prepared_apart(entries)
    if memo.get("num_jobs"):
        notes.append(f"up to {memo.get('num_jobs')} runs were trained at the same time: training times do not compare")
    finished = [
        results for entry in entries if entry.kind != "bundle" for run in entry.runs if (results := run.results())
    ]
    machines = {(r.environment.device, (r.environment.model_extra or {}).get("num_threads")) for r in finished}
    if len(machines) > 1:
        listed = ", ".join(sorted(f"{device} with {threads} threads" for device, threads in machines))
        notes.append(f"trained on {listed}: training times do not compare")
    return notes
