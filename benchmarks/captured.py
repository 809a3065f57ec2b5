"""Training steps with layers as CUDA graphs and without, in pairs, on one part of a random graph.

    python -m benchmarks.captured
    python -m benchmarks.captured --whole

The model is that of recipes/rev_deep.json; the part is as large as one of ten of ogbn-proteins, with --whole as all of
it. Written are milliseconds of a step and how far the gradients of both ways lie apart. On a machine without a GPU the
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
from torch import nn

from zoo.data.graph import Part
from zoo.layers.capture import capture_layers, capture_report
from zoo.models.factory import build_model
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import input_shape
from zoo.spec.shipped import recipe_path
from zoo.workflows import session
from zoo.workflows.memory import finish
from zoo.workflows.step import epoch_parts
from zoo.workflows.step_cost import random_graph

WHOLE, PART = (132_534, 79_122_504), (13_253, 791_000)


class CallRecorder:
    """Does the work again each time: everything but the graph, on any device."""

    def refusal(self, *call: object) -> str | None:
        """Nothing is refused."""
        return None

    def record(self, work: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """The work itself."""
        return work


def step(model: nn.Module, part: Part, device: torch.device) -> float:
    """Milliseconds of a forward and a backward pass."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    finish(device)
    start = time.perf_counter()
    model(part.x, part.csr, part.edge_attr).square().mean().backward()
    finish(device)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device")
    parser.add_argument("--layers", type=int, default=1001)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--whole", action="store_true", help="the whole graph as one part")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--edges", type=int)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/captured.json"))
    arguments = parser.parse_args()

    device = session.start(arguments.device, None)
    overrides = [f"model.num_layers={arguments.layers}", 'train.partition={"type": "full"}']
    recipe = read_recipe(recipe_path("rev_deep"), overrides)
    num_nodes, num_edges = WHOLE if arguments.whole else PART
    graph, _ = random_graph(recipe, arguments.nodes or num_nodes, arguments.edges or num_edges)
    part = next(iter(epoch_parts(graph, recipe.train, 1))).to(device)
    session.seed_global(0)
    plain = build_model(recipe.model, input_shape(recipe, graph.shape)).to(device)
    captured = copy.deepcopy(plain)
    capture_layers(captured, recorder=None if device.type == "cuda" else CallRecorder())
    models = {"plain": plain, "captured": captured}
    milliseconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(arguments.steps + 2):
        for name, model in models.items():
            elapsed = step(model, part, device)
            # The first two compile kernels and record.
            if turn > 1:
                milliseconds[name].append(elapsed)
    grads = [
        torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) for model in models.values()
    ]
    medians = {name: statistics.median(times) for name, times in milliseconds.items()}
    result = {
        "num_layers": arguments.layers,
        "num_nodes": graph.num_nodes,
        "num_edges": 2 * graph.num_edges,
        "median_ms": medians,
        "times_faster": medians["plain"] / medians["captured"],
        "relative_distance_of_gradients": float((grads[0] - grads[1]).norm() / grads[0].norm()),
        "report": capture_report(captured),
        "milliseconds": milliseconds,
        "environment": session.environment(device).model_dump(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "milliseconds"}, indent=2))


if __name__ == "__main__":
    main()
