"""Graphs larger than memory: training within a limit, and what partitions cost at 10 million nodes.

    python -m benchmarks.large_graph limit    train, evaluate and predict in a quarter of the graph's size
    python -m benchmarks.large_graph costs    time and memory of what is done with a whole graph, by nodes and edges

Both add to benchmarks/results/large_graph.json. ``limit`` makes a control group, for which it needs the right (root).
Its limit counts all memory of the processes, also mapped pages of files, which the system takes back if it needs them.
Peaks of private memory are those of ``RssAnon`` in /proc/PID/status, looked at every 20 ms.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.data.array_files import array_writer
from zoo.data.arrays import undirected_edges
from zoo.data.datasets import load_graph
from zoo.data.partition import RandomParts
from zoo.workflows import session
from zoo.workflows.graphs import graph_digest
from zoo.workflows.memory import release_eagerly, reset_peak

RESULTS = Path(__file__).parent / "results" / "large_graph.json"
LIMIT_BYTES = 512 << 20
LIMITED = {"num_nodes": 500_000, "num_edges": 5_000_000, "width": 1024}
# A width of 16 instead of 128: node features are mapped and only gathered, so their size is a matter of the disk.
SIZES = ({"num_nodes": 2_000_000, "num_edges": 20_000_000}, {"num_nodes": 10_000_000, "num_edges": 100_000_000})
COSTS_WIDTH, NUM_CLASSES, NUM_PARTS = 16, 8, 64
# Each part reads the pages of the files in which its rows lie, so that few parts read less.
LIMITED_PARTS = 48
CHUNK = 1 << 20
RECIPE: dict[str, Any] = {
    "schema_version": 2,
    "name": "larger",
    "summary": "Seven reversible layers on a graph larger than the memory.",
    "data": {"dataset": "file", "path": ""},
    "model": {"type": "rev", "num_layers": 7, "hidden_channels": 32, "conv": {"type": "gcn"}},
    "train": {
        "num_epochs": 1,
        "loss": "cross_entropy",
        "partition": {"type": "random", "num_parts": LIMITED_PARTS},
        "optimizer": {"type": "adam", "lr": 0.01},
    },
    "eval": {"metric": "accuracy", "partition": {"type": "random", "num_parts": LIMITED_PARTS}},
    "test": {"partition": {"type": "random", "num_parts": LIMITED_PARTS}},
}


def write_graph(folder: Path, num_nodes: int, num_edges: int, width: int) -> None:
    """Write a directed graph with classes that its features tell, a part at a time."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    y = rng.integers(0, NUM_CLASSES, num_nodes)
    np.save(folder / "y.npy", y)
    with array_writer(folder / "x.npy", (num_nodes, width), np.float32) as write:
        for start in range(0, num_nodes, CHUNK // 8):
            classes = y[start : start + CHUNK // 8]
            x = rng.standard_normal((len(classes), width), dtype=np.float32)
            x[np.arange(len(classes)), classes] += 2
            write(start * width, x)
    with array_writer(folder / "edge_index.npy", (2, num_edges), np.int32) as write:
        for start in range(0, 2 * num_edges, CHUNK):
            write(start, rng.integers(0, num_nodes, min(CHUNK, 2 * num_edges - start), dtype=np.int32))
    part = rng.integers(0, 3, num_nodes)
    for index, name in enumerate(("train_mask", "valid_mask", "test_mask")):
        np.save(folder / f"{name}.npy", part == index)
    np.save(folder / "undirected.npy", np.array(False))
    np.save(folder / "task.npy", np.array("multiclass"))


def private_bytes(pid: int | str = "self") -> int:
    """Memory of a process that no file holds; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


@contextmanager
def watched(cost: dict[str, Any]) -> Iterator[None]:
    """Add CPU seconds, and the growth of private memory at its peak."""
    # Memory that was freed before is given back to the system, so that it is not taken for free.
    reset_peak(torch.device("cpu"))
    stop, before = threading.Event(), private_bytes()
    peak = [before]

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], private_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.process_time()
    try:
        yield
    finally:
        cost["cpu_s"] = round(time.process_time() - start, 2)
        stop.set()
        thread.join()
        cost["peak_bytes"] = max(peak[0], private_bytes()) - before


def count_edges(parts: RandomParts) -> int:
    """Build each part and forget it again; the number of their edges."""
    return sum(len(part.csr.col) for part in parts)


def measure_costs(num_nodes: int, num_edges: int) -> dict[str, Any]:
    """What each operation on a graph costs."""
    torch.set_num_threads(1)
    costs: dict[str, dict[str, Any]] = {}
    with release_eagerly(), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "graph"
        write_graph(folder, num_nodes, num_edges, COSTS_WIDTH)
        disk = sum(path.stat().st_size for path in folder.iterdir())

        def cost(name: str, action: Callable[[], Any]) -> Any:
            with watched(costs.setdefault(name, {})):
                result = action()
            print(num_nodes, name, costs[name], flush=True)
            return result

        graph = cost("open and check", lambda: load_graph("file", path=folder))
        cost("digest", lambda: graph_digest(graph, graph.splits[0]))
        cost("partition and one part", lambda: RandomParts(graph, NUM_PARTS, session.generator(0)).build(0))
        cost("partition and all parts", lambda: count_edges(RandomParts(graph, NUM_PARTS, session.generator(0))))
        cost("whole CSR", lambda: RandomParts(graph, 1, session.generator(0)).build(0))
        cost("make undirected", lambda: undirected_edges(graph.edge_index, num_nodes))
    return {"num_nodes": num_nodes, "num_edges": num_edges, "disk_bytes": disk, "costs": costs}


def run_limited(group: Path | None, *arguments: str) -> dict[str, Any]:
    """A command of the zoo in a control group; seconds, and its peak of private memory."""

    def join() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    start, peak = time.monotonic(), 0
    command = [sys.executable, "-m", "zoo", *arguments, "--device", "cpu", "--threads", "1", "-q"]
    process = subprocess.Popen(command, preexec_fn=join, stdout=subprocess.PIPE)
    while process.poll() is None:
        peak = max(peak, private_bytes(process.pid))
        time.sleep(0.02)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    if process.returncode:
        name = f"stopped by {signal.Signals(-process.returncode).name}" if process.returncode < 0 else "failed"
        raise SystemExit(f"{' '.join(arguments)}: {name}")
    print(output, flush=True)
    return {"seconds": round(time.monotonic() - start, 1), "peak_private_bytes": peak}


@contextmanager
def control_group() -> Iterator[Path]:
    """A child of this process's control group of memory (version 1), with the limit and without swap."""
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
    group = Path("/sys/fs/cgroup/memory") / line.split(":", 2)[2].lstrip("/") / f"large_graph_{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        yield group
    finally:
        group.rmdir()


def limited() -> dict[str, Any]:
    """Train, evaluate and predict within the limit, and train once without it."""
    with tempfile.TemporaryDirectory() as temporary, control_group() as group:
        folder, out = Path(temporary) / "graph", Path(temporary) / "run"
        write_graph(folder, **LIMITED)
        size = sum(path.stat().st_size for path in folder.iterdir())
        recipe = Path(temporary) / "larger.json"
        recipe.write_text(json.dumps({**RECIPE, "data": {**RECIPE["data"], "path": str(folder)}}))
        found: dict[str, Any] = {"graph_bytes": size, "limit_bytes": LIMIT_BYTES, **LIMITED}
        found["train"] = run_limited(group, "train", str(recipe), "--out", str(out))
        found["eval"] = run_limited(group, "eval", str(out), "--split", "test")
        logits = str(Path(temporary) / "logits.npz")
        found["predict"] = run_limited(group, "predict", str(out), "--data", str(folder), "--out", logits)
        found["most_in_group_bytes"] = int((group / "memory.max_usage_in_bytes").read_text())
        found["num_killed"] = int((group / "memory.oom_control").read_text().split("oom_kill ")[1])
        results = json.loads((out / "results.json").read_text())
        found["test"] = next(figure["value"] for figure in results["results"] if figure["split"] == "test")
        digests = [hashlib.sha256((out / "best.safetensors").read_bytes()).hexdigest()]
        shutil.rmtree(out)
        found["train_without_limit"] = run_limited(None, "train", str(recipe), "--out", str(out))
        digests.append(hashlib.sha256((out / "best.safetensors").read_bytes()).hexdigest())
        found["same_weights"] = digests[0] == digests[1]
    return found


def main() -> None:
    """Measure one of the two and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("limit", "costs"))
    what = parser.parse_args().what
    if what == "limit":
        write(what, limited())
        return
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        rows.append(measure_costs(**size))
        write(what, rows)


def write(what: str, found: Any) -> None:
    """Put something into the file of results, beside what it holds already."""
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    held |= {"environment": session.environment(torch.device("cpu")).model_dump(), what: found}
    RESULTS.write_text(json.dumps(held, indent=2) + "\n")


if __name__ == "__main__":
    main()
