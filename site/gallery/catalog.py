"""Everything that the pages show, read from recipes, cards, bundles and the table of results."""

from __future__ import annotations

import csv
import itertools
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gallery import words
from gallery.words import Cell
from zoo.data.datasets import DATASETS
from zoo.hub.config import CURVES_FILE, BundleConfig, read_config
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.results import ReportedResult
from zoo.spec.shape import GraphShape, known_shape
from zoo.spec.shipped import card_path, list_models, list_recipes, recipe_path, shipped_dir
from zoo.spec.train import lower_is_better

Row = Mapping[str, str]
# Overrides that change how many layers are passed and nothing else.
_DEPTH_KEYS = ("model.num_layers=", "model.solver.max_iters=")


@dataclass(frozen=True)
class Entry:
    """A model of the gallery.

    Attributes:
        name: of the recipe and of the bundle.
        recipe: the whole recipe.
        recipe_text: the file, as its author wrote it.
        config: of the trained weights that come with the package; None: there are none.
        card: the model card in Markdown; empty if there is none.
        rows: of results.csv that speak of this recipe.
        curves: picture of the learning curves of the weights; None: there is none.
    """

    name: str
    recipe: Recipe
    recipe_text: str
    config: BundleConfig | None
    card: str
    rows: tuple[Row, ...]
    curves: Path | None

    @property
    def family(self) -> str:
        """The family in words."""
        return words.family_in_words(self.recipe.model)

    @property
    def dataset(self) -> str:
        """The data set as the recipe names it."""
        return self.recipe.data.dataset

    @cached_property
    def shape(self) -> GraphShape | None:
        """The shape that the model reads; None for a graph of the user's own."""
        return known_shape(self.recipe) if self.config is None else self.config.shape

    @property
    def load_line(self) -> str:
        """The one line that gives the model: with its weights, or freshly initialized for the user's data."""
        if self.config is not None:
            return f'model = zoo.load("{self.name}")'
        return f'model = zoo.create_model("{self.name}", data)'

    @property
    def result(self) -> Row | None:
        """The row of results.csv for the recipe as it is."""
        return next((row for row in self.rows if row["purpose"] == "model"), None)

    @property
    def num_parameters(self) -> int | None:
        """The number of parameters; None if only the user's data decide it."""
        return None if self.shape is None else self.recipe.model.num_parameters(self.shape)

    @property
    def search_text(self) -> str:
        """The words by which the table finds the model."""
        conv = getattr(self.recipe.model, "conv", None)
        parts = [self.name, self.recipe.summary, self.family, self.dataset, "" if conv is None else conv.type]
        return " ".join(parts).lower()

    @property
    def layers(self) -> Cell:
        """The depth; an equilibrium's is a limit."""
        number = self.recipe.model.num_layers
        if self.recipe.model.type == "deq":
            return Cell(f"≤ {number:,}", str(number), "the most convolutions that a solve passes")
        return Cell(f"{number:,}", str(number))

    @property
    def parameters(self) -> Cell:
        """The number of parameters."""
        if self.num_parameters is None:
            return words.missing("depends on the columns of your own graph")
        return Cell(f"{self.num_parameters:,}", str(self.num_parameters))

    @property
    def memory(self) -> Cell:
        """The peak memory of a training step in MiB."""
        if self.result is None:
            return words.missing(self._why_not_measured)
        mib = self.result["step_peak_mib"]
        return Cell(mib, mib, "MiB of a training step on top of parameters, gradients, optimizer and graph")

    @property
    def test(self) -> Cell:
        """The test metric: the mean of the runs in results.csv, else that of the weights alone."""
        if self.result is not None:
            row = self.result
            text = words.mean_in_words(row["metric"], row["test_mean"], row["test_std"])
            return Cell(text, row["test_mean"], runs_in_words(row), words.metric_name(row["metric"]))
        for figure in self.config.results if self.config else ():
            if figure.split == "test":
                text = words.value_in_words(figure.metric, figure.value)
                title = f"these weights, one run, {figure.protocol}"
                return Cell(text, f"{figure.value:.4f}", title, words.metric_name(figure.metric))
        return words.missing(self._why_not_measured)

    @property
    def _why_not_measured(self) -> str:
        if self.rows:
            return "not measured: the recipe was trained with other settings only, see its page"
        if self.config is not None:
            return "not measured: no row of results.csv speaks of this model"
        return "not measured: this recipe has not been trained here"

    @property
    def published(self) -> Cell:
        """The best published test figure: the source's own, else that of another model on the data set."""
        best = best_figure(self.source_figures)
        if best is not None:
            return _published(best, f"this model, {best.protocol}; {best.source}", "this model")
        best = best_figure(published_on(self.dataset, self.recipe.eval.metric))
        if best is None:
            return words.missing("no published figure is recorded for this data set")
        return _published(best, f"{best.model}; {best.source}", best.model.partition(",")[0])

    @property
    def source_figures(self) -> tuple[ReportedResult, ...]:
        """The figures that the source of the recipe reports."""
        return self.recipe.source.reported if self.recipe.source else ()

    @property
    def size(self) -> Cell:
        """The size of the weights that come with the package."""
        if self.config is None:
            return words.missing("no trained weights come with the package")
        number = self.config.weights.num_bytes
        return Cell(words.bytes_in_words(number), str(number), f"{number:,} bytes of weights")


def _published(figure: ReportedResult, title: str, note: str) -> Cell:
    return Cell(words.mean_in_words(figure.metric, figure.mean, figure.std), f"{figure.mean:.4f}", title, note)


