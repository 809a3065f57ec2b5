"""PyTorch Geometric's GroupAddRev where README says that a user is right to be careful.

    python -m benchmarks.pyg_defects

Every case builds four reversible layers of GroupAddRev and does one ordinary thing with them, in a process of its own,
as one of them ends in a segmentation fault. What is printed is what was seen: the error, or how far the gradients are
from those of the same layers with ``disable=True``, PyG's own switch to plain autograd.
"""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import Tensor, nn
from torch_geometric.nn import GroupAddRev, SAGEConv

NUM_NODES, NUM_EDGES, CHANNELS, NUM_LAYERS = 200, 1200, 16, 4


class Block(nn.Module):
    """norm, ReLU, dropout, SAGEConv on one group's channels."""

    def __init__(self, *, norm: type[nn.Module] = nn.LayerNorm, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.dropout = norm(CHANNELS // 2), nn.Dropout(dropout)
        self.conv = SAGEConv(CHANNELS // 2, CHANNELS // 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[N, C] to [N, C]."""
        out: Tensor = self.conv(self.dropout(self.norm(x).relu()), edge_index)
        return out


class Stack(nn.Module):
    """Reversible layers between two linear maps."""

    def __init__(self, block: Block, *, relu: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.ReLU() if relu else nn.Identity())
        self.layers = nn.ModuleList(GroupAddRev(copy.deepcopy(block), num_groups=2) for _ in range(NUM_LAYERS))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[N, C] to [N, C]."""
        h: Tensor = self.encoder(x)
        for layer in self.layers:
            h = layer(h, edge_index)
        return h

    def plain(self) -> Stack:
        """A copy under plain autograd."""
        twin = copy.deepcopy(self)
        for layer in twin.layers:
            layer.disable = True  # type: ignore[assignment]
        return twin


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Node features, edges, and the weights of a loss."""
    torch.manual_seed(0)
    x, edge_index = torch.randn(NUM_NODES, CHANNELS), torch.randint(NUM_NODES, (2, NUM_EDGES))
    return x, edge_index, torch.randn(NUM_NODES, CHANNELS)


def gradients(model: Stack, *, change: Callable[[Stack], None] = lambda model: None) -> Tensor:
    """All gradients of a training step, as one vector."""
    x, edge_index, weights = inputs()
    torch.manual_seed(1)
    loss = (model(x, edge_index) * weights).sum()
    change(model)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(model: Stack) -> str:
    """The relative error of the gradients, in words."""
    plain, found = gradients(model.plain()), gradients(model)
    return f"relative error of the gradient {float((found - plain).norm() / plain.norm()):.2g}"


def dropout() -> str:
    """Dropout inside a block."""
    return distance(Stack(Block(dropout=0.5)))


def batch_norm() -> str:
    """BatchNorm in a block."""
    model = Stack(Block(norm=nn.BatchNorm1d))
    gradients(model)
    counts = [int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    return f"one step is counted {max(counts)} times"


def input_reused() -> str:
    """The stack's input is used again after it."""
    x, edge_index, _ = inputs()
    model = Stack(Block())
    h = model.encoder(x)
    y = h
    for layer in model.layers:
        y = layer(y, edge_index)
    (y + h).sum().backward()
    return "works"


def relu_before() -> str:
    """A ReLU right before the stack."""
    return distance(Stack(Block(), relu=True))


def own_tensor() -> str:
    """Evaluation on the data set's own tensor."""
    x, edge_index, _ = inputs()
    with torch.no_grad():
        Stack(Block()).eval().layers[0](x, edge_index)
    return f"the tensor holds {x.untyped_storage().nbytes():,} of {NUM_NODES * CHANNELS * 4:,} bytes afterwards"


def autocast() -> str:
    """Autocast to bfloat16 around forward."""
    x, edge_index, weights = inputs()
    model = Stack(Block())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, edge_index)
    (out.float() * weights).sum().backward()
    return "works"


def frozen() -> str:
    """All parameters of the blocks frozen."""
    model = Stack(Block())
    model.layers.requires_grad_(False)
    return distance(model)


def unused() -> str:
    """A parameter that forward does not use."""
    block = Block()
    block.spare = nn.Parameter(torch.zeros(1))
    return distance(Stack(block))


def weight_changed() -> str:
    """A weight changed between forward and backward."""

    @torch.no_grad()
    def change(model: Stack) -> None:
        for parameter in model.layers.parameters():
            parameter.mul_(1.5)

    model = Stack(Block())
    before = gradients(copy.deepcopy(model))
    found = gradients(model, change=change)
    return f"no error; the gradient is {float((found - before).norm() / before.norm()):.2g} off"


CASES = (
    dropout,
    batch_norm,
    input_reused,
    relu_before,
    own_tensor,
    autocast,
    frozen,
    unused,
    weight_changed,
)


def seen(case: str) -> str:
    """Run a case in a process of its own."""
    done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return lines[-1][:150] if lines else f"exit code {done.returncode}"


def main() -> None:
    """All cases, or the one named on the command line."""
    if len(sys.argv) > 1:
        print(next(case for case in CASES if case.__name__ == sys.argv[1])())
        return
    print(f"torch {version('torch')}, torch-geometric {version('torch-geometric')}")
    for case in CASES:
        print(f"{(case.__doc__ or '').rstrip('.')}: {seen(case.__name__)}")


if __name__ == "__main__":
    main()
