"""Pictures of benchmark results, made from what was measured and nothing else.

python -m benchmarks.plot benchmarks/results/memory.json ...     (writes memory.png beside it)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoo.spec.base import parse_spec
from zoo.workflows.compare_report import CompareResults, picture
from zoo.workflows.plot import png

_NAMES = {
    "zoo": "revgnn-zoo, reversible",
    "zoo_plain": "revgnn-zoo, plain autograd",
    "pyg": "PyG GENConv + GroupAddRev",
    "pyg_plain": "PyG GENConv, plain autograd",
}
_COLORS = {"zoo": "#2a6f97", "zoo_plain": "#8fb8cf", "pyg": "#e07a28", "pyg_plain": "#f1bc8f"}
# What a step holds, from what is always there to what it needs for itself.
_MEMORY = {
    "state_bytes": ("parameters, gradients, optimizer", "#9aa5b1"),
    "part_bytes": ("part of the graph", "#8fb8cf"),
    "peak_bytes": ("the step itself", "#2a6f97"),
}
_MIB, _GB = 2**20, 1e9
_MAX_WORDS = 20

Rows = list[dict[str, Any]]


def plot(result: dict[str, Any]) -> bytes:
    """A PNG of a suite's result, of which some case did not fail."""
    make, rows = _PLOTS[result["suite"]], result["cases"]
    # Times and memory were once measured by two suites.
    figures = [key for key in ("median_step_s", "peak_bytes") if any(key in row for row in rows)]
    num_panels = 2 if make is _epochs else len(figures) if make is _peers else 1
    height = 1.6 + 0.55 * len(rows) if make is _epochs else 4.0
    figure = Figure(figsize=(7.6 if num_panels == 1 else 10.0, height), layout="constrained")
    panels = figure.subplots(1, num_panels, squeeze=False, sharey=num_panels > 1)[0]
    make(panels, rows)
    if num_panels == 1:
        panels[0].set_title(result["summary"], fontsize=10, loc="left")
    else:
        figure.suptitle(result["summary"], fontsize=10, x=0.01, horizontalalignment="left")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    # End labels say it in the picture of memory.
    for fit in [] if make is _memory else result.get("fits", []):
        _line(panels[0], fit, [row[fit["over"]] for row in rows if row["implementation"] == fit["implementation"]])
    if num_panels == 1 and panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(frameon=False, fontsize=8)
    figure.supxlabel(_about(result), fontsize=7, color="#666666")
    return png(figure)


def _about(result: dict[str, Any]) -> str:
    """Caption: shared sizes, machine, date."""
    environment = result["environment"]
    first = next(row for row in result["cases"] if "failed" not in row)
    facts = [f"{first['num_nodes']:,} nodes"]
    for key, unit in (("num_edges", "edges"), ("channels", "channels"), ("num_layers", "layers")):
        values = {row[key] for row in result["cases"]}
        if len(values) == 1:
            facts.append(f"{first[key]:,} {unit}")
    machine = [environment["device"], f"{environment['num_threads']} threads", f"torch {environment['torch']}"]
    return "; ".join([", ".join(facts), ", ".join([*machine, result["date"]])])


def _line(axes: Axes, fit: dict[str, Any], over: Sequence[float]) -> None:
    """A fitted line, dashed, with its formula in the legend; in MiB where it is of bytes."""
    scale, unit = (1 / _MIB, "MiB") if fit["of"].endswith("_bytes") else (1, "s")
    # A straight line is bent where axes are logarithmic: many points.
    ends = min(over), max(over)
    xs = [ends[0] + (ends[1] - ends[0]) * index / 50 for index in range(51)]
    ys = [scale * (fit["intercept"] + fit["slope"] * x / fit["per"]) for x in xs]
    what = {"num_layers": "layer", "num_edges": "million edges"}[fit["over"]]
    words = f"{scale * fit['intercept']:.3g} {scale * fit['slope']:+.3g} {unit} per {what}, R² = {fit['r2']:.4f}"
    axes.plot(xs, ys, "--", color=_COLORS[fit["implementation"]], linewidth=1, label=words)


def _memory(panels: Sequence[Axes], rows: Rows) -> None:
    (axes,) = panels
    ends: list[tuple[float, float, str]] = []
    for name, label in _NAMES.items():
        mine = [row for row in rows if row["implementation"] == name and "failed" not in row]
        points = sorted((row["num_layers"], row["peak_bytes"] / _MIB) for row in mine)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=_COLORS[name], linewidth=1.8, markersize=4)
            ends.append((points[-1][1], points[-1][0], f"{label}: {points[-1][1]:,.0f} MiB"))
    last, gap, lowest = max(row["num_layers"] for row in rows), 0.055 * max(ends)[0], 0.0
    for mib, num_layers, words in sorted(ends):
        # Words stand beside the curves, one above the other; above a curve that ends before the others.
        place = (num_layers + 0.02 * last, max(mib, lowest)) if num_layers == last else (num_layers, mib + gap)
        axes.annotate(words, (num_layers, mib), place, va="center", fontsize=8, annotation_clip=False)
        lowest = place[1] + gap if num_layers == last else lowest
    axes.set(xlim=(0, last), ylim=(0, None), xlabel="layers", ylabel="MiB")
    axes.set_xticks([1, *(int(last * share) for share in (0.25, 0.5, 0.75)), last])
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _depth(panels: Sequence[Axes], rows: Rows) -> None:
    _points(panels[0], rows, "num_layers", "median_step_s", 1)
    panels[0].set(xlabel="layers", ylabel="seconds per training step", xlim=(0, None), ylim=(0, None))


