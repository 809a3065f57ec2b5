"""Kill a random rank of a shared run at a random moment, again and again: each must end as if nothing had happened.

    python -m benchmarks.killed_rank --times 10

``torchrun --max-restarts 1`` starts two ranks on the CPU, with Gloo, on a graph of 60 nodes. A rank gets a SIGKILL at a
moment between the start of both and the end of a run that nobody disturbs. What is compared, byte by byte, are the best
weights, the last state, the log and the results, without times and memory. No process may stay behind.
Exit code 1 if a run ends otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak import tiny_graph
from zoo.data.arrays import save_graph
from zoo.errors import RunError
from zoo.files import write_json
from zoo.spec.recipe import Recipe, read_recipe
from zoo.workflows.run_dir import RunDir

CLOCK = ("epoch_s", "train_s", "peak_memory_bytes", "rank_memory_bytes", "rank_busy_s")
LIMIT_S = 300
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
# Compiling kernels would take longer than the run.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ZOO_BACKEND": "chunked"}


def small_recipe(folder: Path, num_epochs: int) -> Recipe:
    """Steps of four parts of eight, with dropout, batch normalization and an evaluation in parts every other epoch."""
    changes: dict[str, Any] = {
        "data.dataset": "file",
        "data.path": str(save_graph(tiny_graph(), folder / "tiny.npz")),
        "model.num_layers": 4,
        "model.hidden_channels": 16,
        "model.norm": "batch",
        "train.num_epochs": num_epochs,
        "train.schedule": {"type": "constant"},
        "train.partition.num_parts": 8,
        "eval.every": 2,
        "eval.partition": {"type": "random", "num_parts": 3},
    }
    return read_recipe("small_rev_parts", changes)


def ranks_of(launcher: int) -> dict[int, int]:
    """Process of each rank that a launcher has started."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name of the program, in parentheses, may contain anything.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0") if parent == launcher else []
        except OSError:
            continue
        found |= {int(text.removeprefix(b"RANK=")): int(folder.name) for text in variables if text.startswith(b"RANK=")}
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def outcome(out: Path) -> dict[str, bytes]:
    """All that a run computed, as bytes."""
    if not out.is_dir():
        return {}
    run = RunDir(out)
    state, results = run.latest_state(), run.results()
    if state is None or results is None:
        return {}
    cursor = _without_clock(state.tree["cursor"])
    # Of a run that was stopped in an evaluation it also holds the predictions so far.
    tensors = {name: tensor for name, tensor in state.tensors.items() if not name.startswith("evaluation/")}
    return {
        "best": (out / "best.safetensors").read_bytes(),
        "log": json.dumps([_without_clock(record) for record in run.metrics()]).encode(),
        "place": json.dumps({key: value for key, value in cursor.items() if key != "log_bytes"}).encode(),
        "results": json.dumps(_without_clock(results.to_json())).encode(),
        **{name: tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()},
    }


def _without_clock(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key not in CLOCK}


def run(recipe: Path, out: Path, rank: int = 0, moment_s: float | None = None) -> dict[str, Any]:
    """Train under torchrun; kill a rank so many seconds after both have started, unless it has ended by then."""
    command = [sys.executable, *LAUNCHER, "-m", "zoo", "train", str(recipe), "--out", str(out), "--device", "cpu", "-q"]
    seen: set[int] = set()
    row: dict[str, Any] = {"rank": rank, "is_killed": False}
    with (out.parent / f"{out.name}.err").open("w") as errors:
        process = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        began, started = time.monotonic(), None
        try:
            while process.poll() is None and time.monotonic() < began + LIMIT_S:
                found = ranks_of(process.pid)
                seen |= set(found.values())
                now = time.monotonic()
                started = started or (now if len(found) == 2 else None)
                if started and moment_s is not None and now >= started + moment_s and not row["is_killed"]:
                    log = out / "metrics.jsonl"
                    epoch = len(log.read_bytes().splitlines()) if log.exists() else 0
                    if rank in found:
                        os.kill(found[rank], signal.SIGKILL)
                        row |= {"is_killed": True, "after_s": round(now - started, 2), "epochs": epoch}
                time.sleep(0.02)
            row |= {"exit_code": process.poll(), "seconds": round(time.monotonic() - (started or began), 2)}
            row["num_left"] = sum(map(is_alive, seen))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="kills (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=150, help="of a run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of ranks and moments (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/killed_rank.json"))
    options = parser.parse_args()
    chosen = random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "small_rev_parts.json"
        path.write_text(json.dumps(small_recipe(folder, options.epochs).to_json()), encoding="utf-8")
        whole = run(path, folder / "whole")
        expected = outcome(folder / "whole")
        if not expected:
            raise SystemExit((folder / "whole.err").read_text())
        report = {"num_equal": 0, "num_epochs": options.epochs, "undisturbed_s": whole["seconds"]}
        print(f"undisturbed: {whole['seconds']} s", flush=True)
        while len(rows) < options.times:
            out = folder / f"run-{len(rows)}-{time.monotonic_ns()}"
            row = run(path, out, chosen.randrange(2), chosen.uniform(0, whole["seconds"]))
            # A run that had ended before its moment says nothing.
            if not row.pop("is_killed"):
                continue
            row["is_equal"] = row["exit_code"] == 0 and outcome(out) == expected
            rows.append(row)
            report["num_equal"] += int(row["is_equal"] and not row["num_left"])
            write_json(options.out, {**report, "num_runs": len(rows), "runs": rows}, RunError)
            print(json.dumps(row), flush=True)
            if not row["is_equal"]:
                print((out.parent / f"{out.name}.err").read_text(), file=sys.stderr)
    print(f"{report['num_equal']} of {len(rows)} runs ended as if no rank had been killed")
    return int(report["num_equal"] < len(rows))


if __name__ == "__main__":
    sys.exit(main())
