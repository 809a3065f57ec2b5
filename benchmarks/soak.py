"""Train each family for thousands of epochs on a tiny graph: memory, files, threads and disk must stay flat.

    nice python -m benchmarks.soak --epochs 2000
    nice python -m benchmarks.soak --epochs 2000 small_deq     one family again

Each family runs in a process of its own, and its row is written when it is done. Its figures are taken in ten
windows of equal length; a run grows if the median of the last window is above that of the third, when caches are
full and kernels compiled, by more than the tolerance.
Exit code 1 if one grows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECIPES = ("small_rev", "small_wt_rev", "small_oscillator", "small_res", "small_deq", "small_rev_deq", "small_rev_gat")
NUM_WINDOWS, FIRST = 10, 2
# Of memory in bytes and of the disk in bytes, the log apart; files and threads may not grow at all.
TOLERANCE = {"memory_bytes": 3 << 20, "num_files": 0, "num_threads": 0, "disk_bytes": 1 << 12}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000, help="of each family (default: 2000)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.json"), help="(default: %(default)s)")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"(default: {' '.join(RECIPES)})")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(soak(arguments.recipes[0], arguments.epochs)))
        return 0
    rows = json.loads(arguments.out.read_text(encoding="utf-8"))["runs"] if arguments.out.exists() else {}
    failed = []
    print(
        f"{'recipe':14} {'epochs':>7} {'seconds':>8} {'memory, MiB':>15} {'files':>7} {'threads':>8} {'disk, kB':>13}"
    )
    for recipe in arguments.recipes or RECIPES:
        command = [sys.executable, "-m", "benchmarks.soak", recipe, "--here", "--epochs", str(arguments.epochs)]
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        rows[recipe] = row = json.loads(result.stdout.splitlines()[-1])
        before, after = row["before"], row["after"]
        grown = [name for name, tolerance in TOLERANCE.items() if after[name] > before[name] + tolerance]
        failed += [f"{recipe}: {name} grew from {before[name]:,} to {after[name]:,}" for name in grown]
        cells = [f"{before['memory_bytes'] / 2**20:.1f} > {after['memory_bytes'] / 2**20:.1f}"]
        cells += [f"{before[name]} > {after[name]}" for name in ("num_files", "num_threads")]
        cells += [f"{before['disk_bytes'] / 1e3:.0f} > {after['disk_bytes'] / 1e3:.0f}"]
        widths = zip(cells, (15, 7, 8, 13), strict=True)
        print(
            f"{recipe:14} {row['num_epochs']:7,} {row['seconds']:8.0f}", *(f"{c:>{w}}" for c, w in widths), flush=True
        )
        arguments.out.write_text(json.dumps({"tolerance": TOLERANCE, "runs": rows}, indent=2) + "\n", encoding="utf-8")
    print(*failed, sep="\n", file=sys.stderr)
    return int(bool(failed))


def soak(name: str, num_epochs: int) -> dict[str, Any]:
    """Train one recipe on a tiny graph; its figures in an early window and in the last."""
    import torch

    from zoo.data.arrays import save_graph
    from zoo.spec.recipe import read_recipe
    from zoo.workflows.train import train

    torch.set_num_threads(1)
    samples: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        out, path = Path(folder) / "run", save_graph(tiny_graph(), Path(folder) / "tiny.npz")
        changes = {"data.dataset": "file", "data.path": str(path), "model.hidden_channels": 16, "eval.every": 1}
        changes |= {"train.num_epochs": num_epochs, "train.schedule": {"type": "constant"}}
        started = time.monotonic()

        def sample(record: Mapping[str, float]) -> None:
            samples.append(figures(out))

        train(read_recipe(name, changes), out, on_epoch=sample, device="cpu", num_threads=1, quiet=True)
        seconds = time.monotonic() - started
    size = len(samples) // NUM_WINDOWS
    windows = [samples[index * size : (index + 1) * size] for index in range(NUM_WINDOWS)]
    before, after = ({key: medians(window, key) for key in TOLERANCE} for window in (windows[FIRST], windows[-1]))
    return {"num_epochs": len(samples), "seconds": round(seconds, 1), "before": before, "after": after}


def medians(window: list[dict[str, int]], key: str) -> int:
    return round(statistics.median(sample[key] for sample in window))


def tiny_graph() -> Any:
    """60 nodes of three classes, each linked to nodes of its own."""
    import torch

    from zoo.data.graph import Graph, Split

    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    edges = torch.randint(60, (2, 800), generator=generator)
    edges = torch.unique(edges[:, (y[edges[0]] == y[edges[1]]) & (edges[0] < edges[1])], dim=1)
    x = torch.randn(60, 8, generator=generator) + 2 * torch.eye(8)[y]
    nodes = torch.randperm(60, generator=generator)
    split = Split(*(part.sort().values for part in torch.split(nodes, [30, 15, 15])))
    return Graph(
        name="tiny",
        edge_index=edges,
        undirected=True,
        num_nodes=60,
        x=x,
        y=y,
        splits=(split,),
        task="multiclass",
        num_tasks=3,
    )


def figures(out: Path) -> dict[str, int]:
    """What this process and its run directory take now; the log grows with every epoch and is not counted."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "metrics.jsonl"]
    # Two states are kept, and at first there is one.
    states = [path.stat().st_size for path in files if path.name.startswith("state-")]
    return {
        "memory_bytes": int(status["RssAnon"].split()[0]) * 1024,
        "num_files": len(list(Path("/proc/self/fd").iterdir())),
        "num_threads": int(status["Threads"]),
        "disk_bytes": sum(path.stat().st_size for path in files if "tensorboard" not in path.parts)
        + max(0, 2 - len(states)) * max(states, default=0),
    }


if __name__ == "__main__":
    sys.exit(main())
