"""The models of a comparison: recipes to train, finished runs, bundles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zoo.data.graph import Graph
from zoo.errors import RecipeError, RunError
from zoo.hub.config import read_config
from zoo.spec.recipe import Recipe
from zoo.spec.shape import DataSpec
from zoo.workflows.evaluate import test_protocol
from zoo.workflows.graphs import complete_recipe
from zoo.workflows.load import is_run
from zoo.workflows.recipes import check_same_recipe
from zoo.workflows.run_dir import RunDir
from zoo.workflows.runs import RUN_NAME, Run, first_splits, run_recipe, runs_of


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        recipe: of all its runs, but for split and seed.
        runs: one model for each split and seed; a bundle has one.
        is_trained_here: True for a recipe, False for finished runs and bundles.
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


def data_differences(entries: Sequence[Entry]) -> list[str]:
    """A line for each key of the data that the models set differently, as they may, on the same graph."""
    lines = []
    for key in DataSpec.model_fields.keys() - {"dataset", "path", "split"}:
        values = {entry.name: getattr(entry.recipe.data, key) for entry in entries}
        if len(set(values.values())) > 1:
            lines.append(f"data.{key} differs: " + ", ".join(f"{value} for {name}" for name, value in values.items()))
    return sorted(lines)


def splits_to_run(entries: Sequence[Entry], num_splits: int | Literal["all"] | None, graph: Graph) -> tuple[int, ...]:
    """The splits that every entry is measured on.

    Args:
        entries: existing runs decide if nothing is asked for.
        num_splits: the first so many, or "all"; None: all, or those of the finished runs.
        graph: for its splits.

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


def with_runs(entry: Entry, out: Path, splits: Sequence[int], num_seeds: int) -> Entry:
    """A recipe's entry with its runs: ``out / NAME / split-I-seed-J``. Other entries have theirs already.

    Raises:
        RunError: if one of the folders holds the run of another recipe.
    """
    if not entry.is_trained_here:
        return entry
    return replace(entry, runs=runs_of(entry.recipe, out / entry.name, splits, num_seeds))


def _with_data(recipe: Recipe, **keys: str | int) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=keys)})


def _listed(splits: Sequence[int]) -> str:
    consecutive = len(splits) > 2 and list(splits) == list(range(splits[0], splits[-1] + 1))
    return f"{splits[0]} to {splits[-1]}" if consecutive else ", ".join(map(str, splits))
