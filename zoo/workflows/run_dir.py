"""The files of a run directory; their names and their format are defined here alone.

    recipe.json                the whole recipe, every default spelled out
    metrics.jsonl              one line per epoch
    best.safetensors           the weights with the best validation so far
    state-STEP.safetensors     all that a resume needs; the newest two are kept
    results.json               written once, when the run is finished
    nonfinite.json             norms of the layers when numbers were last not finite
    curves.png, tensorboard/   pictures of metrics.jsonl
    teacher/                   under self-distillation: the run directory of the teacher
    graph.npz                  the data, if they came from memory

Tensors and the JSON tree that goes with them stand in one file under one digest, so that no crash can tear them apart;
every file is replaced as a whole. A run directory belongs to one recipe, of which only the
number of epochs may be raised, and is written by one process at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from zoo.errors import RecipeError, RunError, ZooWarning
from zoo.files import locked, read_errors, write_errors, write_json
from zoo.json_object import parse_json_object, read_json_object
from zoo.spec.base import Spec, parse_spec
from zoo.spec.recipe import Recipe, parse_recipe
from zoo.spec.results import EpochRecord, RunResults
from zoo.spec.shape import GraphShape
from zoo.tensor_file import NewerError, Saved, read_saved, write_saved
from zoo.workflows import ranks
from zoo.workflows.recipes import check_same_recipe, is_longer

_NUM_STATES = 2
_STATE_NAME = re.compile(r"^state-(\d+)\.safetensors$")
_TEMPORARY = re.compile(
    r"^(recipe\.json|results\.json|nonfinite\.json|best\.safetensors|state-\d+\.safetensors)\.tmp-[0-9a-f]{8}$"
)
# The data of a run on a graph that was given in memory.
RECIPE_FILE, GRAPH_FILE = "recipe.json", "graph.npz"
REPORT_FILE, DEPTH_FILE, DEPTH_PICTURE = "nonfinite.json", "depth.json", "depth.png"
_REPORTS = (REPORT_FILE, DEPTH_FILE, DEPTH_PICTURE)
_FIRST_FILES = (".lock", RECIPE_FILE, GRAPH_FILE, *_REPORTS)


class BestEpoch(Spec):
    """The epoch with the best validation so far, and the metric or loss by which the recipe selects it."""

    epoch: int = Field(ge=1)
    value: float
    shape: GraphShape


@dataclass(frozen=True)
class Best:
    """The best epoch so far, its weights, and the SHA-256 by which a state names them."""

    epoch: BestEpoch
    tensors: dict[str, Tensor]
    sha256: str


class RunDir:
    """A run directory; :func:`open_run` opens one for writing.

    Args:
        path: the folder.

    Raises:
        RunError: if it is not a run directory.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise RunError(f"{path}: no such run directory")
        if not (path / RECIPE_FILE).is_file():
            raise RunError(f"{path}: not a run directory: it has no recipe.json")
        self.path = path
        self.bundle_path, self.teacher_path = path / "bundle", path / "teacher"
        self.curves_path, self.tensorboard_path = path / "curves.png", path / "tensorboard"

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    def recipe(self, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
        """The recipe of the run, perhaps with overrides, ``key.key=value`` or values by dotted key.

        Raises:
            RecipeError: if the file was damaged, or an override is at fault.
        """
        path, graph = self.path / RECIPE_FILE, self.path / GRAPH_FILE
        recipe = parse_recipe(read_json_object(path, error=RecipeError), where=str(path), overrides=overrides)
        if not graph.is_file():
            return recipe
        # The recipe holds the place where the run began; the folder may have been moved since.
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(graph.absolute())})})

    def results(self) -> RunResults | None:
        """The results of a finished run; None if it is not finished, a RunError if the file was damaged."""
        path = self.path / "results.json"
        if not path.is_file():
            return None
        try:
            return parse_spec(RunResults, read_json_object(path, error=RunError), where=str(path), error=RunError)
        except RunError as error:
            *lines, last = error.lines
            raise RunError(*lines, f"{last}; without that file, train --resume measures the results again") from error

    def write_results(self, results: RunResults) -> None:
        """Mark the run as finished."""
        write_json(self.path / "results.json", results.to_json(), RunError)

    def best(self) -> Best | None:
        """The weights with the best validation; None before the first evaluation, a RunError if they are damaged."""
        path = self.path / "best.safetensors"
        if not path.exists():
            return None
        saved = read_saved(path)
        epoch = parse_spec(BestEpoch, saved.tree, where=f"{path}: metadata", error=RunError)
        return Best(epoch, saved.tensors, saved.sha256)

    def write_best(self, epoch: BestEpoch, tensors: Mapping[str, Tensor]) -> str:
        """Replace the best weights and return their SHA-256; if that fails, the previous ones are still there."""
        # One file holds both, so that no crash can separate the weights from their epoch and value.
        return write_saved(self.path / "best.safetensors", tensors, epoch.model_dump(mode="json"))

    def states(self) -> list[Path]:
        """The saved states, newest first; a RunError if the folder is gone."""
        with read_errors(self.path, RunError):
            names = [(int(match[1]), path) for path in self.path.iterdir() if (match := _STATE_NAME.match(path.name))]
        return [path for _, path in sorted(names, reverse=True)]

    def latest_state(self) -> Saved | None:
        """The newest whole state whose best weights are there; None if none was saved yet.

        A damaged state, or one whose best weights are lost, is passed over with a warning.

        Raises:
            RunError: if there are states and none of them can be used, or a later version wrote them.
        """
        states = self.states()
        for tried, path in enumerate(states):
            try:
                saved = read_saved(path)
                self._check_best(path, saved)
            # An older state could be read, but to continue from it would discard what the newer version did.
            except NewerError:
                raise
            except RunError as error:
                warnings.warn(f"{error}; trying the one before", ZooWarning, stacklevel=4)
                continue
            # Out of the way of the states to come, which would count it among the newest two.
            for bad in states[:tried]:
                bad.rename(bad.with_name(f"{bad.name}.damaged"))
            return saved
        if states:
            raise RunError(
                f"{self.path}: no saved state can be continued ({len(states)} tried); put back what was lost from a "
                "copy, or start again in another --out"
            )
        return None

    def _check_best(self, path: Path, saved: Saved) -> None:
        """Raise a RunError if the best weights are neither those that a state names, nor later ones.

        Later ones were written after the state and before the run was killed; when the run comes to their epoch again,
        it finds them again.
        """
        named = saved.tree.get("best")
        # No evaluation was done before this state was saved.
        if named is None:
            return
        best = self.best()
        if best is None or (best.sha256 != named and best.epoch.epoch < saved.tree["cursor"]["epoch"]):
            held = "is missing" if best is None else f"is of epoch {best.epoch.epoch}"
            raise RunError(f"{path}: its best weights are lost: best.safetensors {held} and has not SHA-256 {named}")

    def write_state(self, step: int, tensors: Mapping[str, Tensor], tree: Mapping[str, Any]) -> Path:
        """Save a state and then forget all but the newest two; if that fails, these are still there."""
        path, log = self.path / f"state-{step}.safetensors", self.path / "metrics.jsonl"
        if log.exists():
            # The state records its length. After a power failure a log shorter than that could not be continued.
            with write_errors(log, RunError), log.open("ab") as file:
                os.fsync(file.fileno())
        write_saved(path, tensors, tree)
        # The new state is whole on the disk before an old one is removed.
        for old in self.states()[_NUM_STATES:]:
            try:
                old.unlink()
            except OSError as error:
                warnings.warn(f"{old}: cannot be removed: {error.strerror}", ZooWarning, stacklevel=3)
        return path

    def metrics(self) -> list[dict[str, float]]:
        """The lines of ``metrics.jsonl``: every figure of an epoch by name, at least ``epoch`` and ``train_loss``."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.is_file() else []
        records = []
        for number, line in enumerate(lines, start=1):
            records.append(parse_json_object(line, where=f"{path}:{number}", error=RunError))
            parse_spec(EpochRecord, records[-1], where=f"{path}:{number}", error=RunError)
        return records

    def append_metrics(self, records: Sequence[Mapping[str, float]], at: int) -> int:
        """Add the figures of epochs to ``metrics.jsonl``, at this length in bytes; return the new one.

        What is longer is removed: lines that were written after a state was saved, or the rest of one that a full disk
        has cut
        short.

        Raises:
            RunError: if the file is shorter than that, or cannot be written.
        """
        path = self.path / "metrics.jsonl"
        # A run that fails before it has anything to keep must leave nothing behind.
        if not records and not at and not path.exists():
            return 0
        with write_errors(path, RunError), path.open("ab") as file:
            if file.tell() < at:
                raise RunError(f"{path}: shorter than when the state was saved; it was changed by something else")
            file.truncate(at)
            file.writelines(json.dumps(record, allow_nan=False).encode() + b"\n" for record in records)
        return path.stat().st_size


class Onlooker(RunDir):
    """The run directory as ranks other than 0 see it: there is nothing to read, and nothing is written."""

    def __init__(self, path: Path) -> None:
        self.path, self.teacher_path, self.tensorboard_path = path, path / "teacher", path / "tensorboard"

    results = best = latest_state = write_results = write_best = write_state = append_metrics = lambda *_: None  # type: ignore
    states = metrics = lambda *_: []


def fresh_folder(name: str) -> Path:
    """A folder for a run of a recipe that is not there yet, named after the recipe and the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    # Two runs may start within the same second.
    names = (f"{name}-{stamp}" + (f"-{number}" if number > 1 else "") for number in count(1))
    return next(path for path in (Path("runs") / text for text in names) if not path.exists())


