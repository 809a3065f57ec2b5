"""Training steps measured: memory over depth, peers, time over depth and edges, the true size of ogbn-proteins.

    python -m benchmarks.steps memory
    python -m benchmarks.steps peers --layers 7 --channels 224
    python -m benchmarks.steps true_size --device cuda --set train.precision=bf16

The model is RevGNN's on a random graph, by default as large as one of ten parts of ogbn-proteins. Every case runs in a
process of its own; one that runs out of memory is a result. A suite writes a JSON file and a picture, named after the
suite and the sizes, if they are not the usual ones; ``python -m benchmarks.plot`` draws the picture again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.plot import plot
from benchmarks.suites import SUITES, Case, fit_lines
from benchmarks.worker import CaseRequest
from zoo.errors import OutOfMemoryError, RunError, ZooError
from zoo.workflows import session
from zoo.workflows.progress import Progress
from zoo.workflows.session import StoppedError, stop_requests
from zoo.workflows.worker import Task, run_tasks

OUT_OF_MEMORY = "out of memory"


def run_suite(
    name: str, base: Case, out: Path, *, device: str | None = None, num_threads: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Measure the cases of a suite, and write a ``.json`` and a ``.png``. What is measured is written in any case.

    Args:
        name: a key of ``SUITES``.
        base: the sizes; a suite varies some of them.
        out: the folder of the two files.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        num_threads: of the CPU.
        quiet: show no progress.

    Returns:
        What was written: suite, file, date, environment, fitted lines, and a list of cases with their figures, or with
        ``failed`` and why.

    Raises:
        RunError: if a case fails for want of something other than memory.
    """
    suite, where = SUITES[name], session.start(device, num_threads)
    cases = {case.label: case for case in suite.cases(base)}
    rows: dict[str, dict[str, Any]] = {}
    with Progress(len(cases), unit="case", quiet=quiet) as progress, stop_requests() as stop:
        requests = {
            label: CaseRequest(case=case, device=str(where), num_threads=num_threads) for label, case in cases.items()
        }
        tasks = [Task(label, request, module="benchmarks.worker") for label, request in requests.items()]
        for task, figures in run_tasks(tasks, devices=[str(where)], stop=stop, progress=progress):
            if isinstance(figures, RunError):
                reason = OUT_OF_MEMORY if isinstance(figures, OutOfMemoryError) else str(figures)
                figures = {"failed": reason.removeprefix(f"{task.label}: ")}
            rows[task.label] = {**cases[task.label].model_dump(mode="json"), **figures}
            progress.step(task.label, {})
    if stop:
        raise StoppedError(f"{stop.name}: {len(rows)} of {len(cases)} cases are measured", stop.signum)
    stem = file_stem(name, base, where.type)
    result = {
        "suite": name,
        "file": stem,
        "summary": suite.summary,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "environment": session.environment(where).model_dump(),
        "fits": [] if suite.trend is None else fit_lines(list(rows.values()), suite.trend),
        "cases": list(rows.values()),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if any("failed" not in row for row in rows.values()):
        (out / f"{stem}.png").write_bytes(plot(result))
    faults = [
        f"{label}: {row['failed']}" for label, row in rows.items() if row.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY
    ]
    if faults:
        raise RunError("\n".join([*faults, f"{out / stem}.json: holds what was measured, and these faults"]))
    return result


def file_stem(suite: str, base: Case, device_type: str) -> str:
    """The name of a result's files: the suite, and all that differs from what it measures by itself."""
    usual = SUITES[suite].base
    words = ["gpu", suite] if device_type == "cuda" else [suite]
    if (base.num_layers, base.channels) != (usual.num_layers, usual.channels):
        words.append(f"{base.num_layers}x{base.channels}")
    if (base.num_nodes, base.num_edges) != (usual.num_nodes, usual.num_edges):
        words.append(f"{base.num_nodes}n{base.num_edges}e")
    words += [*["capture"] * base.capture, *["fp16"] * (base.edge_precision == "fp16")]
    words += [re.sub(r"[^A-Za-z0-9.=_-]+", "-", setting) for setting in base.settings]
    return "_".join(words)


def report(result: dict[str, Any]) -> str:
    """The cases, a line each, and the fitted lines."""
    lines = []
    for row in result["cases"]:
        label = Case.model_validate_json(json.dumps({key: row[key] for key in Case.model_fields if key in row})).label
        if "failed" in row:
            lines.append(f"{label}: {row['failed']}")
            continue
        lines.append(
            f"{label}: {row['median_step_s']:.3f} s/step, {row['epoch_s']:.3f} s/epoch, "
            f"{row['peak_bytes'] / 2**20:.1f} MiB beyond parameters, gradients, optimizer state and the part"
        )
    for fit in result["fits"]:
        line = f"{fit['intercept']:.4g} {fit['slope']:+.4g} per {fit['per']:,} {fit['over']}, R^2 {fit['r2']:.4f}"
        lines.append(f"{fit['implementation']}: {fit['of']} = {line}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--layers", dest="num_layers", type=int, help="the deepest, where a suite varies it")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--nodes", dest="num_nodes", type=int)
    parser.add_argument("--edges", dest="num_edges", type=int, help="each direction counted")
    parser.add_argument("--steps", dest="num_steps", type=int, help="timed steps of each case")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--capture", action="store_true", help="replay CUDA graphs of one layer")
    parser.add_argument("--edge-precision", choices=["fp32", "fp16"], default="fp32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    sizes = {key: value for key in Case.model_fields if (value := getattr(arguments, key, None)) is not None}
    base = Case(**{**SUITES[arguments.suite].base.model_dump(), **sizes, "settings": tuple(arguments.settings)})
    try:
        result = run_suite(arguments.suite, base, arguments.out, device=arguments.device, num_threads=arguments.threads)
    except ZooError as error:
        sys.exit(f"Error: {error}")
    print(report(result))


if __name__ == "__main__":
    main()
