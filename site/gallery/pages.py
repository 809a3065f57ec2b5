"""Write the pages: one folder of HTML, CSS and JavaScript with relative links, which needs no server and no network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gallery import words
from gallery.card import read_card
from gallery.catalog import Entry, Row, overrides, plot_data, read_catalog, runs_in_words
from gallery.drawing import draw

SOURCE = Path(__file__).parents[1]
RESULTS = SOURCE.parent / "results" / "results.csv"
# The whole of what a page loads; licenses go along.
_VENDORED = (
    "uplot/uPlot.iife.min.js",
    "uplot/uPlot.min.css",
    "uplot/LICENSE",
    "sortable/sortable.min.js",
    "sortable/LICENSE",
)
_PURPOSES = {"model": "the recipe", "depth": "other depth", "selection": "other settings"}


def write_site(out: Path) -> list[Path]:
    """Write the whole site anew.

    Args:
        out: its folder; what an earlier call wrote there is removed.

    Returns:
        The pages.
    """
    entries = read_catalog(RESULTS)
    _clear(out)
    (out / "models").mkdir(parents=True)
    for file in (SOURCE / "assets").iterdir():
        _copy(file, out / "assets" / file.name)
    for name in _VENDORED:
        _copy(SOURCE / "vendor" / name, out / "assets" / "vendor" / name)
    # GitHub Pages would else leave out files by the rules of Jekyll.
    (out / ".nojekyll").touch()
    environment = _environment()
    pages = [out / "index.html"]
    pages[0].write_text(environment.get_template("index.html").render(_index(entries)), encoding="utf-8")
    for entry in entries:
        if entry.curves is not None:
            _copy(entry.curves, out / "models" / f"{entry.name}.png")
        page = out / "models" / f"{entry.name}.html"
        page.write_text(environment.get_template("model.html").render(_model(entry)), encoding="utf-8")
        pages.append(page)
    return pages


def _clear(out: Path) -> None:
    """Remove what was written before, and nothing else: the folder may be a checkout of its own."""
    for name in ("assets", "models"):
        shutil.rmtree(out / name, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(SOURCE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["DASH"] = words.DASH
    return environment


def _index(entries: Sequence[Entry]) -> dict[str, Any]:
    # "</script>" inside a string would end the element that holds the data.
    data = json.dumps(plot_data(entries), ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return {
        "root": "",
        "entries": entries,
        "num_trained": sum(entry.config is not None for entry in entries),
        "families": sorted({entry.family for entry in entries}),
        "datasets": sorted({entry.dataset for entry in entries}),
        "plot_data": Markup(data),
    }


def _model(entry: Entry) -> dict[str, Any]:
    recipe = entry.recipe
    return {
        "root": "../",
        "entry": entry,
        "card": read_card(entry.card),
        "drawing": Markup(draw(entry.name, recipe.model, entry.shape)),
        "train_line": f"revgnn-zoo train {entry.name}",
        "measured": [_measured(row) for row in entry.rows],
        "weights": _weights(entry),
        "reported": [
            {
                "split": figure.split,
                "metric": words.metric_name(figure.metric),
                "value": words.mean_in_words(figure.metric, figure.mean, figure.std),
                "protocol": figure.protocol,
                "source": figure.source,
            }
            for figure in entry.source_figures
        ],
    }


def _measured(row: Row) -> dict[str, Any]:
    """A row of results.csv as the page shows it."""
    metric = row["metric"]
    return {
        "purpose": _PURPOSES.get(row["purpose"], row["purpose"]),
        "changes": overrides(row),
        "metric": words.metric_name(metric),
        "test": words.mean_in_words(metric, row["test_mean"], row["test_std"]),
        "valid": words.value_in_words(metric, row["valid_mean"]),
        "runs": runs_in_words(row),
        "num_runs": f"{words.count(int(row['splits']), 'split')}, {words.count(int(row['seeds']), 'seed')}",
        "layers": f"{int(row['layers']):,}",
        "parameters": f"{int(row['parameters']):,}",
        "memory": row["step_peak_mib"],
        "seconds": f"{int(row['train_s']):,}",
        "commit": row["commit"],
        "command": row["command"],
    }


def _weights(entry: Entry) -> list[dict[str, str]]:
    """The figures of the trained weights, as their config.json records them."""
    return [
        {
            "split": figure.split,
            "metric": words.metric_name(figure.metric),
            "value": words.value_in_words(figure.metric, figure.value),
            "protocol": figure.protocol,
        }
        for figure in (entry.config.results if entry.config else ())
    ]
