"""Graph transfer on rings, learned at growing distances: how far away can a model read a class?

    python -m benchmarks.range_tasks FILE.json '{"type": "rev", "num_distinct_layers": 1, ...}' --to 50

The model, the ``model`` of a recipe without its ``num_layers``, is weight-tied, so that the weights of one stage begin
the next, which has larger distances and as many more layers. A stage trains on rings of several distances up to its own
until the loss is small; then it is tested on rings of exactly that distance. ``test_before`` is the accuracy there
before the stage, ``untrained`` that at still larger distances, with as many layers as are needed and twice as many.
FILE gets the figures, and beside it the weights are kept, so that a run that was stopped goes on where it was.
docs/range.md says what came out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.data.datasets import load_graph
from zoo.data.graph import Graph, directed_edges
from zoo.models.factory import build_model
from zoo.ops.csr import CSR, csr_from_edge_index
from zoo.spec.recipe import read_recipe

# One hop farther, or an eighth of the way.
STAGES = [2]
while STAGES[-1] < 1000:
    STAGES.append(min(STAGES[-1] + max(STAGES[-1] // 8, 1), 1000))
LAYERS_MORE = 2
MAX_EPOCHS, WARM_UP_EPOCHS, MAX_GRAD_NORM = 600, 10, 1.0
# Adam's squares must forget fast: the gradients of the first epochs are a thousand times those that tell the classes.
BETAS = (0.9, 0.95)


def rings(distance: int, topology: str) -> Graph:
    """Fifteen graphs, three for each class."""
    return load_graph(f"graph-transfer-{topology}", generated={"range": distance, "num_nodes": 100})


def training_set(distance: int, topology: str) -> tuple[Tensor, CSR, Tensor, Tensor]:
    """The train graphs of several distances as one: features, edges, targets and their classes."""
    near = [each for each in STAGES if each < distance]
    chosen = sorted({distance, *near[-1:], *near[-3::-2], (distance + max(near, default=2)) // 2})
    x, edges, targets, y, start = [], [], [], [], 0
    for graph in (rings(each, topology) for each in chosen):
        # The train graphs come first.
        num_nodes = graph.num_nodes * len(graph.splits[0].train) // int((graph.y >= 0).sum())
        edge_index = directed_edges(graph)[0].long()
        assert graph.x is not None
        x.append(graph.x[:num_nodes])
        edges.append(edge_index[:, edge_index[1] < num_nodes] + start)
        targets.append(graph.splits[0].train + start)
        y.append(graph.y[graph.splits[0].train])
        start += num_nodes
    csr, _ = csr_from_edge_index(torch.cat(edges, 1), start)
    return torch.cat(x), csr, torch.cat(targets), torch.cat(y)


def build(model: dict[str, Any], num_layers: int, graph: Graph) -> nn.Module:
    """The model with a number of layers."""
    text = json.dumps({**model, "num_layers": num_layers})
    recipe = read_recipe("small_rev", ["data.dataset=graph-transfer-ring", f"model={text}"])
    return build_model(recipe.model, graph.shape)


def test(model: nn.Module, graph: Graph) -> float:
    """The accuracy on the test graphs."""
    csr, _ = csr_from_edge_index(directed_edges(graph)[0], graph.num_nodes)
    with torch.no_grad():
        guess = model.eval()(graph.x, csr).argmax(1)
    nodes = graph.splits[0].test
    return round(float((guess[nodes] == graph.y[nodes]).float().mean()), 4)


def train(model: nn.Module, data: tuple[Tensor, CSR, Tensor, Tensor], lr: float, goal: float) -> dict[str, float]:
    """Train until the loss is small; the figures."""
    x, csr, targets, y = data
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=BETAS)
    first, loss, epoch = 0.0, torch.zeros(()), 0
    for epoch in range(1, MAX_EPOCHS + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, epoch / WARM_UP_EPOCHS)
        optimizer.zero_grad()
        loss = F.cross_entropy(model.train()(x, csr)[targets], y)
        first = loss.item() if epoch == 1 else first
        if loss < goal:
            break
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
    return {"num_epochs": epoch, "first_loss": round(first, 3), "loss": round(loss.item(), 3)}


def main() -> None:
    """Run the stages that a file does not have yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("model", type=json.loads)
    parser.add_argument("--to", type=int, default=50, help="the largest distance")
    parser.add_argument("--topology", default="ring")
    parser.add_argument("--untrained", type=int, nargs="*", default=[], help="larger distances, without training")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--goal", type=float, default=0.03, help="a stage ends at this training loss")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = arguments.file.with_suffix(".pt")
    run: dict[str, Any] = {"model": arguments.model, "topology": arguments.topology, "stages": []}
    state = None
    if arguments.file.exists():
        run = json.loads(arguments.file.read_text())
        state = torch.load(weights, weights_only=True)
    for distance in [each for each in STAGES if each <= arguments.to][len(run["stages"]) :]:
        if run["stages"] and run["stages"][-1]["test"] < 1:
            break
        started = time.process_time()
        graph = rings(distance, arguments.topology)
        model = build(arguments.model, distance + LAYERS_MORE, graph)
        if state is not None:
            model.load_state_dict(state)
        at_first = test(model, graph)
        figures = train(model, training_set(distance, arguments.topology), arguments.lr, arguments.goal)
        stage = {
            "distance": distance,
            "num_layers": distance + LAYERS_MORE,
            "lr": arguments.lr,
            "goal": arguments.goal,
            "test_before": at_first,
        }
        run["stages"].append(
            {**stage, **figures, "test": test(model, graph), "cpu_s": round(time.process_time() - started, 1)}
        )
        state = model.state_dict()
        torch.save(state, weights)
        arguments.file.write_text(json.dumps(run, indent=1) + "\n")
        print(json.dumps(run["stages"][-1]), flush=True)
    for distance in arguments.untrained:
        graph = rings(distance, arguments.topology)
        for num_layers in (distance + LAYERS_MORE, 2 * distance):
            model = build(arguments.model, num_layers, graph)
            model.load_state_dict(state or {})
            figures = {"distance": distance, "num_layers": num_layers, "test": test(model, graph)}
            run.setdefault("untrained", []).append(figures)
            arguments.file.write_text(json.dumps(run, indent=1) + "\n")
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
