"""The code of the parts, imported when a recipe that names them is run."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.datasets import Dataset
from zoo.data.graph import Graph, Split
from zoo.layers import BlockInputs
from zoo.ops.csr import CSR, as_csr
from zoo.ops.weighted_sum import weighted_sum
from zoo.spec.shape import GraphShape
from zoo_example import SmoothSpec


class MultiHopConv(nn.Module):
    """X' = sum over k of (M^k X) W_k + b_k, where M takes the mean over the incoming edges."""

    def __init__(self, channels: int, *, num_hops: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(channels, channels) for _ in range(num_hops + 1))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] to [N, C]."""
        degree = inputs.csr.rowptr.diff().clamp(min=1).to(x.dtype).unsqueeze(1)
        out = self.linears[0](x)
        for linear in list(self.linears)[1:]:
            x = weighted_sum(x, inputs.csr) / degree
            out = out + linear(x)
        return out


class Smooth(nn.Module):
    """W_2 M^L (W_1 x), where M takes the mean over the incoming edges."""

    def __init__(self, in_channels: int, channels: int, out_channels: int, *, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.encoder, self.head = nn.Linear(in_channels, channels), nn.Linear(channels, out_channels)

    def forward(self, x: Tensor, edge_index: Tensor | CSR, edge_attr: None = None, edge_weight: None = None) -> Tensor:
        """[N, F] node features and the edges, without features and weights, to [N, T] logits."""
        csr, _ = as_csr(edge_index, x.size(0))
        degree = csr.rowptr.diff().clamp(min=1).to(x.dtype).unsqueeze(1)
        h = self.encoder(x)
        for _ in range(self.num_layers):
            h = weighted_sum(h, csr) / degree
        return self.head(h)


def build_smooth(spec: SmoothSpec, shape: GraphShape) -> nn.Module:
    """The model of a spec, for graphs of a shape."""
    return Smooth(shape.num_node_features, spec.hidden_channels, shape.num_tasks, num_layers=spec.num_layers)


def focal_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy times (1 - p) ** 2, p being the probability of the true class (arXiv 1708.02002)."""
    losses = F.cross_entropy(logits, y, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def balanced_accuracy(y_true: Tensor, logits: Tensor) -> float:
    """The share of right predictions of each class, averaged over the classes; [n] classes, -1 for unlabeled."""
    right = logits.argmax(1) == y_true
    classes = y_true[y_true >= 0].unique()
    return float(torch.stack([right[y_true == one].float().mean() for one in classes]).mean())


def load_rings(name: str, root: str | Path | None) -> Graph:
    """Three rings of 40 nodes; a node's class is its ring, of which its features tell a little."""
    generator = torch.Generator().manual_seed(0)
    node = torch.arange(120)
    ring = node // 40
    x = torch.randn(120, 4, generator=generator)
    x[node, ring] += 1
    order = torch.randperm(120, generator=generator)
    return Graph(
        name=name,
        edge_index=torch.stack([node, ring * 40 + (node + 1) % 40]),
        undirected=True,
        num_nodes=120,
        x=x,
        y=ring,
        splits=(Split(order[:60], order[60:90], order[90:]),),
        task="multiclass",
        num_tasks=3,
    )


RINGS = Dataset(
    load=load_rings,
    task="multiclass",
    license="MIT",
    source="made by this package",
    summary="three rings of nodes",
)