def _edges(panels: Sequence[Axes], rows: Rows) -> None:
    _points(panels[0], rows, "num_edges", "median_step_s", 1)
    panels[0].set(xlabel="directed edges", ylabel="seconds per training step", xlim=(0, None), ylim=(0, None))


def _points(axes: Axes, rows: Rows, over: str, of: str, unit: float) -> None:
    for name, label in _NAMES.items():
        mine = [row for row in rows if row["implementation"] == name and "failed" not in row]
        points = sorted((row[over], row[of] / unit) for row in mine)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=_COLORS[name], label=label, linewidth=1.8, markersize=5)
            axes.annotate(f"{points[-1][1]:.3g}", points[-1], xytext=(6, 4), textcoords="offset points", fontsize=8)


def _bars(axes: Axes, rows: Rows, of: str, unit: float, label: str) -> None:
    """One bar for each case, and how many times the first one it is."""
    names = [_NAMES[row["implementation"]] for row in rows]
    values = [row[of] / unit if "failed" not in row else 0.0 for row in rows]
    axes.barh(names, values, color=[_COLORS[row["implementation"]] for row in rows])
    for index, (row, amount) in enumerate(zip(rows, values, strict=True)):
        words = _failure(row) or f"{amount:.3g}"
        if index and "failed" not in row and values[0] > 0:
            words += f"  ({amount / values[0]:.1f} x)"
        axes.annotate(words, (amount, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.18)
    axes.set_xlabel(label)


def _peers(panels: Sequence[Axes], rows: Rows) -> None:
    labels = {
        "median_step_s": (1, "seconds per training step"),
        "peak_bytes": (_MIB, "MiB beyond parameters, gradients, optimizer"),
    }
    measured = [key for key in labels if any(key in row for row in rows)]
    for axes, key in zip(panels, measured, strict=True):
        _bars(axes, rows, key, *labels[key])
    # The panels share this axis.
    panels[0].invert_yaxis()


def _epochs(panels: Sequence[Axes], rows: Rows) -> None:
    """Seconds of an epoch on the left, what memory holds on the right."""
    time, memory = panels
    places = range(len(rows))
    time.set_yticks(places, [_case_name(row) for row in rows], fontsize=8)
    time.barh(places, [row.get("epoch_s", 0) for row in rows], color=[_COLORS[row["implementation"]] for row in rows])
    for key, (label, color) in _MEMORY.items():
        below = [sum(row.get(k, 0) / _GB for k in list(_MEMORY)[: list(_MEMORY).index(key)]) for row in rows]
        memory.barh(places, [row.get(key, 0) / _GB for row in rows], left=below, color=color, label=label)
    for place, row in zip(places, rows, strict=True):
        total = sum(row.get(key, 0) for key in _MEMORY) / _GB
        told = {time: row.get("epoch_s", 0), memory: total}
        for axes, amount in told.items():
            words = _failure(row) or f"{amount:.3g}"
            axes.annotate(words, (amount, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    time.invert_yaxis()
    time.margins(x=0.2)
    memory.margins(x=0.2)
    time.set_xlabel("seconds per epoch or evaluation")
    memory.set_xlabel("GB")
    memory.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1)


def _failure(row: dict[str, Any]) -> str:
    """Why a case has no figures, as far as there is room for it; empty if it has."""
    why: str = row.get("failed", "")
    return why if len(why) <= _MAX_WORDS else "failed"


def _case_name(row: dict[str, Any]) -> str:
    work = "training" if row["work"] == "train" else "evaluation"
    parts = "whole graph" if row["num_parts"] == 1 else f"{row['num_parts']} parts"
    return f"{_NAMES[row['implementation']]}\n{row['num_layers']} x {row['channels']}, {work}, {parts}"


_PLOTS: dict[str, Callable[[Sequence[Axes], Rows], None]] = {
    "memory": _memory,
    "depth": _depth,
    "edges": _edges,
    "peers": _peers,
    "peer_memory": _peers,
    "true_size": _epochs,
}


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        data = json.loads(path.read_text(encoding="utf-8"))
        is_comparison = "models" in data
        drawn = png(picture(parse_spec(CompareResults, data, where=name))) if is_comparison else plot(data)
        path.with_suffix(".png").write_bytes(drawn)


if __name__ == "__main__":
    main()
