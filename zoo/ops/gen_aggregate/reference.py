"""The definition of the aggregation in plain PyTorch: short, slow, and the oracle of every kernel's tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.ops.csr import CSR, edge_targets
from zoo.ops.dispatch import compute_dtype
from zoo.ops.edges import EdgeInput

# The authors' power mean clamps messages and their mean to this range.
POWER_MIN, POWER_MAX = 1e-7, 10.0


class Messages(NamedTuple):
    """The messages relu(x_j + a_e) + eps of all edges e = (j, i), before they are computed."""

    x: Tensor  # [N, C]
    csr: CSR  # N rows, E edges
    edges: EdgeInput | None  # the embeddings a_e, of C channels; None: 0
    eps: float


def gen_aggregate(messages: Messages, aggr: str, factor: Tensor | None, *, detach_weights: bool) -> Tensor:
    """Aggregate with an [E, C] tensor of messages; differentiable any number of times.

    Returns:
        [N, C], in float32 for half precision.
    """
    x, csr, edges, eps = messages
    dtype = compute_dtype(x)
    pre = x.to(dtype).index_select(0, csr.col)  # [E, C]
    if edges is not None:
        attr, weight, bias = edges
        pre = pre + (attr if weight is None else F.linear(attr.to(dtype), weight))
        pre = pre if bias is None else pre + bias
    message = F.relu(pre) + eps
    degree = csr.rowptr.diff()
    row = edge_targets(csr)  # [E]
    if aggr == "max":
        if torch.compiler.is_compiling():
            # Messages are positive, so that the zeros of nodes without edges are never their maximum.
            zeros = message.new_zeros(csr.num_nodes, message.shape[1])
            return zeros.scatter_reduce(0, row[:, None].expand_as(message), message, "amax")
        return _first_max(message, row, csr)
    if aggr == "softmax" and factor is not None:
        return _softmax(message, row, csr, factor, detach_weights)
    if aggr == "powermean" and factor is not None:
        message = message.clamp(POWER_MIN, POWER_MAX).pow(factor)
    total = message.new_zeros(csr.num_nodes, message.shape[1]).index_add(0, row, message)
    if aggr == "sum":
        return total
    mean = total / degree.clamp(min=1).to(total.dtype)[:, None]
    return mean if factor is None else mean.clamp(POWER_MIN, POWER_MAX).pow(1 / factor)


def _first_max(message: Tensor, row: Tensor, csr: CSR) -> Tensor:
    # Only values decide which edge wins; the gradient then passes through one gather.
    num_edges, num_channels = message.shape
    value = message.detach()
    target = row[:, None].expand_as(value)
    empty = value.new_full((csr.num_nodes, num_channels), -torch.inf)
    best = empty.scatter_reduce(0, target, value, "amax")
    edge = torch.arange(num_edges, device=row.device)[:, None].expand_as(target)
    won = (value == best[row]) | value.isnan()
    no_edge = edge.new_full(empty.shape, num_edges)
    winner = no_edge.scatter_reduce(0, target, edge.where(won, num_edges), "amin")
    padded = torch.cat([message, message.new_zeros(1, num_channels)])
    return padded.gather(0, winner)


def _softmax(message: Tensor, row: Tensor, csr: CSR, temperature: Tensor, detach_weights: bool) -> Tensor:
    score = message * temperature
    floor = score.new_full((csr.num_nodes, score.shape[1]), -torch.inf)
    peak = floor.scatter_reduce(0, row[:, None].expand_as(score), score.detach(), "amax")
    weight = (score - peak[row]).exp()
    zeros = message.new_zeros(csr.num_nodes, message.shape[1])
    weight = weight / zeros.index_add(0, row, weight)[row]
    if detach_weights:
        weight = weight.detach()
    return zeros.index_add(0, row, weight * message)
