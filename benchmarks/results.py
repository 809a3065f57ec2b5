"""Everything that was trained for the zoo, in one table: results/results.csv and results/depth_minesweeper.png.

    python -m benchmarks.results renew                   train what plan.json asks for and runs.jsonl lacks
    python -m benchmarks.results collect RECIPE RUN...   take finished run directories into runs.jsonl
    python -m benchmarks.results table                   write the table, the picture and README's table from runs.jsonl

A line of runs.jsonl is one training run: what was run, what it measured, and the commit whose code trained it.
``renew`` writes it when a run is done, continues an unfinished run and skips a finished one, so it may be stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import tables
from zoo.errors import ZooError
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shipped import card_path, recipe_path
from zoo.workflows import session
from zoo.workflows.evaluate import test_protocol
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.load import load
from zoo.workflows.recipes import recipe_digest
from zoo.workflows.run_dir import RunDir
from zoo.workflows.step_cost import measure_training
from zoo.workflows.train import train

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results"
PLAN, RUNS, TABLE = FOLDER / "plan.json", FOLDER / "runs.jsonl", FOLDER / "results.csv"
PICTURE = FOLDER / "depth_minesweeper.png"
COLUMNS = (
    "model",
    "data",
    "metric",
    "protocol",
    "test_mean",
    "test_std",
    "valid_mean",
    "splits",
    "seeds",
    "family",
    "layers",
    "channels",
    "parameters",
    "step_peak_mib",
    "train_s",
    "purpose",
    "recipe_sha256",
    "version",
    "commit",
    "command",
)
# The curves of the picture: type of the model, "tied" where its layers share weights; label and color.
CURVES = {
    "rev": ("reversible", "#2a6f97"),
    "rev, tied": ("reversible, tied weights", "#6a994e"),
    "res": ("residual", "#e07a28"),
    "deq": ("equilibrium", "#b5476a"),
}
PUBLISHED = ("tuned GCN, published mean", 0.9786)
# Of a run, not of a model: runs that differ in nothing else stand in one row.
PER_RUN = ("data.split", "train.seed")
# The runs of each with fewer layers or iterations make one curve, which ends in the unchanged recipe.
DEEPEST = ("minesweeper_rev_1001", "minesweeper_rev_deq")
Run = dict[str, Any]


def planned() -> Iterator[tuple[str, list[str], str]]:
    """Each run of the plan: the name of its recipe, its overrides, and what it is for."""
    for entry in json.loads(PLAN.read_text(encoding="utf-8")):
        for seed in entry.get("seeds", [0]):
            for split in entry.get("splits", [0]):
                places = [f"data.split={split}"] + ([f"train.seed={seed}"] if seed else [])
                yield entry["recipe"], entry.get("set", []) + places, entry["purpose"]


def renew(limit: int | None) -> None:
    """Train the planned runs that are not there yet, at most ``limit`` of them."""
    done = {run["recipe_sha256"] for run in read_runs()}
    for name, overrides, purpose in planned():
        recipe = read_recipe(recipe_path(name), overrides)
        digest = recipe_digest(recipe)
        if digest in done or limit == 0:
            continue
        folder = ROOT / "runs" / "results" / f"{name}-{digest[:12]}"
        train(recipe, folder, resume=True, num_threads=1)
        collect(name, [folder], purpose, commit(), overrides)
        done.add(digest)
        limit = None if limit is None else limit - 1


def collect(name: str, folders: Sequence[Path], purpose: str, code: str, overrides: list[str] | None = None) -> None:
    """Add finished runs to runs.jsonl, once each.

    Args:
        name: the shipped recipe that they vary.
        folders: run directories.
        purpose: "model", "depth" or "selection".
        code: the commit that trained them.
        overrides: of the recipe; None: found by comparison.

    Raises:
        SystemExit: if a run is not finished, or no overrides make the recipe the one that was run.
    """
    runs = {run["recipe_sha256"]: run for run in read_runs()}
    for folder in folders:
        directory = RunDir(folder)
        recipe, results = directory.recipe(), directory.results()
        if results is None:
            raise SystemExit(f"{folder}: the run is not finished")
        sets = changes(name, recipe) if overrides is None else overrides
        digest = recipe_digest(recipe)
        if recipe_digest(read_recipe(recipe_path(name), sets)) != digest:
            raise SystemExit(f"{folder}: {name} with {sets} is another recipe")
        if digest in runs:
            continue
        protocol = str(test_protocol(recipe))
        figures = {figure.split: figure.value for figure in results.results if figure.protocol == protocol}
        runs[digest] = {
            "recipe": name,
            "set": sets,
            "purpose": purpose,
            "recipe_sha256": digest,
            "metric": recipe.eval.metric,
            "protocol": protocol,
            "valid": figures["valid"],
            "test": figures["test"],
            "best_epoch": results.best_epoch,
            "num_epochs": results.num_epochs,
            "num_parameters": results.num_parameters,
            "step_peak_bytes": step_peak_bytes(runs, name, sets, recipe, folder),
            "train_s": results.train_s,
            "data_sha256": results.data_sha256,
            "environment": results.environment.model_dump(),
            "commit": code,
        }
        print(f"{name} {' '.join(sets)}: valid {figures['valid']:.4f}, test {figures['test']:.4f}")
        lines = [json.dumps(run) for run in runs.values()]
        FOLDER.mkdir(exist_ok=True)
        RUNS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def changes(name: str, recipe: Recipe) -> list[str]:
    """The overrides that make a shipped recipe the given one."""
    shipped = read_recipe(recipe_path(name)).to_json()
    places = ("data", "model", "train", "eval", "test")
    wanted = recipe.to_json()
    return [text for place in places for text in _differences(place, shipped[place], wanted[place])]


def _differences(place: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    alike = isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type")
    # A key that must go, or a choice of another type, means that the whole object is written anew.
    if alike and set(old) <= set(new):
        for key, value in new.items():
            yield from _differences(f"{place}.{key}", old.get(key), value)
    else:
        yield f"{place}={new if isinstance(new, str) else json.dumps(new)}"


def step_peak_bytes(runs: dict[str, Run], name: str, sets: list[str], recipe: Recipe, folder: Path) -> int:
    """The most memory of a training step beyond parameters, gradients, optimizer and graph; one run tells for all."""
    for run in runs.values():
        if (run["recipe"], model_sets(run)) == (name, shared(sets)):
            return int(run["step_peak_bytes"])
    graph, split = recipe_graph(recipe)
    return measure_training(load(folder), recipe, graph, split, session.start("cpu", 1), num_steps=1).peak_bytes


def model_sets(run: Run) -> list[str]:
    """The overrides of a run without those that choose a split or a seed."""
    return shared(run["set"])


def shared(sets: Sequence[str]) -> list[str]:
    """Overrides without those that choose a split or a seed."""
    return [text for text in sets if not text.startswith(PER_RUN)]


def read_runs() -> list[Run]:
    """The lines of runs.jsonl."""
    lines = RUNS.read_text(encoding="utf-8").splitlines() if RUNS.exists() else []
    return [json.loads(line) for line in lines]


def rows() -> list[dict[str, Any]]:
    """The table: a row for all runs of one model."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in read_runs():
        key = (run["recipe"], *model_sets(run))
        groups[key].append(run)
    return [_row(runs) for _, runs in sorted(groups.items())]


