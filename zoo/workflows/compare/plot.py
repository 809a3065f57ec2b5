"""A comparison as a picture: the metric against memory, parameters and time."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from zoo.spec.results import metric_in_words
from zoo.workflows.compare.results import CompareResults
from zoo.workflows.compare.table import caption

_COLORS = (
    "#2a6f97",
    "#e07a28",
    "#3a9d5d",
    "#b5476a",
    "#7a5ea8",
    "#8a6d3b",
    "#2aa5a0",
    "#c9a227",
    "#5c6b73",
    "#d1495b",
)
# A color that is used again gets another marker.
_MARKERS = "os^Dv"
_GREY = "#666666"
_FAR, _NEAR = 2.0, 0.02


def plot(results: CompareResults) -> bytes:
    """A PNG of the picture."""
    buffer = io.BytesIO()
    picture(results).savefig(buffer, format="png")
    return buffer.getvalue()


def picture(results: CompareResults) -> Figure:
    """Three panels with a point for each model, lines for what has no memory and no time, and one legend for all."""
    figure = Figure(figsize=(13.0, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    memory, parameters, time = figure.subplots(1, 3, sharey=True)
    _panel(memory, results, "memory of a training step, MiB", [m.peak_bytes / 2**20 for m in results.models])
    _panel(parameters, results, "parameters", [float(m.num_parameters) for m in results.models])
    _panel(time, results, "seconds per epoch", [m.epoch_s for m in results.models])
    memory.set_ylabel(f"test {metric_in_words(results.metric)}", fontsize=9)
    for name, height, _ in reference_lines(results):
        beside = {"xycoords": ("axes fraction", "data"), "xytext": (3, 2), "textcoords": "offset points"}
        memory.annotate(name, (0, height), color=_GREY, fontsize=7, **beside)
    lines = caption(results)
    figure.suptitle(lines[0], fontsize=10, x=0.01, ha="left")
    # Notes may be long; each has a line.
    figure.supxlabel("\n".join([f"{lines[1]}; {lines[3]}", *results.notes]), fontsize=7, color=_GREY)
    figure.legend(*memory.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _panel(axes: Axes, results: CompareResults, title: str, values: list[float]) -> None:
    for index, (model, x) in enumerate(zip(results.models, values, strict=True)):
        # A logarithmic axis cannot show a step that needs no memory; the legend still names the model.
        axes.errorbar(
            x if x > 0 else float("nan"),
            model.test.mean,
            yerr=model.test.std,
            fmt=_MARKERS[index // len(_COLORS) % len(_MARKERS)],
            color=_COLORS[index % len(_COLORS)],
            label=model.name,
            markersize=7,
            capsize=3,
            zorder=3,
        )
    axes.set_xscale("log")
    shown = [x for x in values if x > 0]
    if shown:
        # At least two octaves, so that the axis has numbers to show.
        middle, span = (min(shown) * max(shown)) ** 0.5, max(max(shown) / min(shown), 4.0)
        axes.set_xlim(middle / span**0.6, middle * span**0.6)
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1,) if span > 300 else (1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: EngFormatter(sep="")(x) if x >= 1000 else f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for _, height, style in reference_lines(results):
        axes.axhline(height, color=_GREY, linestyle=style, linewidth=1, zorder=1)
    axes.margins(y=0.15)
    axes.set_xlabel(title, fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_GREY, labelsize=8)


def reference_lines(results: CompareResults) -> list[tuple[str, float, str]]:
    """Figures that belong to no point, if they are near the models: name, height, style of the line."""
    lines = [(f"reported: {r.model}", r.mean, ":") for r in results.reported]
    if results.baseline is not None:
        lines.append((results.baseline.name, results.baseline.test.mean, "--"))
    # A line far from all models would squeeze them into a strip, so it is left to the table.
    heights = [model.test.mean for model in results.models]
    margin = max(_FAR * (max(heights) - min(heights)), _NEAR)
    return [line for line in lines if min(heights) - margin <= line[1] <= max(heights) + margin]
