"""One training step of RevGNN-Deep on a graph of ogbn-proteins' true size, through the real path, on this machine.

    revgnn-zoo synth DIR --nodes 132534
    python benchmarks/true_size.py --root DIR

The graph is read from OGB's raw format (or our cache of it), partitioned into ten random parts, and the model of
recipes/rev_deep.json (1001 layers, 80 channels) makes optimizer steps on parts of it. Written are the seconds of every
stage and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from zoo.data.datasets import load_graph
from zoo.data.features import build_features
from zoo.data.partition import random_parts
from zoo.models.factory import build_model
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows import session
from zoo.workflows.objective import Objective
from zoo.workflows.train import build_optimizer, training_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder that holds ogbn_proteins/")
    parser.add_argument("--recipe", default="rev_deep")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/true_size.json"))
    arguments = parser.parse_args()

    recipe = read_recipe(recipe_path(arguments.recipe))
    device = session.start("cpu", None)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[name] = round(now - start, 2)
        start = now
        print(
            f"{name:<22} {seconds[name]:9.2f} s   peak {session.peak_memory_bytes(device) / 2**30:.2f} GiB", flush=True
        )

    graph = load_graph("ogbn-proteins", root=arguments.root)
    lap("open the graph")
    graph = build_features(graph, recipe.data.node_features)
    lap("node features")
    session.seed_global(recipe.train.seed, "init")
    model = build_model(recipe.model, graph.shape)
    optimizer = build_optimizer(recipe.train.optimizer, model)
    lap("build the model")
    parts = random_parts(graph, recipe.train.partition.num_parts, torch.Generator().manual_seed(recipe.train.seed))
    part = next(parts)
    lap("partition, first part")
    objective = Objective(recipe.train, graph, graph.splits[0], device)
    before = session.peak_memory_bytes(device)
    for step in range(arguments.steps):
        loss = training_step(model, optimizer, part, objective, recipe.train)
        lap(f"training step {step + 1}")
        print(f"  {part.x.size(0):,} nodes, {part.csr.num_edges:,} directed edges, loss {loss}")
        part = next(parts)
    result = {
        "recipe": recipe.name,
        "num_layers": recipe.model.num_layers,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_nodes": graph.num_nodes,
        "num_undirected_edges": graph.edge_index.size(1),
        "seconds": seconds,
        "peak_memory_bytes_before_training": before,
        "peak_memory_bytes": session.peak_memory_bytes(device),
        "environment": session.environment(device),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
