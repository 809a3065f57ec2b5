"""The content of ``compare.json``, and a comparison as a table and as a picture."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from zoo.spec.base import Spec
from zoo.spec.results import Environment, Mean, ReportedResult, RunScores, metric_in_words
from zoo.workflows.plot import GREY, plain_axes

HEAD = ("model", "layers", "channels", "parameters", "runs", "valid", "test", "p", "memory", "s/epoch", "training")
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60))
_COLORS = ["#2a6f97", "#e07a28", "#3a9d5d", "#b5476a", "#7a5ea8", "#8a6d3b", "#2aa5a0", "#c9a227", "#5c6b73", "#d1495b"]
# A color that is used again gets another marker.
_MARKERS = "os^Dv"
_FAR, _NEAR = 2.0, 0.02


class CompareEntry(Spec):
    """A model: its sizes, its scores, and what a training step costs, see :class:`zoo.workflows.step_cost.StepCost`.

    Attributes:
        type: the family.
        train_s: of all runs together, if all of them are known.
    """

    name: str
    type: str
    num_layers: int
    hidden_channels: int
    runs: tuple[RunScores, ...]
    valid: Mean
    test: Mean
    num_parameters: int
    peak_bytes: int
    step_s: float
    epoch_s: float
    train_s: float | None = None


class BaselineEntry(Spec):
    """A model of the node features alone."""

    name: str = "logistic regression"
    runs: tuple[RunScores, ...]
    valid: Mean
    test: Mean


class ComparedData(Spec):
    """The graph that all models see."""

    dataset: str
    name: str
    num_nodes: int
    num_edges: int
    is_synthetic: bool


class CompareResults(Spec):
    """All that a comparison found out."""

    date: str
    environment: Environment
    data: ComparedData
    metric: str
    protocol: str
    splits: tuple[int, ...]
    models: tuple[CompareEntry, ...]
    baseline: BaselineEntry | None = None
    reported: tuple[ReportedResult, ...] = ()
    notes: tuple[str, ...] = ()


def rows(results: CompareResults) -> list[list[str]]:
    """The cells under ``HEAD``: a row for each model, then the baseline, then what others reported."""
    cells = [_model(model, results.models[0]) for model in results.models]
    unknown = ["-"] * 3
    if results.baseline is not None:
        row = results.baseline
        cells.append([row.name, *unknown, str(len(row.runs)), str(row.valid), str(row.test), "-", *unknown])
    for figure in results.reported:
        test = Mean(mean=figure.mean, std=figure.std)
        cells.append([f"reported: {figure.model}", *unknown, "-", "-", str(test), "-", *unknown])
    return cells


def p_value(model: CompareEntry, other: CompareEntry) -> float | None:
    """The two-sided p-value of Wilcoxon's signed-rank test of the test scores of two models.

    Runs with the same split and seed make a pair; pairs of equal scores are left out, as in the original test. It is at
    least 2^(1 - n) for n pairs, and None for fewer than two.

    Source: F. Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945).
    """
    from scipy.stats import wilcoxon

    theirs = {(run.split, run.seed): run.test for run in other.runs}
    pairs = [(run.test, theirs[key]) for run in model.runs if (key := (run.split, run.seed)) in theirs]
    differences = [mine - their for mine, their in pairs if mine != their]
    if len(pairs) < 2:
        return None
    # All equal: nothing speaks for a difference.
    return float(wilcoxon(differences).pvalue) if differences else 1.0


def caption(results: CompareResults) -> list[str]:
    """The lines under the table: data and protocol, runs, meaning of the columns, machine, notes."""
    data, environment = results.data, results.environment
    counts = sorted({len(model.runs) for model in results.models})
    seeds = sorted({len({run.seed for run in model.runs}) for model in results.models})
    stand_in = " (synthetic, in its place)" if data.is_synthetic else ""
    spreads = " with the sample standard deviation" if counts[-1] > 1 else ""
    lines = [
        f"{metric_in_words(results.metric)} on {data.name}{stand_in}, {data.num_nodes:,} nodes, "
        f"{data.num_edges:,} edges; {results.protocol}",
        f"mean{spreads} over {' or '.join(map(str, counts))} run{'' if counts == [1] else 's'} "
        f"({_count(len(results.splits), 'split')} x {' or '.join(map(str, seeds))} seed{'' if seeds == [1] else 's'})",
        "memory: the most that a training step needs beyond parameters, gradients, optimizer state and graph; "
        "training: all runs together",
        f"{environment.machine}, torch {environment.torch}, {results.date}",
    ]
    if counts[-1] > 1 and len(results.models) > 1:
        test = "two-sided Wilcoxon signed-rank test of the runs of the same split and seed"
        lines.append(f"p: {test} against {results.models[0].name}")
    return [*lines, *results.notes]


def markdown(results: CompareResults) -> str:
    """A comparison as a Markdown table with its caption and its picture."""
    rule = ["---", *["---:"] * (len(HEAD) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in [HEAD, rule, *rows(results)]]
    text = "\n".join([*lines, "", *(f"- {line}" for line in caption(results))])
    return f"{text}\n\n![{results.metric} against memory, parameters and time](compare.png)\n"


def _model(model: CompareEntry, first: CompareEntry) -> list[str]:
    mib = model.peak_bytes / 2**20
    p = None if model is first else p_value(model, first)
    return [
        model.name,
        str(model.num_layers),
        str(model.hidden_channels),
        f"{model.num_parameters:,}",
        str(len(model.runs)),
        str(model.valid),
        str(model.test),
        "-" if p is None else f"{p:.2g}",
        f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB",
        f"{model.epoch_s:.3g}",
        "-" if model.train_s is None else _duration(model.train_s),
    ]


def _duration(seconds: float) -> str:
    unit, size = next((unit for unit in _UNITS if seconds >= unit[1]), ("s", 1))
    return f"{seconds / size:.1f} {unit}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def picture(results: CompareResults) -> Figure:
    """Three panels with a point for each model, lines for what has no memory and no time, and one legend for all."""
    figure = Figure(figsize=(13.0, 4.8), dpi=150, layout="constrained")
    memory, parameters, time = figure.subplots(1, 3, sharey=True)
    _panel(memory, results, "memory of a training step, MiB", [m.peak_bytes / 2**20 for m in results.models])
    _panel(parameters, results, "parameters", [float(m.num_parameters) for m in results.models])
    _panel(time, results, "seconds per epoch", [m.epoch_s for m in results.models])
    memory.set_ylabel(f"test {metric_in_words(results.metric)}", fontsize=9)
    for name, height, _ in reference_lines(results):
        beside = {"xycoords": ("axes fraction", "data"), "xytext": (3, 2), "textcoords": "offset points"}
        memory.annotate(name, (0, height), color=GREY, fontsize=7, **beside)
    lines = caption(results)
    figure.suptitle(lines[0], fontsize=10, x=0.01, ha="left")
    # Notes may be long; each has a line.
    figure.supxlabel("\n".join([f"{lines[1]}; {lines[3]}", *results.notes]), fontsize=7, color=GREY)
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
        axes.axhline(height, color=GREY, linestyle=style, linewidth=1, zorder=1)
    axes.margins(y=0.15)
    axes.set_xlabel(title, fontsize=9)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    plain_axes(axes)


def reference_lines(results: CompareResults) -> list[tuple[str, float, str]]:
    """Figures that belong to no point, if they are near the models: name, height, style of the line."""
    lines = [(f"reported: {r.model}", r.mean, ":") for r in results.reported]
    if results.baseline is not None:
        lines.append((results.baseline.name, results.baseline.test.mean, "--"))
    # A line far from all models would squeeze them into a strip, so it is left to the table.
    heights = [model.test.mean for model in results.models]
    margin = max(_FAR * (max(heights) - min(heights)), _NEAR)
    return [line for line in lines if min(heights) - margin <= line[1] <= max(heights) + margin]
