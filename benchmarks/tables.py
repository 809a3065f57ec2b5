"""Tables of README and docs, made from results/results.csv, the recipes and benchmarks/results.

python -m benchmarks.tables     writes them into README.md, between the comments that name them
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from zoo.spec.model import DeqSpec
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.results import ReportedResult
from zoo.spec.shape import GeneratedName
from zoo.spec.shipped import list_bundles, list_recipes
from zoo.spec.train import lower_is_better

ROOT = Path(__file__).parent.parent
RESULTS, BENCHMARKS = ROOT / "results" / "results.csv", ROOT / "benchmarks" / "results"
FAMILIES = {
    "rev": "reversible",
    "res": "residual",
    "deq": "equilibrium",
    "rev_gat": "reversible attention",
    "gcnii": "GCNII",
    "oscillator": "oscillators",
}
# What a node's label depends on, so that a reader finds the row that is most like an own graph.
TASKS = {
    "digits": "similar nodes have one label (images)",
    "cora": "few labels, linked nodes are alike (citations)",
    "amazon-photo": "linked nodes are alike (products bought together)",
    "minesweeper": "labels follow from counts along long paths (a grid)",
    "squirrel-filtered": "linked nodes differ (web pages)",
}
# The recipes of the paper that README names; docs/reference/recipes.md has all.
PAPER = ("rev_deep", "rev_wide", "deq_224", "rev_gat_arxiv_kd")
Row = dict[str, str]


def result_rows(*purposes: str) -> list[Row]:
    """The rows of results.csv that serve one of these purposes: "model", "depth" or "selection"."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["purpose"] in purposes]


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *rows))


def metric(name: str) -> str:
    """A metric as papers write it."""
    return {"rocauc": "ROC-AUC", "average_precision": "average precision", "r2": "R²"}.get(name, name.replace("_", " "))


def score(row: Row) -> str:
    """The test figure with its deviation."""
    return row["test_mean"] + (f" ± {row['test_std']}" if row["test_std"] else "")


def models() -> str:
    """For each data set the model with the best validation; loaded by its name if its weights come with the package."""
    best: dict[str, Row] = {}
    for row in result_rows("model"):
        # Generated graphs test range and stand for nobody's data.
        if row["data"] in get_args(GeneratedName):
            continue
        if row["data"] not in best or is_better(row, best[row["data"]]):
            best[row["data"]] = row
    order = [*TASKS, *(name for name in best if name not in TASKS)]
    found = [best[name] for name in order if name in best]
    return table(
        ("your graph", "measured on", "model", "family, layers", "test"),
        [
            (
                TASKS.get(row["data"], row["data"]),
                row["data"],
                f"`{row['model']}`",
                f"{FAMILIES[row['family']]}, {row['layers']}",
                f"{metric(row['metric'])} {score(row)}",
            )
            for row in found
        ],
    )


def is_better(row: Row, other: Row) -> bool:
    """Compare two models by their validation."""
    difference = float(row["valid_mean"]) - float(other["valid_mean"])
    return difference < 0 if lower_is_better(row["metric"]) else difference > 0


def results() -> str:
    """Every model that was trained for the zoo."""
    head = (
        "model",
        "data",
        "family",
        "layers x channels",
        "parameters",
        "test",
        "splits, seeds",
        "MiB of a step",
        "code",
    )
    rows = [
        (
            f"`{row['model']}`",
            row["data"],
            FAMILIES[row["family"]],
            f"{row['layers']} x {row['channels']}",
            f"{int(row['parameters']):,}",
            f"{metric(row['metric'])} {score(row)}",
            f"{row['splits']}, {row['seeds']}",
            row["step_peak_mib"],
            f"`{row['commit']}`",
        )
        for row in result_rows("model")
    ]
    return table(head, rows)


def depth(model: str) -> str:
    """A recipe and its variants with fewer layers or iterations, from shallow to deep."""
    rows = [row for row in result_rows("model", "depth") if row["model"] == model and stack(row) in ("rev", "deq")]
    head = ("convolutions", "parameters", "validation", "test", "MiB of a step", "minutes of training")
    return table(
        head,
        [
            (
                row["layers"],
                f"{int(row['parameters']):,}",
                row["valid_mean"],
                score(row),
                row["step_peak_mib"],
                f"{int(row['train_s']) / 60:.1f}",
            )
            for row in sorted(rows, key=lambda row: int(row["layers"]))
        ],
    )


