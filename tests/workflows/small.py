"""A graph and a recipe small enough to train within a second."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from zoo.spec.recipe import Recipe, parse_recipe

NUM_NODES = 90
LOSS_AND_METRIC = {
    "multiclass": ("cross_entropy", "accuracy"),
    "binary": ("bce_with_logits", "rocauc"),
    "multilabel": ("bce_with_logits", "rocauc"),
    "regression": ("mse", "mae"),
}


def write_graph(path: Path, *, task: str = "multiclass", **replaced: Any) -> Path:
    """A file of three groups of nodes, linked mostly within each, with features that hint at the group."""
    rng = np.random.RandomState(0)
    group = np.arange(NUM_NODES) % 3
    source, target = rng.randint(NUM_NODES, size=(2, 1200))
    keep = (source < target) & ((group[source] == group[target]) | (rng.rand(1200) < 0.1))
    edge_index = np.unique(np.stack([source, target])[:, keep], axis=1)
    x = rng.randn(NUM_NODES, 6).astype(np.float32)
    x[np.arange(NUM_NODES), group] += 2.5
    labels = {
        "multiclass": group.astype(np.int64),
        "binary": (group == 0).astype(np.int64),
        "multilabel": np.stack([group == 0, group != 1], 1).astype(np.float32),
        "regression": (3.0 * group - 1 + 0.1 * rng.randn(NUM_NODES)).astype(np.float32),
    }
    order = rng.permutation(NUM_NODES)
    masks = {}
    for name, nodes in zip(("train_mask", "valid_mask", "test_mask"), np.split(order, [40, 65]), strict=True):
        masks[name] = np.isin(np.arange(NUM_NODES), nodes)
    arrays = {
        "edge_index": edge_index,
        "x": x,
        "edge_attr": rng.rand(edge_index.shape[1], 3).astype(np.float32),
        "y": labels[task],
        "task": np.array(task),
        **masks,
        **replaced,
    }
    np.savez(path, **arrays)
    return path


def recipe_data(graph: Path, *, task: str = "multiclass") -> dict[str, Any]:
    """The recipe as JSON data: 2 layers, 2 random parts, 4 epochs."""
    loss, metric = LOSS_AND_METRIC[task]
    return {
        "schema_version": 2,
        "name": "small",
        "summary": "A recipe for tests.",
        "data": {"dataset": "file", "path": str(graph)},
        "model": {
            "type": "rev",
            "num_layers": 2,
            "hidden_channels": 8,
            "dropout": 0.1,
            "conv": {"type": "gen", "aggr": {"type": "max"}, "edge_encoder": "per_layer"},
        },
        "train": {
            "num_epochs": 4,
            "loss": loss,
            "optimizer": {"type": "adam", "lr": 0.01},
            "partition": {"type": "random", "num_parts": 2},
            "max_grad_norm": 1.0,
        },
        "eval": {
            "metric": metric,
            "num_views": 2,
            "partition": {"type": "random", "num_parts": 2},
        },
        "test": {"num_views": 3, "partition": {"type": "random", "num_parts": 2}},
    }


def changed(data: dict[str, Any], /, **places: Any) -> dict[str, Any]:
    """A copy with some keys replaced; ``train__num_epochs=2`` means ``train.num_epochs``."""
    result = copy.deepcopy(data)
    for place, value in places.items():
        *keys, last = place.split("__")
        node = result
        for key in keys:
            node = node[key]
        node[last] = value
    return result


def small_recipe(folder: Path, *, task: str = "multiclass", **places: Any) -> Recipe:
    """The recipe, its graph written to ``folder``."""
    graph = folder / f"{task}.npz"
    if not graph.exists():
        write_graph(graph, task=task)
    return parse_recipe(changed(recipe_data(graph, task=task), **places), where="small")


def write_recipe(folder: Path, **places: Any) -> Path:
    """The recipe as a file, its graph beside it."""
    graph = folder / "multiclass.npz"
    if not graph.exists():
        write_graph(graph)
    path = folder / "small.json"
    path.write_text(json.dumps(changed(recipe_data(graph), **places)), encoding="utf-8")
    return path
