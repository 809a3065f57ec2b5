"""Runs a suite and keeps what was measured."""

from __future__ import annotations

import datetime
import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import RunError
from zoo.files import atomic_write, make_folder, write_json
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows import session
from zoo.workflows.bench.case import Case
from zoo.workflows.bench.draw import draw
from zoo.workflows.bench.fit import fit_lines
from zoo.workflows.bench.suites import SUITES
from zoo.workflows.evaluate import num_parts_of
from zoo.workflows.progress import Progress

OUT_OF_MEMORY = "out of memory"
_SIGNS_OF_IT = (OUT_OF_MEMORY, "MemoryError", "can't allocate memory", "not enough memory", "bad_alloc")


def base_case(
    suite: str, sizes: Mapping[str, int | str], *, recipe: str | None = None, settings: Sequence[str] = ()
) -> Case:
    """The case that a suite varies.

    Args:
        suite: a key of ``SUITES``.
        sizes: attributes of the case that are not to be as usual in this suite.
        recipe: a shipped name or a file, whose model and own data are measured; None: the suite's model on a synthetic
            graph.
        settings: ``KEY=VALUE`` overrides of the recipe.

    Raises:
        RunError: if the suite cannot be about a recipe, or the recipe has no number of layers.
        ZooError: if there is no such recipe, or it is at fault.
    """
    base = SUITES[suite].base.model_copy(update={"settings": tuple(settings)})
    if recipe is not None:
        if suite in ("edges", "true_size"):
            raise RunError(f"bench {suite}: measures synthetic graphs of its own; leave --recipe out")
        spec = read_recipe(recipe_path(recipe), settings)
        if "num_layers" not in type(spec.model).model_fields:
            raise RunError(f"{recipe}: has no number of layers; bench measures models of type res, rev and rev_gat")
        own = {
            "recipe": recipe,
            "num_layers": spec.model.num_layers,
            "channels": spec.model.hidden_channels,
            "num_nodes": None,
            "num_edges": None,
            "num_parts": num_parts_of(spec.train.partition),
        }
        base = base.model_copy(update=own)
    return base.model_copy(update=dict(sizes))


def run_suite(
    name: str,
    base: Case,
    out: Path,
    *,
    device: str | None = None,
    num_threads: int | None = None,
    num_steps: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure the cases of a suite, each in a process of its own, and write a ``.json`` and a ``.png``.

    What is measured is written even if some cases fail. Running out of memory is a result.

    Args:
        name: a key of ``SUITES``.
        base: the sizes; a suite varies some of them.
        out: the folder of the two files.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        num_threads: of the CPU.
        num_steps: how many steps of each case are counted; None: as many as the suite says.
        quiet: show no progress.

    Returns:
        What was written: suite, file, date, environment, fitted lines, and a list of cases with their figures, or with
        ``failed`` and why.

    Raises:
        RunError: if a case fails for want of something other than memory, or the files cannot be written.
    """
    suite = SUITES[name]
    place = session.start(device, num_threads)
    # PyTorch counts the memory of a GPU by itself, at no cost.
    watch_memory = suite.measures != "time" or place.type == "cuda"
    rows = []
    cases = list(suite.cases(base))
    with Progress(len(cases), unit="case", quiet=quiet) as progress:
        for case in cases:
            if num_steps is not None:
                case = case.model_copy(update={"num_steps": num_steps})
            progress.stage(label(case))
            rows.append(_measured(case, str(place), num_threads, watch_memory=watch_memory))
            progress.step(label(case), {})
    stem = file_stem(name, base, place.type)
    result = {
        "suite": name,
        "file": stem,
        "summary": suite.summary,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "environment": session.environment(place).model_dump(),
        "measures": "time and memory" if place.type == "cuda" else suite.measures,
        "fits": [] if suite.trend is None else fit_lines(rows, suite.trend),
        "cases": rows,
    }
    make_folder(out, RunError)
    write_json(out / f"{stem}.json", result, RunError)
    if any("failed" not in row for row in rows):
        atomic_write(out / f"{stem}.png", [draw(result)], RunError)
    faults = [f"{label(case)}: {row['failed']}" for case, row in zip(cases, rows, strict=True) if "failed" in row]
    faults = [fault for fault in faults if not fault.endswith(f": {OUT_OF_MEMORY}")]
    if faults:
        raise RunError("\n".join([*faults, f"{out / stem}.json: holds what was measured, and these faults"]))
    return result


def label(case: Case) -> str:
    """A case in words."""
    parts = "1 part" if case.num_parts == 1 else f"{case.num_parts} parts"
    work = "" if case.work == "train" else ", evaluation"
    return f"{case.implementation}, {case.num_layers} layers of {case.channels} channels, {parts}{work}"


def file_stem(suite: str, base: Case, device_type: str) -> str:
    """What the files of a result are called: the suite, and all that differs from what it measures by itself."""
    usual = SUITES[suite].base
    words = ["gpu", suite] if device_type == "cuda" else [suite]
    if base.recipe != usual.recipe or base.num_nodes is None:
        words.append(recipe_path(base.recipe).stem)
    if (base.num_layers, base.channels) != (usual.num_layers, usual.channels):
        words.append(f"{base.num_layers}x{base.channels}")
    if base.num_nodes is not None and (base.num_nodes, base.num_edges) != (usual.num_nodes, usual.num_edges):
        words.append(f"{base.num_nodes}n{base.num_edges}e")
    words += [*["capture"] * base.capture, *["fp16"] * (base.edge_precision == "fp16")]
    words += [re.sub(r"[^A-Za-z0-9.=_-]+", "-", setting) for setting in base.settings]
    return "_".join(words)


def _measured(case: Case, device: str, num_threads: int | None, *, watch_memory: bool) -> dict[str, Any]:
    fields = case.model_dump(mode="json")
    request = {"case": fields, "device": device, "num_threads": num_threads, "watch_memory": watch_memory}
    command = [sys.executable, "-m", "zoo.workflows.bench.worker", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        figures: dict[str, Any] = json.loads(done.stdout)
        return {**fields, **figures}
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    # A system that runs out of memory kills the process.
    if done.returncode == -signal.SIGKILL or any(sign in last for sign in _SIGNS_OF_IT):
        last = OUT_OF_MEMORY
    return {**fields, "failed": last}