def stacks() -> str:
    """Test figure and memory of a step by depth: reversible, reversible with tied weights, residual."""
    kinds, columns = ("rev", "rev, tied", "res"), ("test_mean", "step_peak_mib")
    found: dict[int, dict[str, Row]] = {}
    for row in result_rows("model", "depth"):
        if row["model"] == "minesweeper_rev_1001":
            found.setdefault(int(row["layers"]), {})[stack(row)] = row
    head = ("convolutions", "reversible", "reversible, tied", "residual", "MiB reversible", "tied", "residual")
    return table(
        head,
        [
            (str(layers), *(rows[kind][column] if kind in rows else "" for column in columns for kind in kinds))
            for layers, rows in sorted(found.items())
        ],
    )


def stack(row: Row) -> str:
    """The type of a model, and whether its layers share weights."""
    return row["family"] + (", tied" if "num_distinct_layers=" in row["command"] else "")


def roads() -> str:
    """Test accuracy on the road network by range and number of layers, as benchmarks/road_depth.py measured it."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for row in json.loads((BENCHMARKS / "range_road.json").read_text(encoding="utf-8")):
        found.setdefault((row["stack"], row["hops"]), {})[row["num_layers"]] = row["test"]
    depths = sorted({layers for scores in found.values() for layers in scores})
    head = ("stack", "hops", *(f"{layers} layers" for layers in depths))
    cells = [
        (stack, str(hops), *(f"{100 * scores[layers]:.1f}" if layers in scores else "" for layers in depths))
        for (stack, hops), scores in found.items()
    ]
    return table(head, cells)


def more_steps() -> str:
    """Errors of models trained with 16 steps by the number of steps, as benchmarks/more_steps.py measured them."""
    rows = json.loads((BENCHMARKS / "more_steps.json").read_text(encoding="utf-8"))
    places = [(hops, steps) for hops, errors in rows[0]["mae"].items() for steps in errors]
    head = ("hops, steps", *(row["model"] for row in rows))
    return table(
        head, [(", ".join(place), *(f"{row['mae'][place[0]][place[1]]:.2f}" for row in rows)) for place in places]
    )


def recipes() -> str:
    """Every recipe, and the published test figure that belongs to it."""
    head = ("recipe", "data", "family", "layers x channels", "parameters", "published test figure", "weights here")
    return table(head, [_recipe_row(read_recipe(name)) for name in list_recipes()])


def _recipe_row(recipe: Recipe) -> tuple[str, ...]:
    reported = [r for r in recipe.source.reported if r.split == "test" and not r.model] if recipe.source else []
    parameters = recipe.source.num_parameters if recipe.source else 0
    depth = "" if isinstance(recipe.model, DeqSpec) else f"{recipe.model.num_layers} x "
    return (
        f"`{recipe.name}`",
        recipe.data.dataset,
        FAMILIES.get(recipe.model.type, recipe.model.type),
        f"{depth}{recipe.model.hidden_channels}",
        f"{parameters:,}" if parameters else "",
        _published(reported[0]) if reported else "",
        "yes" if recipe.name in list_bundles() else "",
    )


def _published(result: ReportedResult) -> str:
    deviation = "" if result.std is None else f" ± {100 * result.std:.2f}"
    return f"{metric(result.metric)} {100 * result.mean:.2f}{deviation}"


def paper() -> str:
    """A few recipes of the paper beside what was published for them."""
    rows = [_recipe_row(read_recipe(name)) for name in PAPER]
    # Without parameters and weights.
    return table(("recipe", "data", "family", "layers x channels", "published"), [(*r[:4], r[5]) for r in rows])


def write() -> None:
    """Write the tables into README.md."""
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """A page with its tables as the results are now; each stands between two comments."""

    def fill(found: re.Match[str]) -> str:
        return f"{found[1]}\n{README_TABLES[found[2]]()}\n{found[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", fill, text, flags=re.DOTALL)


def speed() -> str:
    """Seconds of the processor in a training step and their ratio to ours, as benchmarks/turns.py measured them."""
    measured = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(BENCHMARKS.glob("turns_*.json"))]
    names = dict.fromkeys(row["contender"] for result in measured for row in result["rows"])
    # It is as fast as the one above it.
    names.pop("revgnn-zoo, tuned allocator", None)
    head = ("seconds of a training step", *(f"{r['num_layers']} layers x {r['channels']} channels" for r in measured))
    rows = [{row["contender"]: row["processor"] for row in result["rows"]} for result in measured]
    return table(head, [(name, *(_seconds(found.get(name)) for found in rows)) for name in names])


def _seconds(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    ratio = "" if row["ratio"] == 1 else f" ({row['ratio']:.1f} x)"
    return f"{row['median_s']:.2f}{ratio}"


README_TABLES = {"models": models, "paper": paper, "speed": speed}


if __name__ == "__main__":
    write()
