"""A comparison as a table: its cells as text, and Markdown."""

from __future__ import annotations

from zoo.spec.results import metric_in_words
from zoo.workflows.compare.results import CompareEntry, CompareResults, Mean

HEAD = ("model", "layers", "channels", "parameters", "runs", "valid", "test", "memory", "s/epoch", "training")
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60))


def rows(results: CompareResults) -> list[list[str]]:
    """The cells under ``HEAD``: a row for each model, then the baseline, then what others reported."""
    cells = [_model(model) for model in results.models]
    baseline = results.baseline
    if baseline is not None:
        cells.append(_plain(baseline.name, str(len(baseline.runs)), str(baseline.valid), str(baseline.test)))
    for figure in results.reported:
        test = Mean(mean=figure.mean, std=figure.std)
        cells.append(_plain(f"reported: {figure.model}", "-", "-", str(test)))
    return cells


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
    return [*lines, *results.notes]


def markdown(results: CompareResults) -> str:
    """A comparison as a Markdown table with its caption and its picture."""
    rule = ["---", *["---:"] * (len(HEAD) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in [HEAD, rule, *rows(results)]]
    text = "\n".join([*lines, "", *(f"- {line}" for line in caption(results))])
    return f"{text}\n\n![{results.metric} against memory, parameters and time](compare.png)\n"


def _model(model: CompareEntry) -> list[str]:
    mib = model.peak_bytes / 2**20
    return [
        model.name,
        str(model.num_layers),
        str(model.hidden_channels),
        f"{model.num_parameters:,}",
        str(len(model.runs)),
        str(model.valid),
        str(model.test),
        f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB",
        f"{model.epoch_s:.3g}",
        "-" if model.train_s is None else _duration(model.train_s),
    ]


def _plain(name: str, runs: str, valid: str, test: str) -> list[str]:
    return [name, "-", "-", "-", runs, valid, test, "-", "-", "-"]


def _duration(seconds: float) -> str:
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
