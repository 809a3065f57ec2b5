"""A training step here and in PyTorch Geometric, step by step in turn: ``python -m benchmarks.turns --layers 14``.

Each contender keeps a process of its own, and they take turns, one step each, so that all see the same machine. A ratio
is the median, over the turns, of a contender's seconds over ours in the same turn. Seconds are those of the clock and
those of the processor, which leave out the time in which it worked for others. The model is RevGNN's, the graph as
large as one of ten parts of ogbn-proteins. Contenders:

    revgnn-zoo                      as installed, and with the allocator below, which should change nothing
    revgnn-zoo, plain autograd      the same model with stored activations
    PyG                             GENConv and GroupAddRev, as installed
    PyG, tuned allocator            the settings that guides to PyTorch on CPUs recommend for large tensors
    PyG, tuned allocator, compiled  torch.compile on the blocks too

On a CPU PyG's maximum always goes through torch.scatter_reduce; torch_scatter and pyg-lib have no part in it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.suites import Case
from benchmarks.worker import build
from zoo.layers.equilibrium import start_epoch
from zoo.spec.shape import input_shape
from zoo.workflows import session
from zoo.workflows.objective import Objective
from zoo.workflows.step import build_optimizer, epoch_parts, training_step
from zoo.workflows.step_cost import random_graph

# glibc otherwise gives every large tensor back to the system and takes the next one page by page.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "34359738368"}
OURS = "revgnn-zoo"
# Name to implementation, environment, and whether blocks are compiled.
CONTENDERS: dict[str, tuple[str, dict[str, str], bool]] = {
    OURS: ("zoo", {}, False),
    "revgnn-zoo, tuned allocator": ("zoo", TUNED, False),
    "revgnn-zoo, plain autograd": ("zoo_plain", {}, False),
    "PyG": ("pyg", {}, False),
    "PyG, tuned allocator": ("pyg", TUNED, False),
    "PyG, tuned allocator, compiled": ("pyg", TUNED, True),
}


class Seconds(NamedTuple):
    """Of a step: by the clock, and of the processor."""

    clock: float
    processor: float


def serve(case: Case, num_threads: int, compiled: bool) -> None:
    """Make a training step for every line on stdin, and print its seconds."""
    device = session.start("cpu", num_threads)
    recipe = case.read_recipe()
    graph, split = random_graph(recipe, case.num_nodes, case.num_edges)
    model = build(case, recipe, input_shape(recipe, graph.shape)).train()
    if compiled:
        for layer in model.layers:  # type: ignore[union-attr]
            for block in layer.convs:
                block.compile()
    objective = Objective(recipe.train, graph, split, device, None)
    optimizer = build_optimizer(recipe.train.optimizer, model)
    start_epoch(model, recipe.train.num_epochs)
    part = next(iter(epoch_parts(graph, recipe.train, 1)))
    session.seed_global(recipe.train.seed, "dropout", 0)
    for _ in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        training_step(model, optimizer, [part], objective, recipe.train)
        optimizer.zero_grad(set_to_none=True)
        print(json.dumps([time.perf_counter() - clock, time.process_time() - processor]), flush=True)


def start(name: str, case: Case, num_threads: int) -> subprocess.Popen[str]:
    """A contender's process."""
    implementation, environment, compiled = CONTENDERS[name]
    request = case.model_copy(update={"implementation": implementation}).model_dump_json()
    command = [sys.executable, "-m", "benchmarks.turns", "--serve", request, "--threads", str(num_threads)]
    env = {**os.environ, **environment}
    return subprocess.Popen(
        [*command, *["--compiled"] * compiled], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def step(name: str, process: subprocess.Popen[str]) -> Seconds:
    """Seconds of a contender's next step."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name}: a step failed, see above (exit code {process.wait()})")
    return Seconds(*json.loads(line))


def take_turns(case: Case, names: list[str], num_turns: int, num_threads: int) -> Iterator[dict[str, list[Seconds]]]:
    """After each turn: the seconds of each contender in each turn so far."""
    times: dict[str, list[Seconds]] = {name: [] for name in names}
    # Closing a process's input ends it.
    with ExitStack() as open_processes:
        processes = {name: open_processes.enter_context(start(name, case, num_threads)) for name in names}
        for name, process in processes.items():
            step(name, process)  # compiles kernels and fills caches
        for turn in range(num_turns):
            for name in names if turn % 2 else names[::-1]:
                times[name].append(step(name, processes[name]))
                clock, processor = times[name][-1]
                words = f"turn {turn + 1} of {num_turns}: {name}: {clock:.3f} s, {processor:.3f} s of the processor"
                print(words, file=sys.stderr, flush=True)
            yield times


def report(case: Case, times: dict[str, list[Seconds]], num_threads: int) -> dict[str, Any]:
    """The content of a results file."""
    rows = [
        {
            "contender": name,
            **_figures([each.clock for each in seconds], [each.clock for each in times[OURS]]),
            "processor": _figures([each.processor for each in seconds], [each.processor for each in times[OURS]]),
        }
        for name, seconds in times.items()
    ]
    turns = f"--turns {len(times[OURS])}"
    command = f"python -m benchmarks.turns --layers {case.num_layers} --channels {case.channels} {turns}"
    left_out = "".join(f" --without '{name}'" for name in CONTENDERS if name not in times)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "command": f"{command} --threads {num_threads}{left_out}",
        "environment": {**session.environment(torch.device("cpu")).model_dump(), "num_threads": num_threads},
        # Above the number of cores: other work slows all of them, though not all alike.
        "load_average": os.getloadavg()[2],
        "num_layers": case.num_layers,
        "channels": case.channels,
        "num_nodes": case.num_nodes,
        "num_edges": case.num_edges,
        "rows": rows,
    }


def _figures(seconds: list[float], ours: list[float]) -> dict[str, Any]:
    return {
        "step_s": seconds,
        "median_s": statistics.median(seconds),
        "ratio": statistics.median(theirs / own for theirs, own in zip(seconds, ours, strict=True)),
    }


def commit() -> str:
    root = Path(__file__).parents[1]
    command = ["git", "-C", str(root), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Take turns; write what was measured after each, and print it at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--channels", type=int, default=80)
    parser.add_argument("--nodes", type=int, default=Case().num_nodes)
    parser.add_argument("--edges", type=int, default=Case().num_edges)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without", action="append", default=[], choices=list(CONTENDERS)[1:], help="leave one out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(Case.model_validate_json(args.serve), args.threads, args.compiled)
        return
    case = Case(num_layers=args.layers, channels=args.channels, num_nodes=args.nodes, num_edges=args.edges)
    names = [name for name in CONTENDERS if name not in args.without]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"turns_{case.num_layers}x{case.channels}.json"
    result: dict[str, Any] = {}
    for times in take_turns(case, names, args.turns, args.threads):
        result = report(case, times, args.threads)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in result["rows"]:
        for kind, found in (("clock", row), ("processor", row["processor"])):
            print(f"{row['contender']:32} {kind:9} {found['median_s']:8.3f} s {found['ratio']:8.2f} x")


if __name__ == "__main__":
    main()