def _row(runs: list[Run]) -> dict[str, Any]:
    first, sets = runs[0], model_sets(runs[0])
    recipe = read_recipe(recipe_path(first["recipe"]), sets)
    whole = [read_recipe(recipe_path(run["recipe"]), run["set"]) for run in runs]
    tests, valids = [run["test"] for run in runs], [run["valid"] for run in runs]
    command = " ".join(["revgnn-zoo train", first["recipe"], *(f"--set '{text}'" for text in sets)])
    return {
        "model": first["recipe"],
        "data": recipe.data.dataset,
        "metric": first["metric"],
        "protocol": first["protocol"],
        "test_mean": f"{statistics.fmean(tests):.4f}",
        "test_std": f"{statistics.stdev(tests):.4f}" if len(tests) > 1 else "",
        "valid_mean": f"{statistics.fmean(valids):.4f}",
        "splits": len({r.data.split for r in whole}),
        "seeds": len({r.train.seed for r in whole}),
        "family": recipe.model.type,
        "layers": recipe.model.num_layers,
        "channels": recipe.model.hidden_channels,
        "parameters": first["num_parameters"],
        "step_peak_mib": f"{first['step_peak_bytes'] / 2**20:.1f}",
        # The median, because a machine that was halted in the middle of a run counted the pause.
        "train_s": f"{statistics.median(run['train_s'] for run in runs):.0f}",
        "purpose": first["purpose"],
        "recipe_sha256": recipe_digest(recipe)[:12],
        "version": first["environment"]["zoo"],
        "commit": " ".join(sorted({run["commit"] for run in runs})),
        "command": command,
    }


