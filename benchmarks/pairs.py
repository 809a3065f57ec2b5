"""Compare the training step of two checkouts: ``python -m benchmarks.pairs OTHER_CHECKOUT [--pairs 20]``.

Each checkout keeps a process of its own, and the two take turns, one step each, so that both see the same machine. The
step is a forward and backward pass of 14 reversible layers of 80 channels, over one part of the size of ogbn-proteins'
or a fraction of it. Ratios are this checkout's over the other's; below one, this one is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Runs in both checkouts, of which one may be old: EdgeInput and an argument of GENConv had other names.
STEPS = """
import inspect, json, sys, time, torch
from zoo.layers.block import Block
from zoo.layers.conv import GENConv
from zoo.layers.inputs import BlockInputs
from zoo.layers.reversible import ReversibleStack
from zoo.ops.csr import CSR
try:
    from zoo.ops.edges import EdgeInput
except ImportError:
    from zoo.layers.inputs import EdgeInput
num_threads, fraction, aggr = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
torch.set_num_threads(num_threads)
N, E, C, D = int(13253 * fraction), int(791000 * fraction), 80, 8
random = torch.Generator().manual_seed(0)
# Degrees spread as widely as those of ogbn-proteins.
ends = torch.empty(N, dtype=torch.float64).log_normal_(0.0, 1.2, generator=random).cumsum(0)
rowptr = torch.cat([ends.new_zeros(1), ends * (E / ends[-1])]).round().long()
csr = CSR(rowptr, torch.randint(N, (E,), generator=random, dtype=torch.int32))
attr, x = torch.rand(E, D, generator=random), torch.randn(N, C, generator=random)
mask = torch.empty(N, C).bernoulli_(0.9, generator=random) / 0.9
name = "edge_channels" if "edge_channels" in inspect.signature(GENConv.__init__).parameters else "embedding_channels"
torch.manual_seed(0)
conv = lambda: GENConv(C // 2, aggr=aggr, **{name: C})
stack = ReversibleStack([[Block(C // 2, conv()) for _ in range(2)] for _ in range(14)])
encoder = torch.nn.Linear(D, C)
for _ in sys.stdin:
    stack.zero_grad()
    wall, processor = time.perf_counter(), time.process_time()
    inputs = BlockInputs(csr, EdgeInput(attr, encoder.weight, encoder.bias), mask)
    stack(x.clone().requires_grad_(), inputs).square().mean().backward()
    row = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    row["gradient"] = sum(float(p.grad.double().abs().sum()) for p in stack.parameters())
    print(json.dumps(row), flush=True)
"""


def start(checkout: Path, *args: object) -> subprocess.Popen[str]:
    """A process that makes a step of this checkout for every line it reads."""
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", STEPS, *map(str, args)]
    return subprocess.Popen(command, cwd=checkout, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def step(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Figures of one step."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a step failed, see above (exit code {process.wait()})")
    row: dict[str, Any] = json.loads(line)
    return row


def main() -> None:
    """Take turns, and print the ratio of each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fraction", type=float, default=1.0, help="size of the graph")
    parser.add_argument("--aggr", default="max")
    args = parser.parse_args()
    checkouts = (args.other.resolve(), Path(__file__).resolve().parents[1])
    pairs = []
    # Closing a process's input ends it.
    with ExitStack() as open_processes:
        options = (args.threads, args.fraction, args.aggr)
        processes = [open_processes.enter_context(start(checkout, *options)) for checkout in checkouts]
        for process in processes:
            step(process)  # compiles kernels and fills caches
        for n in range(args.pairs):
            pair = {which: step(processes[which]) for which in ((0, 1) if n % 2 else (1, 0))}
            pairs.append((pair[0], pair[1]))
    for name in pairs[0][0]:
        other, own = ([pair[which][name] for pair in pairs] for which in range(2))
        ratio = statistics.median(b / a for a, b in zip(other, own, strict=True))
        print(
            f"{name:10} {min(other):10.4f} -> {min(own):10.4f}  minima {min(own) / min(other):.3f}  pairs {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