def best_figure(figures: Iterable[ReportedResult]) -> ReportedResult | None:
    """The best of the test figures; None: there are none."""
    tests = [figure for figure in figures if figure.split == "test"]
    return max(tests, key=lambda f: -f.mean if lower_is_better(f.metric) else f.mean, default=None)


def published_on(dataset: str, metric: str | None) -> list[ReportedResult]:
    """The figures of other models on a data set."""
    known = DATASETS.get(dataset)
    return [figure for figure in known.reported if figure.metric == metric] if known else []


def runs_in_words(row: Row) -> str:
    """How many runs a row of results.csv stands for."""
    splits, seeds = int(row["splits"]), int(row["seeds"])
    if not row["test_std"]:
        return f"one run, {row['protocol']}"
    runs = f"{words.count(splits, 'split')} and {words.count(seeds, 'seed')}"
    return f"mean and standard deviation over {runs}, {row['protocol']}"


def overrides(row: Row) -> list[str]:
    """What a run changed in its recipe, from the command that repeats it."""
    arguments = shlex.split(row["command"])
    return [value for flag, value in itertools.pairwise(arguments) if flag == "--set"]


def read_catalog(results: Path) -> list[Entry]:
    """All models, by name.

    Args:
        results: the table results.csv.
    """
    rows: dict[str, list[Row]] = defaultdict(list)
    with results.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["model"]].append(row)
    return [_entry(name, rows[name]) for name in list_models()]


def _entry(name: str, rows: Sequence[Row]) -> Entry:
    folder, card = shipped_dir("bundles") / name, card_path(name)
    config = read_config(folder) if folder.is_dir() else None
    if name in list_recipes():
        recipe, text = read_recipe(name), recipe_path(name).read_text(encoding="utf-8")
    else:
        assert config is not None  # list_models names recipes and bundles
        recipe, text = config.recipe, config.recipe.model_dump_json(indent=2, exclude_none=True)
    curves = folder / CURVES_FILE
    return Entry(
        name=name,
        recipe=recipe,
        # A line for editors alone; its path means nothing outside the folder of recipes.
        recipe_text=re.sub(r'\n *"\$schema": .*', "", text).strip(),
        config=config,
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
        rows=tuple(rows),
        curves=curves if curves.is_file() else None,
    )


def plot_data(entries: Sequence[Entry]) -> dict[str, Any]:
    """What the plot shows, as JSON data: points, and the pictures that they make, one for each data set and metric."""
    points = [point for entry in entries for point in (*_measured_points(entry), *_published_points(entry))]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        groups[point["data"], point["metric"]].append(point)
    names = sorted(groups)
    # The data set that says most about depth is shown first.
    first = max(names, key=lambda name: len({p["layers"] for p in groups[name] if p["kind"] != "published"}))
    return {"plots": [_plot(*name, groups[name]) for name in names], "first": names.index(first)}


def _plot(dataset: str, metric: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    best = best_figure(published_on(dataset, metric))
    line = None
    if best is not None:
        value = words.value_in_words(metric, best.mean)
        short = f"published: {best.model.partition(',')[0]}, {value}"
        line = {"value": float(value), "label": f"best published: {best.model}, {value}", "short": short}
    unit = ", %" if words.is_in_percent(metric) else ""
    name = words.metric_name(metric)
    return {"data": dataset, "metric": name, "label": f"test {name}{unit}", "published": line, "points": points}


def _measured_points(entry: Entry) -> Iterable[dict[str, Any]]:
    for row in entry.rows:
        sets = overrides(row)
        kind = "model" if row["purpose"] == "model" else "variant"
        rest = [text for text in sets if not text.startswith(_DEPTH_KEYS)]
        yield {
            "model": entry.name,
            "data": row["data"],
            "metric": row["metric"],
            "kind": kind,
            "family": row["family"],
            "family_name": words.FAMILIES.get(row["family"], row["family"]),
            "value": float(words.value_in_words(row["metric"], row["test_mean"])),
            "std": float(words.value_in_words(row["metric"], row["test_std"])) if row["test_std"] else None,
            "text": _figure_in_words(row["metric"], row["test_mean"], row["test_std"]),
            "layers": int(row["layers"]),
            "parameters": int(row["parameters"]),
            "memory": float(row["step_peak_mib"]),
            "seconds": float(row["train_s"]),
            "note": "; ".join([*([] if kind == "model" else ["with " + ", ".join(sets)]), runs_in_words(row)]),
            # Runs of one recipe that differ in depth alone are joined by a line.
            "line": "" if row["purpose"] == "selection" else " ".join([entry.name, *rest]),
        }


def _figure_in_words(metric: str, mean: str | float, std: str | float | None) -> str:
    unit = " %" if words.is_in_percent(metric) else ""
    return f"{words.metric_name(metric)} {words.mean_in_words(metric, mean, std)}{unit}"


def _published_points(entry: Entry) -> Iterable[dict[str, Any]]:
    best = best_figure(entry.source_figures)
    if best is None:
        return
    yield {
        "model": entry.name,
        "data": entry.dataset,
        "metric": best.metric,
        "kind": "published",
        "family": entry.recipe.model.type,
        "family_name": words.FAMILIES.get(entry.recipe.model.type, entry.recipe.model.type),
        "value": float(words.value_in_words(best.metric, best.mean)),
        "std": None if best.std is None else float(words.value_in_words(best.metric, best.std)),
        "text": _figure_in_words(best.metric, best.mean, best.std),
        "layers": entry.recipe.model.num_layers,
        "parameters": entry.num_parameters,
        "memory": None,
        "seconds": None,
        "note": f"published by the authors, {best.protocol}",
        "line": "",
    }
