"""The arguments of a model's forward pass, checked and brought into the order of its rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.conv import reads_edge_weight
from zoo.layers.inputs import BlockInputs
from zoo.ops.csr import CSR
from zoo.ops.edges import unfold_sparse


def read_inputs(
    model: nn.Module,
    x: Any,
    edge_index: Any,
    edge_attr: Tensor | None,
    edge_weight: Tensor | None,
    *,
    num_node_features: int,
    num_edge_features: int,
) -> tuple[Tensor, BlockInputs, Tensor | None]:
    """Node features and the inputs of blocks, from the arguments of ``forward``; D is 0 if no edge features are read.

    Of a ``Data`` object in place of x only what the model reads is taken.

    Returns:
        [N, F] node features; the inputs of blocks, edges in the order of the CSR; and [E] the position in
        ``edge_index`` of each edge of the CSR, None if the order is the same.

    Raises:
        ValueError: if something is missing, given without being read, or of another shape.
    """
    if edge_index is None:
        x, edge_index, edge_attr, edge_weight = _of_data(model, x, num_edge_features)
    if not isinstance(x, Tensor) or x.dim() != 2 or x.size(1) != num_node_features or not x.is_floating_point():
        got = f"{x.dtype} of {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected floating point numbers of shape (N, {num_node_features}), got {got}")
    edge_index, edge_attr, edge_weight = unfold_sparse(edge_index, edge_attr, edge_weight)
    num_edges = edge_index.num_edges if isinstance(edge_index, CSR) else edge_index.size(-1)
    _check_edges(edge_attr, edge_weight, num_edges, num_edge_features)
    return x, *BlockInputs.in_order(edge_index, edge_attr, edge_weight, num_nodes=x.size(0))


def _of_data(model: nn.Module, data: Any, num_edge_features: int) -> tuple[Any, Any, Tensor | None, Tensor | None]:
    x, edge_index, adj_t, edge_attr, edge_weight = (
        getattr(data, key, None) for key in ("x", "edge_index", "adj_t", "edge_attr", "edge_weight")
    )
    edges = adj_t if edge_index is None else edge_index
    if isinstance(data, Tensor) or edges is None:
        raise ValueError("edge_index is missing: expected model(x, edge_index), or model(data) with data.edge_index")
    if x is None:
        raise ValueError("data.x is missing: expected node features, those that the model was trained on")
    # A Data object may hold more than the model reads. Unlike an argument, that is no mistake.
    edge_attr = edge_attr if num_edge_features else None
    # PyG's data sets often store a single edge feature as a vector.
    edge_attr = edge_attr[:, None] if edge_attr is not None and edge_attr.dim() == 1 else edge_attr
    if edge_weight is not None and not reads_edge_weight(model):
        edge_weight = None
    return x, edges, edge_attr, edge_weight


def _check_edges(edge_attr: Tensor | None, edge_weight: Tensor | None, num_edges: int, num_edge_features: int) -> None:
    if not num_edge_features and edge_attr is not None:
        raise ValueError("this model reads no edge features: leave edge_attr out")
    if num_edge_features and edge_attr is None:
        raise ValueError(f"this model reads edge features: give edge_attr [E, {num_edge_features}]")
    for name, tensor, shape in (
        ("edge_attr", edge_attr, (num_edges, num_edge_features)),
        ("edge_weight", edge_weight, (num_edges,)),
    ):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def refuse_half(weight: Tensor) -> None:
    """Refuse a model whose weights are of half precision.

    Raises:
        ValueError: if this weight is.
    """
    # States of a deep stack drown in the rounding of half precision; autocast keeps them in float32.
    if weight.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"weights in {weight.dtype}: deep models need float32 states and weights; for half precision call "
            f"model.float() and run it under torch.autocast({weight.device.type!r}, {weight.dtype})"
        )
