"""The suites: which cases are measured side by side, and what is kept of them."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import RunError
from zoo.hub.files import atomic_write
from zoo.workflows import session
from zoo.workflows.bench.case import Case
from zoo.workflows.bench.draw import draw
from zoo.workflows.progress import Progress

# The C library hands large tensors back to the system as they die, so that the process's size is what is in use.
_MEMORY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Suite(NamedTuple):
    """A list of cases measured in one go.

    Attributes:
        summary: what it shows.
        cases: of the sizes asked for.
        watches_memory: memory is what counts; time is then not comparable.
    """

    summary: str
    cases: Callable[[Case], Iterator[Case]]
    watches_memory: bool


def _memory(base: Case) -> Iterator[Case]:
    for num_layers in (7, 14, 28, 56, 112):
        yield base.model_copy(update={"implementation": "zoo", "num_layers": num_layers})
    for num_layers in (7, 14, 28):
        yield base.model_copy(update={"implementation": "zoo_plain", "num_layers": num_layers})


def _peers(base: Case) -> Iterator[Case]:
    for implementation in ("zoo", "pyg", "zoo_plain", "pyg_plain"):
        yield base.model_copy(update={"implementation": implementation})


def _depth(base: Case) -> Iterator[Case]:
    for num_layers in (7, 14, 28, 56):
        yield base.model_copy(update={"num_layers": num_layers})


def _edges(base: Case) -> Iterator[Case]:
    for share in (8, 4, 2, 1):
        yield base.model_copy(update={"num_edges": base.num_edges // share})


SUITES: dict[str, Suite] = {
    "memory": Suite("peak memory of a training step over depth, reversible and plain autograd", _memory, True),
    "peers": Suite("a training step here, in PyTorch Geometric, and under plain autograd: time", _peers, False),
    "peer_memory": Suite("a training step here and in PyTorch Geometric: peak memory", _peers, True),
    "depth": Suite("time of a training step over depth", _depth, False),
    "edges": Suite("time of a training step over the number of edges", _edges, False),
}


def run_suite(
    name: str,
    base: Case,
    out: Path,
    *,
    device: str | None = None,
    num_threads: int | None = None,
    num_steps: int = 3,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure the cases of a suite, each in a process of its own, and write ``NAME.json`` and ``NAME.png``.

    Args:
        name: a key of ``SUITES``.
        base: the sizes; a suite varies some of them.
        out: the folder of the two files.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        num_threads: of the CPU.
        num_steps: how many steps of each case are counted.
        quiet: show no progress.

    Returns:
        What was written: suite, date, environment, and a list of cases with their figures.

    Raises:
        RunError: if a measurement fails or the files cannot be written.
    """
    suite = SUITES[name]
    place = session.start(device, num_threads)
    cases = list(suite.cases(base))
    rows = []
    with Progress(len(cases), unit="case", quiet=quiet) as progress:
        for case in cases:
            progress.stage(f"{case.implementation}, {case.num_layers} layers")
            rows.append(_measured(case, str(place), num_threads or 0, num_steps, watch_memory=suite.watches_memory))
            progress.step(f"{case.implementation}, {case.num_layers} layers", {})
    result = {
        "suite": name,
        "summary": suite.summary,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "environment": session.environment(place),
        "measures": "memory" if suite.watches_memory else "time",
        "cases": rows,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / f"{name}.json", [json.dumps(result, indent=2, allow_nan=False).encode() + b"\n"])
        atomic_write(out / f"{name}.png", [draw(result)])
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or error}") from error
    return result


def _measured(case: Case, device: str, num_threads: int, num_steps: int, *, watch_memory: bool) -> dict[str, Any]:
    request = {"case": case.model_dump(), "device": device, "num_threads": num_threads, "num_steps": num_steps}
    environment = {**os.environ, **(_MEMORY_ENVIRONMENT if watch_memory else {})}
    command = [sys.executable, "-m", "zoo.workflows.bench.worker", json.dumps(request)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, out of memory?"])[-1]
        raise RunError(f"{case.implementation} with {case.num_layers} layers of {case.channels} channels: {last}")
    result: dict[str, Any] = json.loads(done.stdout)
    return {**case.model_dump(), **result}
