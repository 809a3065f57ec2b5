"""Builds a model from what a recipe says of it and what the graph says of its shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from zoo.errors import RecipeError
from zoo.layers.block import Block
from zoo.layers.conv import GATConv, GCNConv, GENConv, RevGATConv, SAGEConv
from zoo.layers.reversible import ReversibleStack
from zoo.models.gnn import GNN
from zoo.models.revgat import RevGAT
from zoo.spec.model import (
    GATConvSpec,
    GCNConvSpec,
    GenConvSpec,
    Model,
    Norm,
    RevGATSpec,
    RevSpec,
    SAGEConvSpec,
)
from zoo.spec.recipe import GraphShape
from zoo.spec.size import MAX_PARAMETERS, count_parameters


def build_model(spec: Model, shape: GraphShape) -> nn.Module:
    """The model that ``spec`` describes, for graphs of ``shape``; in training mode, freshly initialised.

    Initial weights come from torch's global random number generator. As in the authors' code the groups of a
    reversible layer start as copies of one block.

    Raises:
        RecipeError: if spec and shape do not fit together, or the model would be absurdly large.
    """
    count = count_parameters(spec, shape)
    if count > MAX_PARAMETERS:
        raise RecipeError(f"the model would have {count:,} parameters; at most {MAX_PARAMETERS:,} are built")
    return BUILDERS[type(spec)](spec, shape)


def _rev(spec: RevSpec, shape: GraphShape) -> GNN:
    channels = spec.hidden_channels // spec.num_groups
    sliced = isinstance(spec.conv, GenConvSpec) and spec.conv.edge_encoder == "shared"

    def layer() -> list[nn.Module]:
        return _copies(Block(channels, _conv(spec.conv, channels, spec), norm=spec.norm), spec.num_groups)

    stack = ReversibleStack([layer() for _ in range(spec.num_layers)], slice_edges=sliced, reversible=spec.reversible)
    return GNN(
        in_channels=shape.num_node_features,
        num_categories=shape.num_node_categories,
        edge_channels=_edge_channels(spec.conv, shape),
        hidden_channels=spec.hidden_channels,
        out_channels=shape.num_tasks,
        stack=stack,
        norm=spec.norm,
        dropout=spec.dropout,
    )


def _rev_gat(spec: RevGATSpec, shape: GraphShape) -> RevGAT:
    width = spec.num_heads * spec.hidden_channels
    channels = width // spec.num_groups
    options: dict[str, bool] = {"attend_target": spec.attend_target, "symmetric_norm": spec.symmetric_norm}

    def layer() -> list[nn.Module]:
        conv = RevGATConv(channels, spec.hidden_channels // spec.num_groups, num_heads=spec.num_heads, **options)
        return _copies(Block(channels, conv, norm=spec.norm), spec.num_groups)

    return RevGAT(
        hidden_channels=spec.hidden_channels,
        out_channels=shape.num_tasks,
        num_heads=spec.num_heads,
        num_layers=spec.num_layers,
        first=RevGATConv(shape.num_node_features, spec.hidden_channels, num_heads=spec.num_heads, **options),
        stack=ReversibleStack([layer() for _ in range(spec.num_layers - 2)], reversible=spec.reversible),
        last=RevGATConv(width, shape.num_tasks, num_heads=1, **options),
        norm=spec.norm,
        dropout=spec.dropout,
        input_dropout=spec.input_dropout,
        edge_dropout=spec.edge_dropout,
    )


def _copies(block: nn.Module, num_groups: int) -> list[nn.Module]:
    return [block, *(copy.deepcopy(block) for _ in range(num_groups - 1))]


def _edge_channels(conv: Any, shape: GraphShape) -> int:
    if not isinstance(conv, GenConvSpec) or conv.edge_encoder == "none":
        return 0
    if not shape.num_edge_features:
        raise RecipeError(
            f"model.conv.edge_encoder is {conv.edge_encoder!r}, but the graph has no edge features; expected 'none'"
        )
    return shape.num_edge_features


def _conv(spec: Any, channels: int, model: RevSpec) -> nn.Module:
    return CONVS[type(spec)](spec, channels, model.hidden_channels, model.norm)


def _gen(spec: GenConvSpec, channels: int, edge_channels: int, norm: Norm) -> GENConv:
    aggr = spec.aggr.model_dump()
    return GENConv(
        channels,
        aggr=aggr.pop("type"),
        **aggr,
        edge_channels=edge_channels if spec.edge_encoder == "per_layer" else None,
        num_mlp_layers=spec.num_mlp_layers,
        norm=norm,
        message_norm=spec.message_norm,
        learn_message_scale=spec.learn_message_scale,
    )


CONVS: dict[type, Callable[..., nn.Module]] = {
    GenConvSpec: _gen,
    GCNConvSpec: lambda spec, channels, edge_channels, norm: GCNConv(channels),
    SAGEConvSpec: lambda spec, channels, edge_channels, norm: SAGEConv(channels),
    GATConvSpec: lambda spec, channels, edge_channels, norm: GATConv(channels, num_heads=spec.num_heads),
}

BUILDERS: dict[type, Callable[..., nn.Module]] = {RevSpec: _rev, RevGATSpec: _rev_gat}
