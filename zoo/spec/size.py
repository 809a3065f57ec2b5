"""How many parameters a model has, by arithmetic: nothing is built, so that absurd sizes can be refused at once."""

from __future__ import annotations

import itertools
import typing

from zoo.spec.model import (
    Conv,
    DeqSpec,
    GATConvSpec,
    GCNConvSpec,
    GenConvSpec,
    Model,
    ResSpec,
    RevGATSpec,
    RevSpec,
    SAGEConvSpec,
)

if typing.TYPE_CHECKING:
    from zoo.spec.shape import GraphShape

MAX_PARAMETERS = 20_000_000_000


def count_parameters(spec: Model, shape: GraphShape) -> int:
    """Number of parameters of the model that ``spec`` and ``shape`` describe."""
    if isinstance(spec, RevGATSpec):
        return _rev_gat(spec, shape)
    if isinstance(spec, ResSpec):
        return _res(spec, shape)
    if isinstance(spec, DeqSpec):
        return _deq(spec, shape)
    return _rev(spec, shape)


def _linear(num_in: int, num_out: int, *, bias: bool = True) -> int:
    return num_in * num_out + (num_out if bias else 0)


def _ends(hidden: int, shape: GraphShape, conv: Conv) -> int:
    """Node encoder, edge encoder and prediction head."""
    edge_encoder = isinstance(conv, GenConvSpec) and conv.edge_encoder != "none"
    categories = shape.num_node_categories
    count = _linear(categories, categories) if categories else 0
    count += _linear(shape.num_node_features, hidden)
    count += _linear(shape.num_edge_features, hidden) if edge_encoder else 0
    return count + _linear(hidden, shape.num_tasks)


def _conv(spec: Conv, channels: int, edge_channels: int) -> int:
    if isinstance(spec, GCNConvSpec):
        return _linear(channels, channels)
    if isinstance(spec, SAGEConvSpec):
        return _linear(channels, channels) + _linear(channels, channels, bias=False)
    if isinstance(spec, GATConvSpec):
        return _linear(channels, spec.num_heads * channels, bias=False) + 2 * spec.num_heads * channels + channels
    widths = [channels] + [2 * channels] * (spec.num_mlp_layers - 1) + [channels]
    count = sum(_linear(a, b) for a, b in itertools.pairwise(widths))
    count += sum(2 * width for width in widths[1:-1])
    if spec.edge_encoder == "per_layer":
        count += _linear(edge_channels, channels)
    count += int(spec.message_norm)
    aggr = spec.aggr
    if aggr.type == "softmax":
        count += int(aggr.learn_temperature) + int(aggr.scale_by_degree)
    if aggr.type == "powermean":
        count += int(aggr.learn_power) + int(aggr.scale_by_degree)
    return count


def _rev(spec: RevSpec, shape: GraphShape) -> int:
    channels = spec.hidden_channels // spec.num_groups
    block = 2 * channels + _conv(spec.conv, channels, spec.hidden_channels)
    last_norm = 2 * spec.hidden_channels
    return _num_distinct(spec) * spec.num_groups * block + last_norm + _ends(spec.hidden_channels, shape, spec.conv)


def _num_distinct(spec: RevSpec | ResSpec) -> int:
    return spec.num_layers if spec.num_distinct_layers is None else spec.num_distinct_layers


def _res(spec: ResSpec, shape: GraphShape) -> int:
    # As many norms as convolutions: the first step has no norm before it, the head has the one of the next step.
    channels = spec.hidden_channels
    block = 2 * channels + _conv(spec.conv, channels, channels)
    return _num_distinct(spec) * block + _ends(channels, shape, spec.conv)


def _deq(spec: DeqSpec, shape: GraphShape) -> int:
    channels = spec.hidden_channels
    conv = _conv(spec.conv, channels, channels)
    if spec.weight_norm == "weight":
        conv += _linear_outputs(spec.conv, channels)
    return 2 * (2 * channels + conv) + _ends(channels, shape, spec.conv)


def _linear_outputs(spec: Conv, channels: int) -> int:
    """Outputs of all linear maps of a convolution: each has a length of its own under weight normalisation."""
    if isinstance(spec, GCNConvSpec):
        return channels
    if isinstance(spec, SAGEConvSpec):
        return 2 * channels
    if isinstance(spec, GATConvSpec):
        return spec.num_heads * channels
    mlp = 2 * channels * (spec.num_mlp_layers - 1) + channels
    return mlp + (channels if spec.edge_encoder == "per_layer" else 0)


def _rev_gat(spec: RevGATSpec, shape: GraphShape) -> int:
    attention = 2 if spec.attend_target else 1

    def gat(num_in: int, heads: int, num_out: int) -> int:
        # The map of the features, the residual map, and one attention vector per head and end.
        return 2 * num_in * heads * num_out + attention * heads * num_out

    width = spec.num_heads * spec.hidden_channels
    group = width // spec.num_groups
    block = 2 * group + gat(group, spec.num_heads, spec.hidden_channels // spec.num_groups)
    count = gat(shape.num_node_features, spec.num_heads, spec.hidden_channels)
    count += (spec.num_layers - 2) * spec.num_groups * block
    return count + gat(width, 1, shape.num_tasks) + 2 * width + shape.num_tasks
