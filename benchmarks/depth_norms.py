"""Norms by layer of four stacks of 1001 layers before training: with weights of their own or shared, scaled or not.

    ZOO_DATA=FOLDER python -m benchmarks.depth_norms

Trains one epoch of each with ``train --report-depth`` and keeps what it reports of the start, every tenth layer. Writes
benchmarks/results/depth_norms.json and depth_norms.png, which docs/depth.md shows. Takes some minutes.
"""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.turns import commit
from zoo.spec.recipe import read_recipe
from zoo.workflows.train import train

RESULTS = Path(__file__).parent / "results"
COMMON = ["train.num_epochs=1", "model.norm=layer"]
STACKS: dict[str, tuple[list[str], str, str]] = {
    "own weights": (["model.scale_by_depth=false"], "#e07a28", "--"),
    "own weights, scaled": ([], "#e07a28", "-"),
    "shared weights": (["model.scale_by_depth=false", "model.num_distinct_layers=1"], "#2a6f97", "--"),
    "shared weights, scaled": (["model.num_distinct_layers=1"], "#2a6f97", "-"),
}
PANELS = {"state": "norm of the states", "branch": "norm of what a layer adds", "gradient": "norm of the gradient"}
EVERY = 10


def measure(changes: list[str]) -> dict[str, list[float | None]]:
    """The report of the start of one stack, every tenth layer."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = read_recipe("minesweeper_rev_1001", [*COMMON, *changes])
        train(recipe, Path(folder) / "run", device="cpu", report_depth=True, quiet=True, num_threads=1)
        report = json.loads((Path(folder) / "run" / "depth.json").read_text())
    return {name: values[::EVERY] for name, values in report["start"].items()}


def draw(stacks: dict[str, Any], path: Path) -> None:
    """Three panels, a line for each stack."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        for stack, (_, color, style) in STACKS.items():
            values = stacks[stack][name]
            axes.plot([1 + EVERY * i for i in range(len(values))], values, style, color=color, label=stack)
        axes.set(xlabel="layer", title=title, yscale="log")
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[1].legend(frameon=False, fontsize=8, loc="center")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure the four stacks and write the results."""
    stacks = {name: measure(changes) for name, (changes, _, _) in STACKS.items()}
    result = {
        "summary": "1001 reversible SAGE layers of 16 channels on minesweeper, at the start of training",
        "command": "python -m benchmarks.depth_norms",
        "commit": commit(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "every": EVERY,
        "stacks": stacks,
    }
    (RESULTS / "depth_norms.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(stacks, RESULTS / "depth_norms.png")


if __name__ == "__main__":
    main()
