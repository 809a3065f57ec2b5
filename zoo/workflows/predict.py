"""Predict every node of a graph of any size, in parts and views."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.graph import Graph, Split
from zoo.errors import DataError, RunError
from zoo.ops.csr import CSR, edge_index_of
from zoo.ops.dispatch import plain
from zoo.ops.edges import unfold_sparse
from zoo.spec.model import DeqSpec
from zoo.spec.shape import GraphShape
from zoo.workflows import session
from zoo.workflows.create import ZooInfo, info_of
from zoo.workflows.evaluate import check_shape, make_protocol
from zoo.workflows.evaluate import predict as predict_parts
from zoo.workflows.graphs import as_graph, as_read, prepare_graph
from zoo.workflows.objective import KnownLabels
from zoo.workflows.progress import Progress

# Bytes that a pass without gradients holds at most: per node and channel the float64 stream and its parts, the block's
# float32 states and what it sums them in; per edge its row in two orders.
_NODE_CHANNEL_BYTES, _EDGE_BYTES = 64, 48


def predict(
    model: nn.Module,
    data: object,
    *,
    num_parts: int | None = None,
    num_views: int | None = None,
    memory: int | None = None,
    device: str | torch.device | None = None,
    quiet: bool = True,
) -> Tensor:
    """Logits of every node of a graph, averaged over views, each of which is computed part by part.

    A part is the subgraph of some of the nodes, chosen at random; a view is all parts of one such division. One part is
    the whole graph, exactly. With more, edges between parts are missing, and an average over views makes up for it.

    >>> import zoo
    >>> model, graph = zoo.load("quickstart"), zoo.load_graph("digits")
    >>> zoo.predict(model, graph, num_parts=4, num_views=2).shape
    torch.Size([1797, 10])

    Args:
        model: made by ``zoo.create_model`` or ``zoo.load``.
        data: a ``zoo.Graph`` or a ``torch_geometric.data.Data``; its labels are read under label reuse alone. Node
            features are taken as they are if the model reads as many, else built as the model's recipe says.
        num_parts: P; None: as many as ``memory`` asks for, else as the test of the model's recipe says.
        num_views: V; None: as the test of the recipe says. One part needs no more than one.
        memory: bytes that a part may need while the model runs, beyond the graph, the weights and the logits.
        device: where to compute; None: where the model is.
        quiet: show no progress.

    Returns:
        [N, T] float32 logits, on the CPU.

    Raises:
        DataError: if the data are no graph, or lack what the model reads.
        RunError: if the graph is of other widths than the model, or has fewer nodes than there are parts.
    """
    info = info_of(model)
    graph = _graph_for(data, info)
    target = next(model.parameters()).device if device is None else session.resolve_device(str(device))
    test = info.recipe.test
    if num_parts is None:
        num_parts = test.partition.num_parts if memory is None else parts_for(graph, info, memory)
        num_parts = min(num_parts, graph.num_nodes)
        if memory is not None and 0 < (most := test.partition.num_clusters) < num_parts:
            raise RunError(f"memory: {num_parts:,} parts would fit, but the recipe's test has only {most:,} clusters")
    if not 1 <= num_parts <= graph.num_nodes:
        raise RunError(f"num_parts: expected 1 to {graph.num_nodes:,}, the number of nodes, got {num_parts:,}")
    protocol = make_protocol(test, info.recipe.train.seed, "test", num_views, num_parts)
    # The graph may have fewer splits than the recipe names. Only label reuse looks at the split.
    split = graph.splits[min(info.recipe.data.split, len(graph.splits) - 1)]
    with (
        session.oom_as_run_error(graph.name, "raise num_parts"),
        Progress(protocol.num_steps, unit="part", quiet=quiet) as progress,
    ):
        return predict_parts(
            model.to(target),
            graph,
            protocol,
            device=target,
            precision=info.recipe.train.precision,
            known=KnownLabels.of(info.recipe.train, graph, split, target),
            on_part=lambda: progress.step("predicting", {}),
        )


def parts_for(graph: Graph, info: ZooInfo, memory: int) -> int:
    """The smallest number of random parts each of which needs no more than so many bytes.

    A part of n = N / P nodes keeps each edge with probability 1 / P, so that its nodes, not its edges, decide about a
    large graph.
    """
    spec = info.recipe.model
    channels = max(spec.hidden_channels, info.shape.num_node_features, info.shape.num_tasks)
    # A solver of a fixed point keeps 2 x history states and a few more.
    history = (getattr(spec.solver, "history", None) or 1) if isinstance(spec, DeqSpec) else 0
    node_bytes = graph.num_nodes * channels * (_NODE_CHANNEL_BYTES + (16 * history + 64 if history else 0))
    num_messages = graph.num_edges * (2 if graph.undirected else 1)
    edge_bytes = num_messages * (_EDGE_BYTES + 8 * info.shape.num_edge_features)
    # The positive root of memory * P^2 - nodes * P - edges = 0.
    root = (node_bytes + math.sqrt(node_bytes**2 + 4 * memory * edge_bytes)) / (2 * max(memory, 1))
    return max(math.ceil(root), 1)


def _graph_for(data: object, info: ZooInfo) -> Graph:
    """The graph with what a model reads of it, and nothing else."""
    recipe, shape = info.recipe, info.shape
    if isinstance(data, Graph) or recipe.train.label_reuse is not None:
        graph = as_graph(data)
    else:
        graph = _unlabeled(data, shape)
    width = shape.num_node_features - (0 if recipe.train.label_reuse is None else shape.num_tasks)
    if graph.x is None or graph.x.shape[1] != width:
        graph = prepare_graph(recipe, graph)
    else:
        graph = as_read(recipe, replace(graph, num_categories=shape.num_node_categories))
    graph = replace(graph, num_tasks=shape.num_tasks)
    check_shape(graph, info)
    return graph


def _unlabeled(data: Any, shape: GraphShape) -> Graph:
    """The graph of a PyG ``Data`` object that needs neither labels nor masks."""
    x, edges = getattr(data, "x", None), getattr(data, "edge_index", None)
    edges = getattr(data, "adj_t", None) if edges is None else edges
    if edges is None:
        raise DataError(f"data: expected a zoo.Graph or a torch_geometric.data.Data, got {type(data).__name__}")
    values = getattr(data, "edge_attr", None), getattr(data, "edge_weight", None)
    edges, edge_attr, edge_weight = unfold_sparse(edges, *values)
    edge_index = edge_index_of(edges) if isinstance(edges, CSR) else plain(edges)
    num_nodes = int(data.num_nodes if x is None else len(x))
    none = torch.empty(0, dtype=torch.int64)
    return Graph(
        name="data",
        # As listed: an undirected graph lists both directions of an edge.
        edge_index=edge_index,
        undirected=False,
        num_nodes=num_nodes,
        x=None if x is None else plain(x).float(),
        edge_attr=None if edge_attr is None else plain(edge_attr).float().reshape(edge_index.shape[1], -1),
        edge_weight=None if edge_weight is None else plain(edge_weight).float().flatten(),
        y=torch.full((num_nodes,), -1),
        splits=(Split(none, none, none),),
        task="multiclass",
        num_tasks=shape.num_tasks,
    )
