"""Speed of two processes against one, and the share of communication; each pair is measured in turn.

    python -m benchmarks.scale rev_80 --pairs 3 --shrink 1 --set model.num_layers=14
    python -m benchmarks.scale rev_wide --pairs 1 --steps 1 --shrink 64 --set model.num_layers=132

Prints a line of JSON for each measurement, and the ratios; benchmarks/results/scale.json keeps the lines by command.
Steps are taken on a random graph of the data set's size, its nodes divided by --shrink and its edges by the square of
that, in eight parts, all of which make one step. CPU seconds are those of the busiest process: on a machine that has
other work to do they tell more than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from zoo.models.factory import build_model
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shape import input_shape
from zoo.workflows import ranks, session
from zoo.workflows.distributed import process_group
from zoo.workflows.objective import Objective
from zoo.workflows.step import StepParts, build_optimizer, epoch_parts, training_step
from zoo.workflows.step_cost import data_set_size, random_graph

RESULTS = Path(__file__).parent / "results" / "scale.json"
NUM_PARTS = 8
CPU = torch.device("cpu")


def measure(recipe: Recipe, shrink: int, num_steps: int) -> dict[str, float]:
    """Time of some epochs of one step each, partition included, after one that is not counted."""
    spec = recipe.train
    num_nodes, num_edges = data_set_size(recipe)
    graph, split = random_graph(recipe, num_nodes // shrink, num_edges // shrink**2)
    session.seed_global(0, "init")
    model = build_model(recipe.model, input_shape(recipe, graph.shape))
    objective, optimizer = Objective(spec, graph, split, CPU), build_optimizer(spec.optimizer, model)
    marks = []
    for epoch in range(1, num_steps + 2):
        parts = epoch_parts(graph, spec, epoch)
        chosen = StepParts(parts, range(len(parts)), CPU, (0, "dropout", epoch))
        training_step(model, optimizer, chosen, objective, spec)
        ranks.exchange(0)
        marks.append((time.perf_counter(), time.process_time(), ranks.group.waited_s))
    clock_s, cpu_s, waited_s = ((last - first) / num_steps for first, last in zip(marks[0], marks[-1], strict=True))
    # A sum of all gradients while no rank is late: communication without waiting.
    flat = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))
    ranks.exchange(0)
    start = time.perf_counter()
    ranks.sum_over_ranks(flat)
    told = ranks.exchange([cpu_s, waited_s, time.perf_counter() - start])
    return {
        "num_processes": ranks.group.size,
        "num_parameters": len(flat),
        "step_s": round(clock_s, 3),
        "cpu_s": round(max(cpu for cpu, _, _ in told), 3),
        "least_waited_s": round(min(waited for _, waited, _ in told), 3),
        "sum_s": round(max(seconds for _, _, seconds in told), 3),
    }


def main() -> None:
    """Measure pairs, each in fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--shrink", type=int, default=8)
    options = parser.parse_args()
    parts = (f'train.partition={{"type": "random", "num_parts": {NUM_PARTS}}}', f"train.parts_per_step={NUM_PARTS}")
    recipe = read_recipe(options.recipe, [*parts, *options.assignments])
    if "RANK" in os.environ:
        with process_group():
            figures = measure(recipe, options.shrink, options.steps)
            if ranks.group.rank == 0:
                print(json.dumps(figures), flush=True)
        return
    rows = []
    for _ in range(options.pairs):
        for size in (1, 2):
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
            command = [sys.executable, *launcher, "-m", "benchmarks.scale", *sys.argv[1:]]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    held[" ".join(sys.argv[1:])] = rows
    RESULTS.write_text(json.dumps(held, indent=2) + "\n")
    for key in ("step_s", "cpu_s"):
        ratios = [one[key] / two[key] for one, two in zip(rows[::2], rows[1::2], strict=True)]
        print(f"{key} of one process against two: {statistics.median(ratios):.2f} (of {len(ratios)} pairs)")
    shares = [row["sum_s"] / row["step_s"] for row in rows[1::2]]
    print(f"sum over all gradients: {statistics.median(shares):.2%} of a step")


if __name__ == "__main__":
    main()
