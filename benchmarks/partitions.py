"""Random parts beside parts of METIS clusters: the edges they keep, and what a model makes of them.

    python -m benchmarks.partitions

Trained models that come with the package are evaluated in parts, and a recipe is trained in parts. It needs the data
sets (ZOO_DATA) and the extra ``metis``, and writes benchmarks/results/partitions.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.data.graph import Graph, Split
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows import session
from zoo.workflows.create import info_of
from zoo.workflows.evaluate import Logits, Protocol, measure, predict, views
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.train import train

RESULTS = Path(__file__).parent / "results" / "partitions.json"
CPU = torch.device("cpu")
SEEDS, NUM_PARTS = (0, 1, 2), 10
PARTITIONS: dict[str, dict[str, Any]] = {
    "random": {"type": "random", "num_parts": NUM_PARTS},
    "metis": {"type": "metis", "num_parts": NUM_PARTS, "num_clusters": 10 * NUM_PARTS},
}
MODELS = ("amazon_photo", "cora", "squirrel_filtered")
TRAINED, NUM_EPOCHS = "cora", 20


def share_inside(graph: Graph, protocol: Protocol) -> float:
    """The share of a graph's edges that have both ends in a part."""
    inside = sum(parts.build(index).csr.num_edges for parts, index in views(graph, protocol))
    return inside / (graph.num_edges * (2 if graph.undirected else 1))


def mean(values: list[float]) -> float:
    """The mean, as it is written down."""
    return round(statistics.fmean(values), 4)


def evaluated(name: str) -> Iterator[dict[str, Any]]:
    """A trained model on the whole graph, and in parts of some partitions."""
    model = zoo.load(name)
    recipe = info_of(model).recipe
    graph, split = recipe_graph(recipe)
    whole = scores(model, graph, split, Protocol(1, 1, 0, "test"))
    yield {"model": name, "partition": "full", "kept_edges": 1.0, **whole}
    for partition, spec in PARTITIONS.items():
        protocols = [Protocol(1, NUM_PARTS, seed, "test", spec.get("num_clusters", 0)) for seed in SEEDS]
        found = [scores(model, graph, split, protocol) for protocol in protocols]
        kept = mean([share_inside(graph, protocol) for protocol in protocols])
        means = {key: mean([one[key] for one in found]) for key in found[0]}
        yield {"model": name, "partition": partition, "kept_edges": kept, **means}


def scores(model: torch.nn.Module, graph: Graph, split: Split, protocol: Protocol) -> Mapping[str, float]:
    """The metric on valid and test nodes."""
    nodes = split.nodes("valid", "test")
    rows = predict(model, graph, protocol, device=CPU, precision="fp32", nodes=nodes)
    metric = info_of(model).recipe.metric
    figures = measure(graph, split, metric, Logits(nodes, rows), protocol, ("valid", "test"))
    return {figure.split: round(figure.value, 4) for figure in figures}


def trained(name: str, partition: str) -> dict[str, Any]:
    """A recipe trained, validated and tested in parts of a partition, with several seeds."""
    found: dict[str, list[float]] = {"valid": [], "test": []}
    places = [f"{key}.partition={json.dumps(PARTITIONS[partition])}" for key in ("train", "eval", "test")]
    for seed in SEEDS:
        recipe = read_recipe(
            recipe_path(name), [*places, f"train.num_epochs={NUM_EPOCHS}", f"train.seed={seed}", "train.patience=0"]
        )
        with tempfile.TemporaryDirectory() as folder:
            results = train(recipe, Path(folder) / "run", device="cpu", num_threads=1, quiet=True).results
        for figure in results:
            if figure.split in found:
                found[figure.split].append(figure.value)
    return {"recipe": name, "partition": partition, **{key: mean(values) for key, values in found.items()}}


def main() -> None:
    """Measure both and write the results down."""
    torch.set_num_threads(1)
    rows = []
    for name in MODELS:
        for row in evaluated(name):
            print(row, flush=True)
            rows.append(row)
    runs = [trained(TRAINED, partition) for partition in PARTITIONS]
    print(*runs, sep="\n")
    facts = {"partitions": PARTITIONS, "seeds": SEEDS, "num_epochs": NUM_EPOCHS}
    environment = session.environment(CPU).model_dump()
    RESULTS.write_text(
        json.dumps({"environment": environment, **facts, "evaluated": rows, "trained": runs}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
