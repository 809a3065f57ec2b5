"""How many parameters a model has, by arithmetic: nothing is built, so that absurd sizes can be refused at once."""

from __future__ import annotations

import itertools
import typing

from zoo.spec.model import GATConvSpec, GCNConvSpec, GenConvSpec, Model, RevGATSpec, RevSpec, SAGEConvSpec

if typing.TYPE_CHECKING:
    from zoo.spec.recipe import GraphShape

MAX_PARAMETERS = 20_000_000_000


def count_parameters(spec: Model, shape: GraphShape) -> int:
    """Number of parameters of the model that ``spec`` and ``shape`` describe."""
    if isinstance(spec, RevGATSpec):
        return _rev_gat(spec, shape)
    return _rev(spec, shape)


def _linear(num_in: int, num_out: int, *, bias: bool = True) -> int:
    return num_in * num_out + (num_out if bias else 0)


def _ends(hidden: int, shape: GraphShape, *, edge_encoder: bool) -> int:
    """Node encoder, edge encoder, last norm and prediction head."""
    categories = shape.num_node_categories
    count = _linear(categories, categories) if categories else 0
    count += _linear(shape.num_node_features, hidden)
    count += _linear(shape.num_edge_features, hidden) if edge_encoder else 0
    return count + 2 * hidden + _linear(hidden, shape.num_tasks)


def _conv(spec: GenConvSpec | GCNConvSpec | SAGEConvSpec | GATConvSpec, channels: int, edge_channels: int) -> int:
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
    encoded = isinstance(spec.conv, GenConvSpec) and spec.conv.edge_encoder != "none"
    return spec.num_layers * spec.num_groups * block + _ends(spec.hidden_channels, shape, edge_encoder=encoded)


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
