"""Pictures of benchmark results, drawn from what was measured and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_NAMES = {
    "zoo": "revgnn-zoo, reversible",
    "zoo_plain": "revgnn-zoo, plain autograd",
    "pyg": "PyG GENConv + GroupAddRev",
    "pyg_plain": "PyG GENConv, plain autograd",
}
_COLORS = {"zoo": "#2a6f97", "zoo_plain": "#8fb8cf", "pyg": "#e07a28", "pyg_plain": "#f1bc8f"}
_MIB = 2**20


def draw(result: dict[str, Any]) -> bytes:
    """A PNG of a suite's result."""
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.subplots()
    _DRAWINGS[result["suite"]](axes, result["cases"])
    axes.set_title(result["summary"], fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    first = result["cases"][0]
    environment = result["environment"]
    figure.supxlabel(
        f"{first['num_nodes']:,} nodes, {first['num_edges']:,} edges, {first['channels']} channels; "
        f"{environment['device']}, {environment['num_threads']} threads, torch {environment['torch']}, "
        f"{result['date']}",
        fontsize=7,
        color="#666666",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _memory(axes: Axes, cases: list[dict[str, Any]]) -> None:
    _lines(axes, cases, "num_layers", lambda case: case["peak_bytes"] / _MIB)
    axes.set(xlabel="layers", ylabel="MiB beyond parameters, gradients, optimizer", xscale="log", yscale="log")
    layers = sorted({case["num_layers"] for case in cases})
    axes.set_xticks(layers, [str(n) for n in layers], minor=False)
    axes.minorticks_off()


def _depth(axes: Axes, cases: list[dict[str, Any]]) -> None:
    _lines(axes, cases, "num_layers", lambda case: case["median_step_s"])
    axes.set(xlabel="layers", ylabel="seconds per training step", xlim=(0, None), ylim=(0, None))


def _edges(axes: Axes, cases: list[dict[str, Any]]) -> None:
    _lines(axes, cases, "num_edges", lambda case: case["median_step_s"])
    axes.set(xlabel="directed edges", ylabel="seconds per training step", xlim=(0, None), ylim=(0, None))


def _lines(axes: Axes, cases: list[dict[str, Any]], key: str, value: Any) -> None:
    for name, label in _NAMES.items():
        points = sorted((case[key], value(case)) for case in cases if case["implementation"] == name)
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=_COLORS[name], label=label, linewidth=1.8, markersize=5)
            axes.annotate(f"{points[-1][1]:.3g}", points[-1], xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.legend(frameon=False, fontsize=8)


def _bars(axes: Axes, cases: list[dict[str, Any]], value: Any, label: str) -> None:
    values = [value(case) for case in cases]
    names = [_NAMES[case["implementation"]] for case in cases]
    axes.barh(names, values, color=[_COLORS[case["implementation"]] for case in cases])
    for index, amount in enumerate(values):
        ratio = f"{amount:.3g}" + (f"  ({amount / values[0]:.1f} x)" if index else "")
        axes.annotate(ratio, (amount, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel(f"{label}; {cases[0]['num_layers']} layers")


def _peers(axes: Axes, cases: list[dict[str, Any]]) -> None:
    _bars(axes, cases, lambda case: case["median_step_s"], "seconds per training step")


def _peer_memory(axes: Axes, cases: list[dict[str, Any]]) -> None:
    _bars(axes, cases, lambda case: case["peak_bytes"] / _MIB, "MiB beyond parameters, gradients, optimizer")


_DRAWINGS: dict[str, Callable[[Axes, list[dict[str, Any]]], None]] = {
    "memory": _memory,
    "depth": _depth,
    "edges": _edges,
    "peers": _peers,
    "peer_memory": _peer_memory,
}
