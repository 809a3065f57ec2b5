"""The fused aggregation beside what it replaces, on one random graph of the size of a part of ogbn-proteins.

    python -m benchmarks.ops --out benchmarks/results/ops.json      (a picture of the same name goes beside it)

Contenders run in turn within one process, so that each pair of times met the same machine; the ratio is the median over
these pairs. Contenders are: the backend chosen for the device (or named by ZOO_BACKEND), the bounded-memory PyTorch
form, plain PyTorch (gather, linear, ReLU, scatter_reduce; only max, mean and sum), and the aggregation inside
torch_geometric's GENConv, its own ``lin_edge`` and ``propagate``. All get the same graph in the order that is best for
them, sorted by target, with the index tensors made beforehand; the two peers are what a user writes with these
libraries, and like every user of them hold a row for each edge. Measured are the forward pass without gradients, and
forward and backward together. A contender that runs out of memory is reported as such.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.nn import GENConv

from zoo.data.graph import directed_edges
from zoo.data.synthetic import synthetic_graph
from zoo.ops.csr import CSR, csr_from_edge_index
from zoo.ops.dispatch import backend_for, use_backend
from zoo.ops.edges import EdgeInput
from zoo.ops.gen_aggregate import AGGREGATIONS, Aggr, gen_aggregate
from zoo.workflows.session import environment, is_out_of_memory

SCATTER = {"max": "amax", "mean": "mean", "sum": "sum"}
PYG_NAMES = {"sum": "add"}
# Not 1, for which powers are free.
FACTOR = 1.1


class Inputs(NamedTuple):
    """One problem: N nodes, E edges, C channels, D edge features."""

    csr: CSR
    target: Tensor  # [E] int64
    x: Tensor  # [N, C]
    edge_attr: Tensor  # [E, D]
    weight: Tensor  # [C, D]
    bias: Tensor  # [C]
    grad: Tensor  # [N, C]


def random_inputs(num_nodes: int, num_edges: int, C: int, device: torch.device) -> Inputs:
    """Edges and their features as in ogbn-proteins, everything else from a normal distribution."""
    edge_index, edge_attr = directed_edges(synthetic_graph(num_nodes, num_edges // 2))
    csr, order = csr_from_edge_index(edge_index, num_nodes)
    assert edge_attr is not None
    edge_attr = edge_attr[order]
    D, generator = edge_attr.shape[1], torch.Generator().manual_seed(0)
    x, weight, bias, grad = (
        torch.randn(shape, generator=generator).to(device) for shape in ((num_nodes, C), (C, D), (C,), (num_nodes, C))
    )
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    target = torch.repeat_interleave(csr.rowptr.diff())
    return Inputs(csr.to(device), target.to(device), x, edge_attr.to(device), weight, bias, grad)


def contenders(inputs: Inputs, aggr: Aggr) -> dict[str, Callable[[], Tensor]]:
    """Name and forward pass of each."""
    csr, target, x, edge_attr, weight, bias, _ = inputs
    num_nodes, C = x.shape
    source = csr.col.long()
    edge_index = torch.stack([source, target])
    conv = GENConv(C, C, aggr=PYG_NAMES.get(aggr, aggr), t=FACTOR, p=FACTOR, edge_dim=edge_attr.shape[1], bias=True).to(
        x.device
    )
    with torch.no_grad():
        conv.lin_edge.weight.copy_(weight)
        conv.lin_edge.bias.copy_(bias)

    edges = EdgeInput(edge_attr, weight, bias)

    def ours(backend: str | None) -> Tensor:
        with use_backend(backend):
            return gen_aggregate(x, csr, edges, aggr=aggr, temperature=FACTOR, power=FACTOR)

    def plain() -> Tensor:
        message = F.relu(x[source] + F.linear(edge_attr, weight, bias)) + 1e-7
        out = x.new_zeros(num_nodes, C)
        index = target[:, None].expand(-1, C)
        return out.scatter_reduce(0, index, message, SCATTER[aggr], include_self=False)

    name = backend_for(x.device)[0]
    found = {name: lambda: ours(name), "chunked": lambda: ours("chunked")}
    if aggr in SCATTER:
        found["plain PyTorch"] = plain
    found["torch_geometric"] = lambda: conv.propagate(edge_index, x=(x, x), edge_attr=edge_attr, size=None)
    return found


def seconds(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall time, and processor time of all threads of this process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(inputs: Inputs, aggr: Aggr, repeats: int) -> list[dict[str, object]]:
    """One row per direction and contender; each has its times and its ratio to the first contender."""
    runs = contenders(inputs, aggr)
    fastest = next(iter(runs))

    def infer(forward: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            forward()

    def train(forward: Callable[[], Tensor]) -> None:
        for leaf in (inputs.x, inputs.weight, inputs.bias):
            leaf.grad = None
        torch.autograd.backward(forward(), inputs.grad)

    rows: list[dict[str, object]] = []
    for direction, step in (("forward", infer), ("forward and backward", train)):
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for repeat in range(repeats + 1):
            for name, forward in runs.items():
                if name not in times:
                    continue
                try:
                    spent = seconds(partial(step, forward), inputs.x.device)
                except (MemoryError, RuntimeError) as error:
                    if name == fastest or not is_out_of_memory(error):
                        raise
                    del times[name]
                    rows.append(identity(inputs, aggr, direction, name) | {"failed": "out of memory"})
                    continue
                # The first round compiles and warms caches.
                if repeat:
                    times[name].append(spent)
        for name, spent_on in times.items():
            walls, cpus = zip(*spent_on, strict=True)
            against = times[fastest]
            rows.append(
                identity(inputs, aggr, direction, name)
                | {
                    "wall_s": [round(t, 5) for t in walls],
                    "cpu_s": [round(t, 5) for t in cpus],
                    "wall_ns_per_edge": round(statistics.median(walls) / max(inputs.csr.num_edges, 1) * 1e9, 2),
                    f"times_{fastest}_wall": round(_median_ratio(spent_on, against, 0), 2),
                    f"times_{fastest}_cpu": round(_median_ratio(spent_on, against, 1), 2),
                }
            )
            print(
                f"{aggr:<10} C={inputs.x.shape[1]:<4} {direction:<21} {name:<16} "
                f"{statistics.median(walls) * 1e3:10.1f} ms wall {statistics.median(cpus) * 1e3:10.1f} ms cpu   "
                f"{_median_ratio(spent_on, against, 0):7.1f}x wall {_median_ratio(spent_on, against, 1):7.1f}x cpu",
                flush=True,
            )
    return rows


def identity(inputs: Inputs, aggr: str, direction: str, contender: str) -> dict[str, object]:
    """The columns that tell rows apart."""
    return {"aggr": aggr, "channels": inputs.x.shape[1], "direction": direction, "contender": contender}


def plot(report: dict[str, Any], path: Path) -> None:
    """Forward and backward of every contender, one panel for each aggregation and width."""
    rows = [row for row in report["rows"] if row["direction"] == "forward and backward"]
    kinds = list(dict.fromkeys((row["aggr"], row["channels"]) for row in rows))
    figure = Figure(figsize=(1 + 3.6 * len(kinds), 2.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        mine = [row for row in rows if (row["aggr"], row["channels"]) == kind]
        values = [statistics.median(row["wall_s"]) * 1e3 if "wall_s" in row else 0.0 for row in mine]
        axes.barh([row["contender"] for row in mine], values, color=["#2a6f97", "#8fb8cf", "#f1bc8f", "#e07a28"])
        for place, (row, value) in enumerate(zip(mine, values, strict=True)):
            words = f"{value:.3g} ms" if "wall_s" in row else row["failed"]
            axes.annotate(words, (value, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.3)
        axes.set_title(f"{kind[0]}, {kind[1]} channels", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    graph, machine = report["graph"], report["environment"]
    figure.supxlabel(
        f"forward and backward of the aggregation; {graph['num_nodes']:,} nodes, {graph['num_edges']:,} edges; "
        f"{machine['device']}, {machine['num_threads']} threads, torch {machine['torch']}, {report['date']}",
        fontsize=7,
        color="#666666",
    )
    figure.savefig(path, dpi=150)


def _median_ratio(slow: list[tuple[float, float]], fast: list[tuple[float, float]], which: int) -> float:
    return statistics.median(a[which] / max(b[which], 1e-9) for a, b in zip(slow, fast, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--num-nodes", type=int, default=13_253)
    parser.add_argument("--num-edges", type=int, default=791_000, help="directed edges")
    parser.add_argument("--channels", type=int, nargs="+", default=[40, 112])
    parser.add_argument("--aggr", nargs="+", choices=AGGREGATIONS, default=["max"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: what PyTorch takes")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for C in arguments.channels:
        inputs = random_inputs(arguments.num_nodes, arguments.num_edges, C, device)
        for aggr in arguments.aggr:
            rows += measure(inputs, aggr, arguments.repeats)
            report = {
                "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
                "environment": environment(device).model_dump(),
                "graph": {"num_nodes": arguments.num_nodes, "num_edges": arguments.num_edges},
                "edge_features": inputs.edge_attr.shape[1],
                "rows": rows,
            }
            # Written as it grows, so that nothing is lost if a later one fails.
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
            plot(report, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
