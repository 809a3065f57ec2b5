"""Short trainings of very deep reversible stacks on minesweeper, to see which setting lets them learn.

    ZOO_DATA=FOLDER python -m benchmarks.depth_trials '{"num_layers": 1001, "scale": 0.0316}' ...

Each argument is a JSON object with any of the settings of ``Trial``. A line per trial gives, every third epoch, the
training loss, the validation ROC-AUC and the norm of the gradient. docs/depth.md says what came out.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoo.data.graph import Graph, directed_edges
from zoo.data.metrics import evaluate
from zoo.layers.block import Block
from zoo.layers.conv import SAGEConv
from zoo.layers.inputs import BlockInputs
from zoo.models.factory import build_model
from zoo.ops.csr import csr_from_edge_index
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows.graphs import recipe_graph

EVERY = 3
WARM_UP_EPOCHS = 5
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Trial:
    """One setting.

    Attributes:
        num_layers: steps of the stack.
        channels: its width.
        num_distinct_layers: layers with weights of their own; 0: all.
        norm: of each block.
        scale: of what a block adds.
        zero: start with convolutions that give zero.
        inject: every block reads the encoded features as well, through a linear map of its own.
        antisymmetric: the linear map of a node's own state is W - W^T, which neither grows nor shrinks states.
        stack_lr: factor of the learning rate for the layers; encoder and head keep it.
        lr: of Adam, after five epochs of warm-up.
        epochs: how long to train.
    """

    num_layers: int = 128
    channels: int = 16
    num_distinct_layers: int = 1
    norm: str = "layer"
    scale: float = 1.0
    zero: bool = False
    inject: bool = False
    antisymmetric: bool = False
    stack_lr: float = 1.0
    lr: float = 0.01
    epochs: int = 9


class Injected(nn.Module):
    """f(h, x) = block(h + W x): a block that reads the encoded features x besides its states."""

    def __init__(self, block: Block, channels: int) -> None:
        super().__init__()
        self.block, self.linear = block, nn.Linear(channels, block.channels)

    def forward(self, h: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C/G] states of a group to what is added to them."""
        out: Tensor = self.block(h + self.linear(inputs.initial), inputs)
        return out


class Antisymmetric(nn.Module):
    """W - W^T, as in A-DGN (arXiv 2210.09789)."""

    def forward(self, weight: Tensor) -> Tensor:
        """[C, C] to [C, C]."""
        return weight - weight.T


class HandOnInitial(nn.Module):
    """A stack whose blocks may read its input."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, h: Tensor, inputs: BlockInputs) -> Tensor:
        """[N, C] to [N, C]."""
        out: Tensor = self.stack(h, inputs._replace(initial=h))
        return out


def build(trial: Trial, graph: Graph) -> nn.Module:
    """The model of a trial."""
    overrides = [
        f"model.num_layers={trial.num_layers}",
        f"model.hidden_channels={trial.channels}",
        f"model.norm={trial.norm}",
        "model.dropout=0",
    ]
    if trial.num_distinct_layers:
        overrides.append(f"model.num_distinct_layers={trial.num_distinct_layers}")
    torch.manual_seed(0)
    model = build_model(read_recipe(recipe_path("minesweeper"), overrides).model, graph.shape)
    for block in model.modules():
        if isinstance(block, Block):
            block.scale = trial.scale
            if trial.zero:
                for parameter in block.conv.parameters():
                    nn.init.zeros_(parameter)
            if trial.antisymmetric:
                parametrize.register_parametrization(cast(SAGEConv, block.conv).root, "weight", Antisymmetric())
    if trial.inject:
        stack: Any = model.stack
        for layer in stack.layers:
            for index, block in enumerate(layer):
                layer[index] = Injected(block, trial.channels)
        model.stack = HandOnInitial(stack)
    return model


def run(trial: Trial) -> str:
    """Train; the line of figures."""
    graph, split = recipe_graph(read_recipe(recipe_path("minesweeper")))
    model = build(trial, graph)
    edge_index, _ = directed_edges(graph)
    csr, _ = csr_from_edge_index(edge_index, graph.num_nodes)
    layers = list(cast(nn.Module, model.stack).parameters())
    inside = {id(parameter) for parameter in layers}
    others = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    groups = ((layers, trial.lr * trial.stack_lr), (others, trial.lr))
    optimizer = torch.optim.Adam([{"params": group, "lr": lr, "base": lr} for group, lr in groups])
    target = graph.y.float().view(-1, 1)
    figures, started = [], time.process_time()
    for epoch in range(1, trial.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * min(1, epoch / WARM_UP_EPOCHS)
        optimizer.zero_grad()
        out = model.train()(graph.x, csr)
        loss = F.binary_cross_entropy_with_logits(out[split.train], target[split.train])
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        if epoch % EVERY == 0:
            with torch.no_grad():
                out = model.eval()(graph.x, csr)
            auc = evaluate("rocauc", graph.y[split.valid], out[split.valid])
            figures.append(f"epoch {epoch}: loss {loss:.3f}, valid {auc:.3f}, gradient {norm:.2g}")
    return f"{'; '.join(figures)}; {(time.process_time() - started) / trial.epochs:.2f} s/epoch"


def main() -> None:
    """Run the trials of the command line, one after another."""
    torch.set_num_threads(1)
    for text in sys.argv[1:]:
        print(text, run(Trial(**json.loads(text))), flush=True)


if __name__ == "__main__":
    main()
