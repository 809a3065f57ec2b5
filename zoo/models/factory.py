"""Builds a model from what a recipe says of it and what the graph says of its shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from zoo.errors import RecipeError
from zoo.layers.block import Block
from zoo.layers.conv import GATConv, GCNConv, GENConv, RevGATConv, SAGEConv
from zoo.layers.equilibrium import EquilibriumLayer, FixedPoint, Phantom, Reversible
from zoo.layers.equilibrium_block import EquilibriumBlock
from zoo.layers.residual import ResidualLayer, ResidualStack
from zoo.layers.reversible import ReversibleStack
from zoo.models.gnn import GNN
from zoo.models.revgat import RevGAT
from zoo.spec.model import (
    Backward,
    Conv,
    DeqSpec,
    GATConvSpec,
    GCNConvSpec,
    GenConvSpec,
    Model,
    Norm,
    PhantomBackward,
    ResSpec,
    ReversibleSolver,
    RevGATSpec,
    RevSpec,
    SAGEConvSpec,
    Solver,
)
from zoo.spec.shape import GraphShape
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
        conv = _conv(spec.conv, channels, spec.hidden_channels, spec.norm)
        return _copies(Block(channels, conv, norm=spec.norm), spec.num_groups)

    stack = ReversibleStack(
        [layer() for _ in range(spec.num_distinct_layers or spec.num_layers)],
        num_steps=spec.num_layers,
        slice_edges=sliced,
        reversible=spec.reversible,
    )
    return _gnn(spec, shape, stack, norm=spec.norm)


def _res(spec: ResSpec, shape: GraphShape) -> GNN:
    channels = spec.hidden_channels

    def layer() -> ResidualLayer:
        conv = _conv(spec.conv, channels, channels, spec.norm)
        return ResidualLayer(channels, conv, norm=spec.norm, dropout=spec.dropout)

    layers = [layer() for _ in range(spec.num_distinct_layers or spec.num_layers)]
    stack = ResidualStack(layers, num_steps=spec.num_layers, checkpoint=spec.checkpoint)
    return _gnn(spec, shape, stack, norm=None, shared_dropout=False)


def _deq(spec: DeqSpec, shape: GraphShape) -> GNN:
    channels = spec.hidden_channels
    convs = [_conv(spec.conv, channels, channels, "layer") for _ in range(2)]
    layer = EquilibriumLayer(
        EquilibriumBlock(channels, convs, weight_norm=spec.weight_norm),
        num_warmup_epochs=spec.num_warmup_epochs,
        num_warmup_steps=spec.num_warmup_steps,
        **_solvers(spec.solver),
    )
    return _gnn(spec, shape, layer, norm=None)


def _solvers(spec: Solver) -> dict[str, Any]:
    if isinstance(spec, ReversibleSolver):
        return {"solver": Reversible(**spec.model_dump(exclude={"type"}))}
    return {"solver": _fixed_point(spec), "backward": _backward(spec.backward)}


def _backward(spec: Backward) -> FixedPoint | Phantom:
    return Phantom(**spec.model_dump(exclude={"type"})) if isinstance(spec, PhantomBackward) else _fixed_point(spec)


def _fixed_point(spec: Any) -> FixedPoint:
    return FixedPoint(method=spec.type, **spec.model_dump(exclude={"type", "backward"}))


def _gnn(
    spec: RevSpec | ResSpec | DeqSpec,
    shape: GraphShape,
    stack: nn.Module,
    *,
    norm: Norm | None,
    shared_dropout: bool = True,
) -> GNN:
    return GNN(
        in_channels=shape.num_node_features,
        num_categories=shape.num_node_categories,
        edge_channels=_edge_channels(spec.conv, shape),
        hidden_channels=spec.hidden_channels,
        out_channels=shape.num_tasks,
        stack=stack,
        norm=norm,
        dropout=spec.dropout,
        shared_dropout=shared_dropout,
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


def _conv(spec: Conv, channels: int, edge_channels: int, norm: Norm) -> nn.Module:
    return CONVS[type(spec)](spec, channels, edge_channels, norm)


def _gen(spec: GenConvSpec, channels: int, edge_channels: int, norm: Norm) -> GENConv:
    aggr = spec.aggr.model_dump()
    return GENConv(
        channels,
        aggr=aggr.pop("type"),
        **aggr,
        embedding_channels=edge_channels if spec.edge_encoder == "per_layer" else None,
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

BUILDERS: dict[type, Callable[..., nn.Module]] = {RevSpec: _rev, ResSpec: _res, DeqSpec: _deq, RevGATSpec: _rev_gat}
