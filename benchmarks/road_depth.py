"""Accuracy over depth on the road network: does a label of K hops need K layers?

    python -m benchmarks.road_depth --hops 16 32 64

The recipe is ``road_16`` with other ranges, with a quarter, half, one and twice as many layers as hops, and with a
reversible stack besides. A run that was stopped goes on with the rows that benchmarks/results/range_road.json lacks;
the picture beside it, which docs/range.md shows, is drawn at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import zoo
from benchmarks.turns import commit

RESULTS = Path(__file__).parent / "results"
ROWS, PICTURE = RESULTS / "range_road.json", RESULTS / "range_road.png"
# Overrides of the recipe. A reversible layer works on half of its channels at a time, so it gets twice as many.
STACKS: dict[str, dict[str, Any]] = {
    "residual": {},
    "reversible": {"model.type": "rev", "model.hidden_channels": 64, "model.scale_by_depth": True},
}
COLORS = {16: "#8ab6d6", 32: "#2a6f97", 64: "#0b3954"}
LINES = {"residual": "-", "reversible": "--"}


def measure(stack: str, hops: int, num_layers: int) -> dict[str, Any]:
    """Train one model; its row."""
    changes = {"data.generated.range": hops, "model.num_layers": num_layers, **STACKS[stack]}
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = zoo.train("road_16", out=folder + "/run", overrides=changes, device="cpu", num_threads=1, quiet=True)
        results = json.loads((run.path / "results.json").read_text(encoding="utf-8"))
    scores = {row["split"]: round(row["value"], 4) for row in results["results"]}
    cpu_s = round(time.process_time() - started, 1)
    return {"stack": stack, "hops": hops, "num_layers": num_layers, **scores, "cpu_s": cpu_s, "commit": commit()}


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw the test accuracy over the number of layers, a curve for each stack and range."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for stack, line in LINES.items():
        for hops, color in COLORS.items():
            points = sorted((r["num_layers"], r["test"]) for r in rows if (r["stack"], r["hops"]) == (stack, hops))
            if points:
                axes.plot(*zip(*points, strict=True), line, marker="o", color=color, label=f"{stack}, {hops} hops")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="layers", ylabel="test accuracy, ten classes", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    """Train what is missing, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hops", type=int, nargs="+", choices=COLORS, default=list(COLORS))
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    done = {(row["stack"], row["hops"], row["num_layers"]) for row in rows}
    for stack in arguments.stacks:
        for hops in arguments.hops:
            for num_layers in (hops // 4, hops // 2, hops, 2 * hops):
                if (stack, hops, num_layers) not in done:
                    rows.append(measure(stack, hops, num_layers))
                    ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                    print(json.dumps(rows[-1]), flush=True)
    draw(rows)


if __name__ == "__main__":
    main()
