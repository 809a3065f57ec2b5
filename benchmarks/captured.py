"""What recording layers as CUDA graphs saves: training steps with and without, in pairs, on one part of a graph.

    python benchmarks/captured.py
    python benchmarks/captured.py --whole --edge-precision fp16

The model is that of recipes/rev_deep.json; the part has the size of one of ten of ogbn-proteins, with --whole of all of
it. Written are milliseconds and peak memory of a step, and how far the gradients of both ways lie apart. On a GPU that
is the memory PyTorch has reserved, because what graphs work on counts as no tensor's. On a machine without a GPU the
work is repeated by plain calls, which shows that the benchmark runs and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.layers.capture import capture_layers, capture_report
from zoo.models.factory import build_model
from zoo.ops.csr import CSR
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import GraphShape
from zoo.spec.shipped import recipe_path
from zoo.workflows import session

NUM_NODES, NUM_EDGES = 132_534, 79_122_504
PART_NODES, PART_EDGES = 13_253, 791_000


class CallRecorder:
    """Does the work again each time: everything but the graph, on any device."""

    def refusal(self, x: Tensor) -> str | None:
        """Nothing is refused."""
        return None

    def record(self, work: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """The work itself."""
        return work


def draw_part(num_nodes: int, num_edges: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, CSR, Tensor]:
    """Node features, rows of lognormal lengths, edge features in thousandths."""
    generator = torch.Generator(device).manual_seed(0)
    share = torch.empty(num_nodes, device=device).log_normal_(0.0, 1.2, generator=generator)
    ends = (share.cumsum(0, dtype=torch.float64) / share.sum(dtype=torch.float64) * num_edges).long()
    ends[-1] = num_edges
    rowptr = torch.cat([ends.new_zeros(1), ends])
    col = torch.randint(num_nodes, (num_edges,), generator=generator, device=device, dtype=torch.int32)
    attr = torch.empty(num_edges, 8, dtype=dtype, device=device)
    for rows in attr.split(1 << 22):
        rows.copy_(torch.randint(1001, rows.shape, generator=generator, device=device) / 1000)
    x = torch.rand(num_nodes, 16, generator=generator, device=device)
    return x, CSR(rowptr, col), attr


def step(model: nn.Module, part: tuple[Tensor, CSR, Tensor], device: torch.device) -> float:
    """Milliseconds of a forward and a backward pass."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model(*part).square().mean().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--whole", action="store_true", help="the whole graph as one part")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of nodes and edges")
    parser.add_argument("--edge-precision", choices=["fp32", "fp16"], default="fp32")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/captured.json"))
    arguments = parser.parse_args()

    device = session.start(arguments.device, None)
    spec = read_recipe(recipe_path("rev_deep")).model
    spec = spec.model_copy(update={"num_layers": arguments.layers or spec.num_layers})
    sizes = (NUM_NODES, NUM_EDGES) if arguments.whole else (PART_NODES, PART_EDGES)
    num_nodes, num_edges = (max(int(arguments.scale * size), 8) for size in sizes)
    dtype = torch.float16 if arguments.edge_precision == "fp16" and device.type == "cuda" else torch.float32
    part = draw_part(num_nodes, num_edges, device, dtype)
    shape = GraphShape(num_node_features=16, num_node_categories=8, num_edge_features=8, num_tasks=112)
    session.seed_global(0)
    plain = build_model(spec, shape).to(device)
    captured = copy.deepcopy(plain)
    capture_layers(captured, recorder=None if device.type == "cuda" else CallRecorder())
    models = {"plain": plain, "captured": captured}
    milliseconds: dict[str, list[float]] = {name: [] for name in models}
    peaks: dict[str, int] = {}
    for turn in range(arguments.steps + 2):
        for name, model in models.items():
            # In turns that are not timed: of the plain model before anything is recorded, of the other afterwards.
            watched = turn == int(name == "captured")
            if watched and device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            elapsed = step(model, part, device)
            if watched:
                on_gpu = device.type == "cuda"
                peaks[name] = torch.cuda.max_memory_reserved(device) if on_gpu else session.peak_memory_bytes(device)
            # The first two compile kernels and record.
            if turn > 1:
                milliseconds[name].append(elapsed)
    grads = [
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) for model in models.values()
    ]
    apart = float((grads[0] - grads[1]).norm() / grads[0].norm())
    medians = {name: statistics.median(times) for name, times in milliseconds.items()}
    result = {
        "num_layers": spec.num_layers,
        "num_nodes": num_nodes,
        "num_edges": num_edges,
        "edge_precision": str(dtype),
        "median_ms": medians,
        "times_faster": medians["plain"] / medians["captured"],
        "peak_memory_bytes": peaks,
        "relative_distance_of_gradients": apart,
        "report": capture_report(captured),
        "milliseconds": milliseconds,
        "environment": session.environment(device).model_dump(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "milliseconds"}, indent=2))


if __name__ == "__main__":
    main()
