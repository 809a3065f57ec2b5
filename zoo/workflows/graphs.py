"""The graph that a recipe asks for, with the features it asks for, checked against the rest of the recipe."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zoo.data.arrays import save_graph
from zoo.data.datasets import DATASETS, load_graph
from zoo.data.download import data_root
from zoo.data.features import build_features
from zoo.data.graph import EDGE_CHUNK, Graph, Split, with_self_loops
from zoo.data.metrics import check_metric, metrics_of
from zoo.data.ogb import OGB
from zoo.data.pyg import graph_from_pyg
from zoo.errors import DataError, RecipeError, RunError, ZooWarning
from zoo.spec.base import DATA_NAME_PATTERN, parse_spec
from zoo.spec.overrides import override
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.train import METRIC_FACTS
from zoo.workflows.objective import LOSSES, losses_of
from zoo.workflows.options import EdgePrecision
from zoo.workflows.run_dir import GRAPH_FILE, RunDir

# A graph is kept on the GPU if it takes no more than this share of the free memory.
_GPU_SHARE = 0.25
# A random part keeps 1 / P of a node's edges: a small graph is better left whole.
_MIN_PART_NODES = 1000


def complete_recipe(recipe: Recipe, graph: Graph | None = None) -> tuple[Recipe, Graph | None]:
    """Write into a recipe what it leaves to its graph; return both, the graph as given or as loaded for that.

    Loss and metric, where left out, are the usual ones of the labels. A graph of the user's own may lack what the
    recipe
    reads: without node features the degree stands in, without edge features the model reads none. A warning says so.

    Raises:
        DataError: if the data are missing or damaged.
        RecipeError: if the recipe does not fit the labels.
    """
    known = DATASETS.get(recipe.data.dataset)
    if graph is None and (known is None or known.task is None):
        graph = _load(recipe)
    # The task of a named data set is known without its files; only a user's graph has to be loaded for it.
    task = graph.task if graph is not None else known.task if known is not None else None
    changes: dict[str, Any] = {}
    if recipe.train.loss is None and task is not None:
        changes["train.loss"] = losses_of(task)[0]
    if recipe.eval.metric is None and task is not None:
        changes["eval.metric"] = metrics_of(task)[0]
    if known is None and graph is not None:
        if graph.x is None and recipe.data.node_features == ("node",):
            changes["data.node_features"] = ["degree"]
            warnings.warn(f"{graph.name}: has no node features; the model reads the degree", ZooWarning, stacklevel=3)
        reads = recipe.model.reads_edges and "edge_encoder" in recipe.to_json()["model"].get("conv", {})
        if graph.edge_attr is None and reads:
            changes["model.conv.edge_encoder"] = "none"
            warnings.warn(f"{graph.name}: has no edge features; the model reads none", ZooWarning, stacklevel=3)
        if graph.edge_weight is not None and not recipe.model.reads_edge_weight:
            warnings.warn(f"{graph.name}: has edge weights; the model reads none", ZooWarning, stacklevel=3)
    if not changes:
        return recipe, graph
    assignments = [f"{place}={json.dumps(value)}" for place, value in changes.items()]
    return parse_spec(Recipe, override(recipe.to_json(), assignments), where=recipe.name), graph


def _load(recipe: Recipe) -> Graph:
    path = _data_path(recipe.data.path) if recipe.data.path else None
    data = recipe.data
    return load_graph(data.dataset, path=path, undirected=data.undirected, generated=data.generated)


def recipe_graph(recipe: Recipe, graph: Graph | None = None) -> tuple[Graph, Split]:
    """Load the graph of a recipe, if it is not given, and build its node features.

    What does not fit the data set is refused before the data are loaded, where the data set is known.

    Returns:
        The graph with node features, and the split that the recipe names.

    Raises:
        DataError: if the data are missing or damaged.
        RecipeError: if the recipe does not fit the data.
    """
    known = DATASETS.get(recipe.data.dataset)
    if known is not None and known.task is not None:
        _check_task(recipe, known.task)
    graph = _load(recipe) if graph is None else graph
    _check_task(recipe, graph.task)
    if recipe.data.split >= len(graph.splits):
        count = f"{len(graph.splits)} split{'' if len(graph.splits) == 1 else 's'}"
        raise RecipeError(f"data.split: {recipe.data.split} is too large; {graph.name} has {count}")
    for key, spec in (("train", recipe.train), ("eval", recipe.eval), ("test", recipe.test)):
        for name in ("part", "cluster"):
            if (count := getattr(spec.partition, f"num_{name}s")) > graph.num_nodes:
                raise RecipeError(
                    f"{key}.partition.num_{name}s: {count:,} {name}s of {graph.num_nodes:,} nodes; "
                    f"there must be at least a node for each {name}"
                )
    graph = prepare_graph(recipe, graph)
    return graph, graph.splits[recipe.data.split]


def prepare_graph(recipe: Recipe, graph: Graph) -> Graph:
    """Give a graph the node features and the self-loops that a recipe asks for.

    Raises:
        DataError: if the graph lacks what a feature is built from.
    """
    return as_read(recipe, build_features(graph, recipe.data.node_features))


def as_read(recipe: Recipe, graph: Graph) -> Graph:
    """A graph that has its node features, without what a recipe's model does not read, and with its self-loops."""
    if not recipe.model.reads_edges:
        # Drop unused edge features so that parts need not gather them.
        graph = replace(graph, edge_attr=None)
    if not recipe.model.reads_edge_weight:
        graph = replace(graph, edge_weight=None)
    if recipe.data.self_loops and not graph.self_loops:
        graph = with_self_loops(graph)
    return graph


