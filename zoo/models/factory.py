"""Builds a model from the specification in a recipe and the shape of a graph."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from zoo.errors import RecipeError
from zoo.layers.block import Block, EquilibriumBlock, PostNormBlock
from zoo.layers.conv import CONVS, GCNIILayer, RevGATConv
from zoo.layers.equilibrium import EquilibriumLayer, FixedPoint, Phantom, Reversible
from zoo.layers.oscillator import OscillatorStack
from zoo.layers.residual import LayerStack, ResidualStack
from zoo.layers.reversible import ReversibleStack
from zoo.models.gnn import GNN
from zoo.models.revgat import RevGAT
from zoo.spec.conv import Conv, Norm
from zoo.spec.model import (
    MAX_PARAMETERS,
    Backward,
    DeqSpec,
    GCNIISpec,
    Model,
    OscillatorSpec,
    PhantomSpec,
    ResSpec,
    ReversibleSolver,
    RevGATSpec,
    RevSpec,
    Solver,
)
from zoo.spec.plugins import Table, find_plugin
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shape import GraphShape

_Encoded = RevSpec | ResSpec | DeqSpec | OscillatorSpec | GCNIISpec


def build_model(spec: Model | Recipe | str, shape: GraphShape) -> nn.Module:
    """The model that ``spec`` describes, for graphs of ``shape``; in training mode, freshly initialized.

    Initial weights come from torch's global random number generator. As in the authors' code the groups of a
    reversible layer start as copies of one block.

    >>> import zoo
    >>> model = zoo.build_model("small_rev", zoo.GraphShape(num_node_features=16, num_edge_features=8, num_tasks=3))

    Args:
        spec: the ``model`` of a recipe, a recipe, or what ``read_recipe`` makes one of.
        shape: sizes of the inputs and outputs.

    Raises:
        RecipeError: if spec and shape do not fit together, or the model would be absurdly large.
    """
    if isinstance(spec, Recipe | str):
        spec = read_recipe(spec).model
    # Counted by arithmetic first: a hostile or mistyped recipe must not fill the memory before it is refused.
    count = spec.num_parameters(shape)
    if count > MAX_PARAMETERS:
        raise RecipeError(f"the model would have {count:,} parameters; at most {MAX_PARAMETERS:,} are built")
    return BUILDERS[spec.type](spec, shape)


def _rev(spec: RevSpec, shape: GraphShape) -> GNN:
    channels = spec.group_channels
    scale = spec.num_layers**-0.5 if spec.scale_by_depth else 1.0
    # Every group projects the edge embeddings of the whole width to its own channels.
    convs = (_conv(spec.conv, channels, spec.hidden_channels, spec.norm) for _ in range(spec.num_built_layers))
    stack = ReversibleStack(
        [_copies(Block(channels, conv, norm=spec.norm, scale=scale), spec.num_groups) for conv in convs],
        num_steps=spec.num_layers,
        slice_edges=spec.conv.slices_edges,
        reversible=spec.reversible,
    )
    return _gnn(spec, shape, stack, norm=spec.norm)


def _oscillator(spec: OscillatorSpec, shape: GraphShape) -> GNN:
    half = spec.hidden_channels // 2
    convs = (_conv(spec.conv, half, spec.hidden_channels, spec.norm) for _ in range(spec.num_built_layers))
    stack = OscillatorStack(
        [Block(half, conv, norm=spec.norm) for conv in convs],
        num_steps=spec.num_layers,
        step_size=spec.step_size,
        damping=spec.damping,
        stiffness=spec.stiffness,
        slice_edges=spec.conv.slices_edges,
    )
    return _gnn(spec, shape, stack, norm=spec.norm)


def _res(spec: ResSpec, shape: GraphShape) -> GNN:
    channels, norm_first = spec.hidden_channels, spec.norm_position == "pre"
    block: type[nn.Module] = Block if norm_first else PostNormBlock
    stack_type: type[nn.Module] = ResidualStack if norm_first else LayerStack
    # With fewer distinct layers than steps the stack goes through them again and again.
    # One is made after the other, and so takes its random numbers.
    convs = (_conv(spec.conv, channels, channels, spec.norm) for _ in range(spec.num_built_layers))
    layers = [block(channels, conv, norm=spec.norm, dropout=spec.dropout) for conv in convs]
    stack = stack_type(layers, num_steps=spec.num_layers, checkpoint=spec.checkpoint)
    # The stack ends with its own norm and samples a mask for every layer.
    return _gnn(spec, shape, stack, norm=None, shared_dropout=False)


def _gcnii(spec: GCNIISpec, shape: GraphShape) -> GNN:
    betas = [math.log(1 + spec.theta / number) for number in range(1, spec.num_layers + 1)]
    layers = [GCNIILayer(spec.hidden_channels, alpha=spec.alpha, beta=beta, dropout=spec.dropout) for beta in betas]
    stack = LayerStack(layers, hand_on_initial=True)
    return _gnn(spec, shape, stack, norm=None, shared_dropout=False, input_dropout=spec.input_dropout)


def _deq(spec: DeqSpec, shape: GraphShape) -> GNN:
    channels = spec.hidden_channels
    # Always layer norm: batch statistics would change from one evaluation of a solve to the next.
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
    assert spec.backward is not None  # the spec fills it in
    return {"solver": _fixed_point(spec), "backward": _fixed_point(spec.backward)}


def _fixed_point(spec: Backward) -> FixedPoint | Phantom:
    if isinstance(spec, PhantomSpec):
        return Phantom(**spec.model_dump(exclude={"type"}))
    # A plain iteration keeps no history: its spec has none, and the layer's default is not read.
    return FixedPoint(method=spec.type, **spec.model_dump(exclude={"type", "backward"}, exclude_none=True))


def _gnn(
    spec: _Encoded,
    shape: GraphShape,
    stack: nn.Module,
    *,
    norm: Norm | None,
    shared_dropout: bool = True,
    input_dropout: float = 0.0,
) -> GNN:
    return GNN(
        in_channels=shape.num_node_features,
        num_categories=shape.num_node_categories,
        num_edge_features=_num_edge_features(spec, shape),
        hidden_channels=spec.hidden_channels,
        out_channels=shape.num_tasks,
        stack=stack,
        norm=norm,
        dropout=spec.dropout,
        shared_dropout=shared_dropout,
        input_dropout=input_dropout,
    )


def _rev_gat(spec: RevGATSpec, shape: GraphShape) -> RevGAT:
    group = spec.hidden_channels // spec.num_groups
    options: dict[str, bool] = {"attend_target": spec.attend_target, "symmetric_norm": spec.symmetric_norm}

    # Every group has all heads, each with its share of a head's channels.
    def layer() -> list[nn.Module]:
        conv = RevGATConv(group, spec.head_channels // spec.num_groups, num_heads=spec.num_heads, **options)
        return _copies(Block(group, conv, norm=spec.norm), spec.num_groups)

    return RevGAT(
        hidden_channels=spec.hidden_channels,
        out_channels=shape.num_tasks,
        num_layers=spec.num_layers,
        first=RevGATConv(shape.num_node_features, spec.head_channels, num_heads=spec.num_heads, **options),
        stack=ReversibleStack([layer() for _ in range(spec.num_layers - 2)], reversible=spec.reversible),
        last=RevGATConv(spec.hidden_channels, shape.num_tasks, num_heads=1, **options),
        norm=spec.norm,
        dropout=spec.dropout,
        input_dropout=spec.input_dropout,
        edge_dropout=spec.edge_dropout,
    )


def _conv(spec: Conv, channels: int, embedding_channels: int, norm: Norm) -> nn.Module:
    # What this package lacks comes from an installed one, whose code is imported here for the first time.
    layer = CONVS.get(spec.type)
    if layer is None:
        plugin = find_plugin("convs", spec.type)
        assert plugin is not None  # the spec was found the same way
        layer = plugin.load()
    return layer(channels, **spec.layer_arguments(embedding_channels, norm))


def _copies(block: nn.Module, num_groups: int) -> list[nn.Module]:
    # The authors' code copies the first group, so all groups of a layer start with equal weights.
    return [block, *(copy.deepcopy(block) for _ in range(num_groups - 1))]


def _num_edge_features(spec: _Encoded, shape: GraphShape) -> int:
    if isinstance(spec, GCNIISpec) or not spec.reads_edges:
        return 0
    if not shape.num_edge_features:
        hint = "set edge_encoder to 'none'" if spec.conv.type == "gen" else "choose another convolution"
        raise RecipeError(f"model.conv: {spec.conv.type!r} reads edge features, and the graph has none; {hint}")
    return shape.num_edge_features


BUILDERS: Mapping[str, Callable[..., nn.Module]] = Table(
    {"rev": _rev, "res": _res, "deq": _deq, "oscillator": _oscillator, "gcnii": _gcnii, "rev_gat": _rev_gat},
    "families",
    lambda plugin, _: plugin.load(),
)