@contextmanager
def open_run(path: Path, recipe: Recipe, *, resume: bool, may_extend: bool = True) -> Iterator[RunDir]:
    """Create a run directory, or open the one that holds the same recipe, and keep other processes out of it.

    Of the ranks of a run only the first has it; the others get an :class:`Onlooker`. With ``resume`` an unfinished run
    may be continued, and, if it may be extended, any run for more epochs.

    Raises:
        RunError: if the folder holds something else, is in use, or cannot be written.
    """
    if ranks.group.rank > 0:
        yield Onlooker(path)
        return
    with write_errors(path, RunError):
        _check_vacant(path)
        try:
            # Only a folder that this call creates may be removed if the run fails to start.
            path.mkdir(parents=True)
            created = True
        except FileExistsError:
            created = False
    try:
        with locked(path / ".lock", RunError, advice="choose another --out"):
            try:
                with write_errors(path, RunError):
                    run = _claim(path, recipe, resume=resume, may_extend=may_extend)
                yield run
            except BaseException:
                # A run that failed before it had anything to keep leaves no folder behind. Only the owner of the lock
                # may remove it: of several that start at once, the others fail while it begins. A report is something.
                with suppress(OSError):
                    if created and _is_unused(path) and not any((path / name).exists() for name in _REPORTS):
                        shutil.rmtree(path)
                raise
    except RunError:
        # Where not even the lock could be made, the folder is empty; else this does nothing.
        with suppress(OSError):
            if created:
                path.rmdir()
        raise