def as_graph(data: object) -> Graph:
    """The graph of a PyG ``Data`` object, or a graph as it is; a DataError if it is neither, or lacks something."""
    if isinstance(data, Graph):
        return data
    if not hasattr(data, "edge_index"):
        raise DataError(f"data: expected a zoo.Graph or a torch_geometric.data.Data, got {type(data).__name__}")
    return graph_from_pyg(data)


def adapt_recipe(recipe: Recipe, graph: Graph, path: str) -> Recipe:
    """The recipe for a user's graph, in a file ``path``: its model, optimizer and epochs, on other data.

    Loss and metric stay where they fit the labels; label reuse and distillation need classes. Parts get at least 1,000
    nodes each. What the graph lacks is completed as in :func:`complete_recipe`.
    """
    changes: dict[str, Any] = {"data.dataset": "file", "data.path": path}
    # "data" is the name of a graph to which nobody gave one.
    if graph.name != "data" and re.fullmatch(DATA_NAME_PATTERN, graph.name):
        changes["data.name"] = graph.name
    # A new data set removes the keys that describe the old one; those that fit the new one are set again.
    if recipe.data.split < len(graph.splits):
        changes["data.split"] = recipe.data.split
    if (graph.task, recipe.train.loss) in LOSSES:
        changes["train.loss"] = recipe.train.loss
    if recipe.eval.metric is not None and graph.task in METRIC_FACTS[recipe.eval.metric].tasks:
        changes["eval.metric"] = recipe.eval.metric
    if graph.task != "multiclass":
        changes |= {"train.label_reuse": None, "train.distillation": None}
    for key, spec in (("train", recipe.train), ("eval", recipe.eval), ("test", recipe.test)):
        if spec.partition.type != "full":
            before = spec.partition
            num_parts = min(before.num_parts, graph.num_nodes // _MIN_PART_NODES)
            fewer = {"num_parts": num_parts}
            if before.num_clusters:
                fewer["num_clusters"] = before.num_clusters * num_parts // before.num_parts
            changes[f"{key}.partition"] = before.model_dump() | fewer if num_parts > 1 else {"type": "full"}
    return complete_recipe(read_recipe(recipe, changes), graph)[0]


def kept_graph(graph: Graph, run: RunDir, *, is_new: bool) -> Graph:
    """The graph of a run directory, which is written there when the run begins.

    It is read back from its file, so that resuming and evaluating the run see the very same graph.

    Raises:
        RunError: if the run began on another graph.
        DataError: if the graph cannot be written.
    """
    path = run.path / GRAPH_FILE
    if is_new:
        save_graph(graph, path)
    kept = load_graph("file", path=path)
    if graph_digest(kept, kept.splits[0]) != graph_digest(graph, graph.splits[0]):
        raise RunError(f"{run.path}: the run began on other data; start again in another folder")
    return kept


def is_synthetic(recipe: Recipe, graph: Graph) -> bool:
    """True if a graph only stands in for the OGB data set that the recipe names, so that no figure counts for that."""
    known = OGB.get(recipe.data.dataset)
    if known is None:
        return False
    return graph.num_nodes != known.num_nodes or (data_root() / known.folder / "SYNTHETIC.txt").exists()


def place_graph(graph: Graph, device: torch.device, edge_precision: EdgePrecision = "fp32") -> Graph:
    """Move a graph to the GPU if it is small beside the free memory; else its parts are moved one by one.

    On the CPU the graph stays as it is. With "fp16" edge features take half the memory; kernels read them as they are.
    """
    if device.type != "cuda":
        return graph
    # Cast first, so that the bytes below are those that would be moved.
    if edge_precision == "fp16" and graph.edge_attr is not None:
        graph = replace(graph, edge_attr=graph.edge_attr.half())
    tensors = graph.edge_index, graph.x, graph.edge_attr, graph.edge_weight
    num_bytes = sum(t.numel() * t.element_size() for t in tensors if t is not None)
    return graph.to(device) if num_bytes <= _GPU_SHARE * torch.cuda.mem_get_info(device)[0] else graph


def graph_digest(graph: Graph, split: Split) -> str:
    """SHA-256 over everything that a run reads of a graph, so that a resumed run is known to see the same data."""
    digest = hashlib.sha256()
    edges, nodes = (graph.edge_index.t(), graph.edge_attr, graph.edge_weight), (graph.x, graph.y)
    for tensor in (*edges, *nodes, split.train, split.valid, split.test):
        if tensor is not None:
            # Without type and shape, different tensors of the same bytes would have the same digest.
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
            for rows in torch.split(tensor, EDGE_CHUNK):
                values: Any = rows.cpu().contiguous().view(-1).numpy()
                digest.update(memoryview(values).cast("B"))
    if graph.self_loops:
        digest.update(b"self_loops;")
    return digest.hexdigest()


def _check_task(recipe: Recipe, task: str) -> None:
    if recipe.train.loss is not None and (task, recipe.train.loss) not in LOSSES:
        expected = " or ".join(repr(loss) for loss in losses_of(task))
        raise RecipeError(f"train.loss: {recipe.train.loss!r} does not fit a {task} task; expected {expected}")
    try:
        if recipe.eval.metric is not None:
            check_metric(task, recipe.eval.metric)
    except DataError as error:
        raise RecipeError(f"eval.metric: {error}") from error


def _data_path(text: str) -> Path:
    """A relative path means a file in the current folder or, if there is none, in the folder of all data."""
    path = Path(text).expanduser()
    places = [path] if path.is_absolute() else [path, data_root() / path]
    for place in places:
        if place.exists():
            return place
    tried = " nor ".join(str(place) for place in places)
    raise DataError(
        f"data.path: no such file or folder: {tried}; say where it is by --data (eval), --set data.path=... (train) "
        "or ZOO_DATA"
    )