def write_table() -> None:
    """Write results.csv, what cards say of it and, if there are runs for it, the picture of depth."""
    table = rows()
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        if row["purpose"] == "model":
            write_measured(card_path(row["model"]), row)
    of_depth = (run for run in read_runs() if run["recipe"] in DEEPEST)
    depth = [run for run in of_depth if run["purpose"] == "depth" or is_end_of_depth(run)]
    if depth:
        draw(depth)


def write_measured(card: Path, row: dict[str, Any]) -> None:
    """State in a model card what was measured here, in place of what it stated before."""
    runs = f"{_count(row['splits'], 'split')} and {_count(row['seeds'], 'seed')}"
    spread = f" ± {row['test_std']}, mean and standard deviation over {runs}" if row["test_std"] else f" on {runs}"
    text = (
        f"Measured here: test {row['metric']} {row['test_mean']}{spread}; valid {row['valid_mean']}. The line of\n"
        f"`{row['model']}` in `results/results.csv` says how.\n"
    )
    before, after = card.read_text(encoding="utf-8").split("\n## Use\n")
    before = before.partition("\nMeasured here: ")[0].rstrip("\n")
    card.write_text(f"{before}\n\n{text}\n## Use\n{after}", encoding="utf-8")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def commit() -> str:
    """The commit of this checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def is_end_of_depth(run: Run) -> bool:
    """Tell whether a run is the unchanged recipe whose depth other runs lower, on its first split."""
    return run["recipe"] in DEEPEST and run["set"] in ([], ["data.split=0"])


def draw(runs: list[Run]) -> None:
    """Draw test ROC-AUC and the memory of a training step over depth."""
    figure = Figure(figsize=(10.0, 4.8), layout="constrained")
    scores, memory = figure.subplots(1, 2)
    points: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    labels: dict[str, str] = {}
    for run in runs:
        recipe = read_recipe(recipe_path(run["recipe"]), run["set"])
        model = recipe.model
        name = f"{model.type}, tied" if getattr(model, "num_distinct_layers", None) else model.type
        points[name].append((model.num_layers, run["test"], run["step_peak_bytes"] / 2**20))
        labels[name] = f"{CURVES[name][0]}, {model.hidden_channels} channels, {recipe.train.num_epochs} epochs"
    for name, found in points.items():
        layers, tests, sizes = zip(*sorted(found), strict=True)
        style = {"marker": "o", "color": CURVES[name][1], "label": labels[name]}
        scores.plot(layers, tests, **style)
        memory.plot(layers, sizes, **style)
    text, height = PUBLISHED
    scores.axhline(height, color="#666666", linestyle=":", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    scores.annotate(text, (0.98, height), xytext=(0, 4), fontsize=8, **place)
    scores.set(ylabel="test ROC-AUC", title="minesweeper, split 0")
    handles, names = scores.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=2)
    memory.set(ylabel="MiB", title="memory of a training step", ylim=(0, None))
    for axes in (scores, memory):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("convolutions, one after another")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    renewing = commands.add_parser("renew")
    renewing.add_argument("--limit", type=int, help="train at most so many runs")
    collecting = commands.add_parser("collect")
    collecting.add_argument("recipe")
    collecting.add_argument("folders", type=Path, nargs="+")
    collecting.add_argument("--purpose", choices=("model", "depth", "selection"), default="model")
    collecting.add_argument("--commit", default=commit())
    commands.add_parser("table")
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except ZooError as error:
        raise SystemExit(str(error)) from error


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "collect":
        collect(arguments.recipe, arguments.folders, arguments.purpose, arguments.commit)
    elif arguments.command == "renew":
        renew(arguments.limit)
    write_table()
    tables.write()


if __name__ == "__main__":
    main()
