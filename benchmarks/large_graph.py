"""Graphs larger than memory: training within a limit, and what partitions cost at 10 million nodes.

    python -m benchmarks.large_graph limit    train, evaluate and predict in less than a quarter of the graph's size
    python -m benchmarks.large_graph costs    time and memory of what is done with a whole graph, by nodes and edges

Both add to benchmarks/results/large_graph.json. ``limit`` makes a control group of memory (version 1, without swap) for
each process, for which it needs the right (root), and the extra ``metis``. The limit counts all memory of a process,
also pages of files, which the system takes back if it needs them. Each command begins with none of the graph's pages in
memory. It takes about six minutes on a machine that does nothing else, and many times that where others use its disk.
Peaks of private memory are those of ``RssAnon`` in /proc/PID/status, looked at every 20 ms; bytes read are those of the
disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
LIMIT_BYTES = 640 << 20
# Each node is linked with the next one and with one of the next twenty: its number says where in the graph it is.
LIMITED = {"num_nodes": 680_000, "num_edges": 1_360_000, "width": 1024, "reach": 20}
# A width of 16 instead of 128: node features are mapped and only gathered, so their size is a matter of the disk.
SIZES = ({"num_nodes": 2_000_000, "num_edges": 20_000_000}, {"num_nodes": 10_000_000, "num_edges": 100_000_000})
COSTS_WIDTH, NUM_CLASSES, NUM_PARTS = 16, 8, 64
# The rows of a part take 4 N F / P. Clusters of neighbors are runs of rows, so that a part reads little of the files.
LIMITED_PARTITION = {"type": "metis", "num_parts": 32, "num_clusters": 128}
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
        "partition": LIMITED_PARTITION,
        "parts_per_step": 2,
        "optimizer": {"type": "adam", "lr": 0.02},
    },
    "eval": {"metric": "accuracy", "partition": LIMITED_PARTITION},
    "test": {"partition": LIMITED_PARTITION},
}


def write_graph(folder: Path, num_nodes: int, num_edges: int, width: int, reach: int = 0) -> None:
    """Write a directed graph with classes that its features tell, a part at a time; random edges, or so far a reach."""
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
        if reach:
            source = np.arange(num_edges) % num_nodes
            step = np.where(np.arange(num_edges) < num_nodes, 1, rng.integers(2, reach + 1, num_edges))
            write(0, source)
            write(num_edges, (source + step) % num_nodes)
        for start in range(0, 0 if reach else 2 * num_edges, CHUNK):
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


def run_limited(groups: Sequence[Path], folder: Path, *command: str) -> dict[str, Any]:
    """What a command of Python takes, from an empty cache of files, and how it ends.

    It runs in the control group. With two of them, two processes of ``torchrun`` run it, each in its own.
    """

    def join() -> None:
        if len(groups) == 1:
            (groups[0] / "cgroup.procs").write_text(str(os.getpid()))

    forget(folder)
    for group in groups:
        (group / "memory.max_usage_in_bytes").write_text("0")
    program = [sys.executable]
    if len(groups) > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(groups)), "--no-python"]
        # The launcher makes one $ of two.
        enter = f'echo $$$$ > {groups[0].parent}/{groups[0].name[:-1]}$LOCAL_RANK/cgroup.procs && exec "$0" "$@"'
        program += [*launcher, "sh", "-c", enter, sys.executable]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([*program, *command], preexec_fn=join)
    peaks = [0] * max(len(groups), 1)
    while process.poll() is None:
        members = [(group / "cgroup.procs").read_text().split() for group in groups] or [[str(process.pid)]]
        peaks = [max(peak, sum(map(private_bytes, pids))) for peak, pids in zip(peaks, members, strict=True)]
        time.sleep(0.02)
    after, code = resource.getrusage(resource.RUSAGE_CHILDREN), process.returncode
    cost: dict[str, Any] = {
        "end": signal.Signals(-code).name if code < 0 else f"exit {code}",
        "seconds": round(time.monotonic() - start, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "read_bytes": (after.ru_inblock - before.ru_inblock) * 512,
        "peak_private_bytes": peaks,
    }
    if groups:
        cost["peak_group_bytes"] = [int((group / "memory.max_usage_in_bytes").read_text()) for group in groups]
    print(*command[:3], cost, flush=True)
    return cost


def forget(folder: Path) -> None:
    """Drop the pages of a folder's files from memory, where a group would find them without their being counted."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def control_group(number: int) -> Iterator[Path]:
    """A child of this process's control group of memory (version 1), with the limit and without swap."""
    places = [
        line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line
    ]
    if not places:
        raise SystemExit("limit: this system has no control groups of memory of version 1")
    group = Path("/sys/fs/cgroup/memory") / places[0].lstrip("/") / f"large_graph_{os.getpid()}_{number}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        (group / "memory.swappiness").write_text("0")
        yield group
    finally:
        group.rmdir()


def limited() -> None:
    """Train, evaluate and predict within the limit, fail to load everything there, and train once without it."""
    with tempfile.TemporaryDirectory() as temporary, control_group(0) as group, control_group(1) as other:
        folder, out = Path(temporary) / "graph", Path(temporary) / "run"
        write_graph(folder, **LIMITED)
        size = sum(path.stat().st_size for path in folder.iterdir())
        assert size >= 4 * LIMIT_BYTES
        recipe = Path(temporary) / "larger.json"
        recipe.write_text(json.dumps({**RECIPE, "data": {**RECIPE["data"], "path": str(folder)}}))
        found: dict[str, Any] = {
            "graph_bytes": size,
            "limit_bytes": LIMIT_BYTES,
            **LIMITED,
            "partition": LIMITED_PARTITION,
        }
        cpu = ("--device", "cpu", "--threads", "1", "-q")
        weights = set()

        def measure(name: str, groups: Sequence[Path], *command: str, end: str = "exit 0") -> None:
            found[name] = run_limited(groups, folder, *command)
            write("limit", found)
            if found[name]["end"] != end:
                raise SystemExit(f"{name}: not the end that was expected")

        def train(name: str, *groups: Path) -> None:
            shutil.rmtree(out, ignore_errors=True)
            measure(name, groups, "-m", "zoo", "train", str(recipe), "--out", str(out), *cpu)
            weights.add(hashlib.sha256((out / "best.safetensors").read_bytes()).hexdigest())

        train("train without limit")
        train("train, two processes", group, other)
        train("train", group)
        results = json.loads((out / "results.json").read_text())
        found["test"] = next(figure["value"] for figure in results["results"] if figure["split"] == "test")
        measure("eval", [group], "-m", "zoo", "eval", str(out), "--split", "test", *cpu)
        logits = str(Path(temporary) / "logits.npz")
        measure("predict", [group], "-m", "zoo", "predict", str(out), "--data", str(folder), "--out", logits, *cpu)
        load = f"import numpy; numpy.load({str(folder / 'x.npy')!r})"
        measure("load everything", [group], "-c", load, end="SIGKILL")
        found["same_weights"] = len(weights) == 1
        write("limit", found)


def main() -> None:
    """Measure one of the two and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("limit", "costs"))
    what = parser.parse_args().what
    if what == "limit":
        limited()
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
