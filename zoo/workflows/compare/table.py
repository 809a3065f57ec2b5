"""A comparison as a table: its cells as text, and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = ("model", "layers", "channels", "parameters", "runs", "valid", "test", "memory", "s/epoch", "training")
_NUM_WORDS = 1
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60))


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The cells of a comparison under ``HEAD``: a row for each model, then the baseline, then what others reported."""
    cells = [_model(model) for model in result["models"]]
    baseline = result["baseline"]
    if baseline is not None:
        runs = str(len(baseline["runs"]))
        cells.append(_plain(baseline["name"], runs, spread(baseline["valid"]), spread(baseline["test"])))
    for figure in result["reported"]:
        test = spread({"mean": figure["mean"], "std": figure.get("std")})
        cells.append(_plain(f"reported: {figure['protocol']}", "-", "-", test))
    return cells


def right_columns() -> range:
    """The columns of numbers."""
    return range(_NUM_WORDS, len(HEAD))


def caption(result: Mapping[str, Any]) -> list[str]:
    """What the table shows, line by line."""
    data, splits, environment = result["data"], result["splits"], result["environment"]
    counts = sorted({len(model["runs"]) for model in result["models"]})
    seeds = sorted({len({run["seed"] for run in model["runs"]}) for model in result["models"]})
    many = " or ".join(str(count) for count in counts)
    stand_in = " (synthetic, in its place)" if data["is_synthetic"] else ""
    spreads = " with the sample standard deviation" if counts[-1] > 1 else ""
    lines = [
        f"{result['metric']} on {data['name']}{stand_in}, {data['num_nodes']:,} nodes, {data['num_edges']:,} edges; "
        f"{result['protocol']}",
        f"mean{spreads} over {many} run{'' if counts == [1] else 's'} "
        f"({_count(len(splits), 'split')} x {' or '.join(map(str, seeds))} seed{'' if seeds == [1] else 's'})",
        "memory: the most that a training step needs beyond parameters, gradients, optimizer state and graph; "
        "training: all runs together",
        f"{environment['device']}, {_count(environment['num_threads'], 'thread')}, torch {environment['torch']}, "
        f"{result['date']}",
    ]
    return [*lines, *result["notes"]]


def markdown(result: Mapping[str, Any]) -> str:
    """A comparison as a Markdown table with its caption and its picture."""
    head = [*HEAD]
    rule = ["---"] * _NUM_WORDS + ["---:"] * (len(HEAD) - _NUM_WORDS)
    lines = [f"| {' | '.join(cells)} |" for cells in [head, rule, *rows(result)]]
    text = "\n".join([*lines, "", *(f"- {line}" for line in caption(result))])
    return f"{text}\n\n![{result['metric']} against memory, parameters and time](compare.png)\n"


def spread(figure: Mapping[str, float | None]) -> str:
    """A mean with its standard deviation, if there is one."""
    deviation = figure["std"]
    return f"{figure['mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def memory_in_words(num_bytes: float) -> str:
    """Bytes in MiB or GiB."""
    mib = num_bytes / 2**20
    return f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB"


def _model(model: Mapping[str, Any]) -> list[str]:
    return [
        model["name"],
        str(model["num_layers"]),
        str(model["hidden_channels"]),
        f"{model['num_parameters']:,}",
        str(len(model["runs"])),
        spread(model["valid"]),
        spread(model["test"]),
        memory_in_words(model["peak_bytes"]),
        f"{model['epoch_s']:.3g}",
        "-" if model["train_s"] is None else _duration(model["train_s"]),
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
