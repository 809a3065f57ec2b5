"""More steps than in training: do models whose steps share weights become better, here and on larger graphs?

    python -m benchmarks.more_steps

Trains the recipe ``shortest_path`` and other families on its data, graphs of at most 16 hops, and evaluates each with
other numbers of steps, there and on graphs of up to 32 and 64 hops. docs/range.md has the table of what is written to
benchmarks/results/more_steps.json; a run that was stopped goes on with the models that are missing there.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import zoo
from benchmarks.turns import commit
from zoo.errors import ZooWarning

ROWS = Path(__file__).parent / "results" / "more_steps.json"
STEPS = (8, 16, 32, 64, 256, 1000)
LARGER = (32, 64)
TIED = {"num_layers": 16, "num_distinct_layers": 1, "conv": {"type": "gen", "num_mlp_layers": 1}}
# Label and model; a reversible layer and an oscillator work on half of their channels at a time.
MODELS: dict[str, dict[str, Any]] = {
    "reversible": {"model": {"type": "rev", "hidden_channels": 64, "scale_by_depth": True, **TIED}},
    "residual": {"model": {"type": "res", "hidden_channels": 32, **TIED}},
    "oscillator": {"model": {"type": "oscillator", "hidden_channels": 64, **TIED}},
    "oscillator, damped": {"model": {"type": "oscillator", "hidden_channels": 64, "damping": 0.5, **TIED}},
    "equilibrium": {},
}


def error(model: Any, hops: int, num_steps: int) -> float:
    """The mean absolute error on the test graphs of at most so many hops."""
    graph = zoo.load_graph("shortest-path", generated={"range": hops, "num_nodes": 10_000})
    measured = zoo.evaluate(model, graph, split="test", num_steps=num_steps, device="cpu", num_threads=1, quiet=True)
    return round(measured[0].figure.value, 3)


def measure(label: str) -> dict[str, Any]:
    """Train a model; its errors by the hops of the graphs and the number of steps."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        overrides = MODELS[label]
        run = zoo.train(
            "shortest_path", out=folder + "/run", overrides=overrides, device="cpu", num_threads=1, quiet=True
        )
        model = zoo.load(run)
    errors = {"16": {num_steps: error(model, 16, num_steps) for num_steps in STEPS}}
    errors |= {
        str(hops): {num_steps: error(model, hops, num_steps) for num_steps in (16, hops, 1000)} for hops in LARGER
    }
    return {"model": label, "mae": errors, "cpu_s": round(time.process_time() - started, 1), "commit": commit()}


def main() -> None:
    """Measure the models that the file does not have yet."""
    # Solves that stop at their limit are what is measured.
    warnings.simplefilter("ignore", ZooWarning)
    rows: list[dict[str, Any]] = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    for label in MODELS:
        if label not in {row["model"] for row in rows}:
            rows.append(measure(label))
            ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
