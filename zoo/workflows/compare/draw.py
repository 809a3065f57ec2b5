"""A comparison as a picture: the metric against memory, parameters and time, drawn from what was measured."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

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
_GREY = "#666666"
_FONT_POINTS = 8
_GAP_POINTS = 5
_FAR = 2.0
_NEAR = 0.02
_PANELS = (
    ("peak_bytes", "memory of a training step, MiB", 2.0**-20),
    ("num_parameters", "parameters", 1.0),
    ("epoch_s", "seconds per epoch", 1.0),
)


class _Mark(NamedTuple):
    """A point with its label."""

    name: str
    x: float
    y: float
    std: float
    color: str


def draw(result: Mapping[str, Any]) -> bytes:
    """A PNG with three panels."""
    buffer = io.BytesIO()
    picture(result).savefig(buffer, format="png")
    return buffer.getvalue()


def picture(result: Mapping[str, Any]) -> Figure:
    """Three panels with a point and its name for each model, and lines for what has no memory and no time."""
    figure = Figure(figsize=(13.0, 4.8), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    marks = [_panel(axes, result, *panel) for axes, panel in zip(panels, _PANELS, strict=True)]
    panels[0].set_ylabel(f"test {result['metric']}", fontsize=9)
    lines = caption(result)
    figure.suptitle(lines[0], fontsize=10, x=0.01, ha="left")
    # Notes may be long; each has a line.
    figure.supxlabel("\n".join([f"{lines[1]}; {lines[3]}", *result["notes"]]), fontsize=7, color=_GREY)
    canvas.draw()
    # Labels are put where there is room, so nothing may move any more.
    figure.set_layout_engine("none")
    for axes, points in zip(panels, marks, strict=True):
        _label(axes, canvas, points, _lines_of(result))
    return figure


def _panel(axes: Axes, result: Mapping[str, Any], key: str, title: str, unit: float) -> list[_Mark]:
    marks = []
    for index, model in enumerate(result["models"]):
        figure, x = model["test"], model[key] * unit
        if x > 0:
            color = _COLORS[index % len(_COLORS)]
            marks.append(_Mark(model["name"], x, figure["mean"], figure["std"] or 0.0, color))
    for mark in marks:
        axes.errorbar(
            mark.x, mark.y, yerr=mark.std or None, fmt="o", color=mark.color, markersize=7, capsize=3, zorder=3
        )
    axes.set_xscale("log")
    if marks:
        low, high = min(mark.x for mark in marks), max(mark.x for mark in marks)
        # Room for labels on both sides, and at least some octaves, so that the axis has numbers to show.
        span = max(high / low, 4.0)
        middle = (low * high) ** 0.5
        axes.set_xlim(middle / span**0.75, middle * span**0.75)
    wide = marks and high / low > 300
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1,) if wide else (1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for _, y, style in _lines_of(result):
        axes.axhline(y, color=_GREY, linestyle=style, linewidth=1, zorder=1)
    axes.margins(y=0.15)
    axes.set_xlabel(title, fontsize=9)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_GREY, labelsize=8)
    return marks


def _lines_of(result: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Figures that belong to no point: name, height, style of the line."""
    lines = [(f"reported: {r['protocol']}", r["mean"], ":") for r in result["reported"]]
    if result["baseline"] is not None:
        lines.append((result["baseline"]["name"], result["baseline"]["test"]["mean"], "--"))
    # What is far from all models would press them into a strip; it stands in the table.
    heights = [model["test"]["mean"] for model in result["models"]]
    margin = max(_FAR * (max(heights) - min(heights)), _NEAR)
    return [line for line in lines if min(heights) - margin <= line[1] <= max(heights) + margin]


def _label(
    axes: Axes, canvas: FigureCanvasAgg, marks: Sequence[_Mark], lines: Sequence[tuple[str, float, str]]
) -> None:
    """Write each name beside its point, where it covers neither a point, an error bar nor another name."""
    pixels = canvas.figure.dpi / 72
    frame = axes.get_window_extent()
    taken = []
    for mark in marks:
        x, bottom = axes.transData.transform((mark.x, mark.y - mark.std))
        top = axes.transData.transform((mark.x, mark.y + mark.std))[1]
        y, radius = axes.transData.transform((mark.x, mark.y))[1], _GAP_POINTS * pixels
        taken.append(Bbox([[x - radius, min(bottom, y - radius)], [x + radius, max(top, y + radius)]]))
    heights = [axes.transData.transform((1, y))[1] for _, y, _ in lines]
    for (name, _, _), height in zip(lines, heights, strict=True):
        corner = (frame.x0 + 3 * pixels, height + 2 * pixels)
        taken.append(_write(axes, canvas, name, corner, _GREY))
    taken += [Bbox([[frame.x0, height - 1], [frame.x1, height + 1]]) for height in heights]
    for mark in sorted(marks, key=lambda mark: mark.x):
        centre: Any = axes.transData.transform((mark.x, mark.y))
        width, height = _size(axes, canvas, mark.name)
        corner = _free_corner(centre, width, height, taken, frame, pixels)
        box = _write(axes, canvas, mark.name, corner, mark.color)
        taken.append(box)
        nearest = (min(max(centre[0], box.x0), box.x1), min(max(centre[1], box.y0), box.y1))
        if max(abs(nearest[0] - centre[0]), abs(nearest[1] - centre[1])) > 3 * _GAP_POINTS * pixels:
            ends: Any = axes.transData.inverted().transform(np.array([centre, nearest]))
            axes.plot(ends[:, 0], ends[:, 1], color=mark.color, linewidth=0.7, zorder=2)


def _free_corner(
    centre: tuple[float, float], width: float, height: float, taken: Sequence[Bbox], frame: Bbox, pixels: float
) -> tuple[float, float]:
    """The lower left corner of a free place for a text, the nearer to its point the better."""
    best, least = (centre[0], centre[1]), float("inf")
    for ring in range(8):
        gap = (_GAP_POINTS + 1 + ring * 8) * pixels
        for right, up in ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1)):
            x = centre[0] + (gap if right > 0 else -gap - width if right < 0 else -width / 2)
            y = centre[1] + (gap if up > 0 else -gap - height if up < 0 else -height / 2)
            box = Bbox.from_bounds(x, y, width, height)
            hidden = sum(_common(box, other) for other in taken)
            outside = width * height - _common(box, frame)
            cost = hidden + 2 * outside
            if cost < least:
                best, least = (x, y), cost
            # Less than a pixel is rounding.
            if least < 1:
                return best
    return best


def _common(one: Bbox, other: Bbox) -> float:
    """The area that two boxes share."""
    width: float = min(one.x1, other.x1) - max(one.x0, other.x0)
    height: float = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)


def _write(axes: Axes, canvas: FigureCanvasAgg, text: str, corner: tuple[float, float], color: str) -> Bbox:
    x, y = axes.transData.inverted().transform(corner)
    written = axes.text(x, y, text, fontsize=_FONT_POINTS, color=color, ha="left", va="bottom", zorder=4)
    box: Bbox = written.get_window_extent(canvas.get_renderer())
    return box


def _size(axes: Axes, canvas: FigureCanvasAgg, text: str) -> tuple[float, float]:
    probe = axes.text(0, 0, text, fontsize=_FONT_POINTS, transform=axes.transAxes)
    box = probe.get_window_extent(canvas.get_renderer())
    probe.remove()
    return box.width, box.height


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
