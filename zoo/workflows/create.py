"""Create an untrained model by name, for your own graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from zoo.errors import ZooError
from zoo.models.factory import build_model
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.results import Measured
from zoo.spec.shape import GraphShape, input_shape
from zoo.workflows.graphs import adapt_recipe, as_graph, prepare_graph
from zoo.workflows.run_dir import GRAPH_FILE


@dataclass(frozen=True)
class ZooInfo:
    """Facts about a model of the zoo, its attribute ``zoo_info``.

    Attributes:
        recipe: the whole recipe.
        shape: of the graphs it was made for.
        folder: where it was loaded from; None if it was not.
        sha256: of its weights file; empty if there is none.
        results: what its bundle records of these weights.
        repo_id: ``owner/name`` on the Hub; empty if it did not come from there.
        revision: that was asked for.
        commit: what the revision meant.
    """

    recipe: Recipe
    shape: GraphShape
    folder: Path | None = None
    sha256: str = ""
    results: tuple[Measured, ...] = ()
    repo_id: str = ""
    revision: str = ""
    commit: str = ""


def set_info(model: nn.Module, info: ZooInfo) -> nn.Module:
    """Store facts about a model with it; copies of the model keep them."""
    # Past nn.Module's own __setattr__, as this is neither a parameter nor a submodule.
    model.__dict__["zoo_info"] = info
    return model


def info_of(model: nn.Module) -> ZooInfo:
    """Facts stored with a model, which may be wrapped in others; a ZooError if the zoo did not make it."""
    info = unwrapped(model).__dict__.get("zoo_info") if isinstance(model, nn.Module) else None
    if not isinstance(info, ZooInfo):
        raise ZooError(
            f"{type(model).__name__}: not a model of the zoo: it has no zoo_info; make it with zoo.create_model or "
            "zoo.load, and pass the model itself"
        )
    return info


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrappers, each of which holds it under one of two names."""
    while "zoo_info" not in model.__dict__:
        inner = [part for name, part in model.named_children() if name in ("module", "_orig_mod")]
        if len(inner) != 1:
            break
        model = inner[0]
    return model


def create_model(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe, data: object, **overrides: Any
) -> nn.Module:
    """Create a recipe's model for a graph, untrained, in training mode.

    The recipe is adapted to a graph that is given, as in ``zoo.train``: without edge features none are encoded.
    The initial weights come from PyTorch's global random number generator.

    >>> import zoo
    >>> model = zoo.create_model("rev_deep", zoo.GraphShape(num_node_features=16, num_edge_features=8, num_tasks=3),
    ...     num_layers=4, hidden_channels=32)
    >>> model.zoo_info.recipe.model.num_layers
    4

    Args:
        recipe: the name of a shipped recipe, a JSON file, or a recipe.
        data: a ``torch_geometric.data.Data`` or a ``zoo.Graph`` with node features, whose widths the model gets, or
            these widths as a ``zoo.GraphShape``. Under label reuse the model reads T more columns than these.
        overrides: values of the model, such as ``num_layers=64``; a dotted key, such as ``**{"train.seed": 1}``, is one
            of the whole recipe.

    Returns:
        The model; its attribute ``zoo_info`` is a :class:`ZooInfo`, so that ``zoo.save`` can write a bundle of it.

    Raises:
        ZooError: if there is no such recipe, or it does not fit the overrides or the data.
    """
    chosen = read_recipe(recipe, {key if "." in key else f"model.{key}": value for key, value in overrides.items()})
    if isinstance(data, GraphShape):
        shape = data
    else:
        graph = as_graph(data)
        chosen = adapt_recipe(chosen, graph, GRAPH_FILE)
        # Existing node features are taken as they are; only missing ones have to be built to know their width.
        shape = (prepare_graph(chosen, graph) if graph.x is None else replace(graph, num_categories=0)).shape
    if not chosen.model.reads_edges:
        shape = shape.model_copy(update={"num_edge_features": 0})
    shape = input_shape(chosen, shape)
    return set_info(build_model(chosen.model, shape), ZooInfo(chosen, shape))