def _claim(path: Path, recipe: Recipe, *, resume: bool, may_extend: bool) -> RunDir:
    """Under the lock: make the folder a run of this recipe, or make sure that it is one."""
    for entry in path.iterdir():
        # Unfinished files of a process that was killed; under the lock no other process is writing them.
        if _TEMPORARY.match(entry.name):
            entry.unlink()
    _check_vacant(path)
    if _is_unused(path):
        write_json(path / RECIPE_FILE, recipe.to_json(), RunError)
        return RunDir(path)
    run = RunDir(path)
    held = run.recipe()
    if resume and may_extend and is_longer(held, recipe):
        _extend(run, recipe)
    # The recipe is read again, since its number of epochs may just have been raised.
    check_same_recipe(path, run.recipe(), recipe)
    if run.results() is None and not resume:
        raise RunError(f"{path}: holds an unfinished run of this recipe; continue it with --resume")
    return run


def _extend(run: RunDir, recipe: Recipe) -> None:
    """Give a run more epochs; a RunError if those that are done would have been others, or no state is left."""
    reason = ""
    if recipe.train.schedule.type == "cosine":
        reason = "its learning rate follows a cosine that ends with the last epoch"
    elif recipe.train.distillation is not None:
        reason = "it learns from a teacher that was trained for as many epochs"
    elif run.results() is not None and not run.states():
        reason = "its saved states are gone"
    if reason:
        raise RunError(f"{run.path}: train.num_epochs cannot be raised: {reason}; start again in another --out")
    # The results go first: a crash in between leaves an unfinished run, never results of another recipe.
    (run.path / "results.json").unlink(missing_ok=True)
    write_json(run.path / RECIPE_FILE, recipe.to_json(), RunError)


def _is_unused(path: Path) -> bool:
    """True if a folder is empty or was claimed by a run that ended before its first epoch."""
    return all(entry.name in _FIRST_FILES or _TEMPORARY.match(entry.name) for entry in path.iterdir())


def _check_vacant(path: Path) -> None:
    """Refuse a path that is neither free nor a run directory, before anything is written to it."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir():
        raise RunError(f"{path}: is not a folder; choose another --out")
    if not (path / RECIPE_FILE).is_file() and not _is_unused(path):
        other = min(entry.name for entry in path.iterdir())
        raise RunError(f"{path}: not empty (it holds {other!r}) and not a run; choose another --out")
