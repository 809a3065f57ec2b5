"""Time and memory of a recipe's training step, on its own graph or on a random one of any size."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.datasets import DATASETS
from zoo.data.graph import Graph, Split, with_self_loops
from zoo.data.ogb import OGB
from zoo.data.synthetic import synthetic_graph
from zoo.errors import RunError
from zoo.layers.capture import capture_layers
from zoo.layers.equilibrium import start_epoch
from zoo.spec.base import Spec
from zoo.spec.recipe import Recipe
from zoo.spec.shape import known_shape
from zoo.workflows import session
from zoo.workflows.graphs import place_graph
from zoo.workflows.memory import finish, measure_steps, release_eagerly
from zoo.workflows.objective import Objective
from zoo.workflows.options import EdgePrecision
from zoo.workflows.step import build_optimizer, epoch_parts, training_step

NUM_STEPS = 5
# Memory is the same each time; time is not.
_NUM_MEMORY_STEPS, _NUM_PARTITIONS = 2, 3


class StepCost(Spec):
    """The cost of training steps of one model on one part of a graph.

    Attributes:
        num_nodes, num_edges: of the whole graph; an undirected edge counts twice.
        step_s: seconds of each counted step.
        partition_s: seconds in which the graph is divided into the parts of an epoch.
        epoch_s: seconds of an epoch: the division, and all its steps.
        graph_bytes: the whole graph, if it is on a GPU; 0 on the CPU, where it may be mapped from a file.
        part_bytes: one part, of which a step has one at a time.
        state_bytes: parameters, gradients and the optimizer's state.
        peak_bytes: the most that a step needs beyond all these.
    """

    num_nodes: int
    num_edges: int
    num_parts: int
    num_parameters: int
    step_s: tuple[float, ...]
    median_step_s: float
    partition_s: float
    epoch_s: float
    graph_bytes: int
    part_bytes: int
    state_bytes: int
    peak_bytes: int

    @property
    def total_bytes(self) -> int:
        """All that a machine must hold at the peak of a step."""
        return self.graph_bytes + self.part_bytes + self.state_bytes + self.peak_bytes


def measure_training(
    model: nn.Module,
    recipe: Recipe,
    graph: Graph,
    split: Split,
    device: torch.device,
    *,
    num_steps: int = NUM_STEPS,
    capture: bool = False,
    edge_precision: EdgePrecision = "fp32",
) -> StepCost:
    """Measure training steps of a model, which they train, on the first part of an epoch.

    Models that solve for a fixed point take longer the further they are trained. Of the recipe only ``train`` is looked
    at. The steps whose memory is watched come before the ``num_steps`` that are timed.

    Raises:
        RunError: if no part has a train node, or memory runs out.
    """
    spec = recipe.train
    model = model.to(device).train()
    if capture:
        capture_layers(model)
    # The teacher's predictions do not matter here, only the time that reading them takes.
    teacher = None if spec.distillation is None else torch.zeros(graph.num_nodes, graph.num_tasks)
    objective = Objective(spec, graph, split, device, teacher)
    graph = place_graph(graph, device, edge_precision)
    optimizer = build_optimizer(spec.optimizer, model)
    # The last epoch, in which the warm-up of an equilibrium layer is over.
    start_epoch(model, spec.num_epochs)
    part = next((p for p in epoch_parts(graph, spec, 1) if bool(objective.is_train[p.nodes].any())), None)
    if part is None:
        raise RunError("no part has a train node; lower train.partition.num_parts")
    part = part.to(device)
    num_parts = spec.partition.num_parts
    parts = [part] * min(spec.parts_per_step, num_parts)

    # Adam's state is created by the first step and gradients are freed after each, so that neither is in the peak.
    def step() -> None:
        training_step(model, optimizer, parts, objective, spec)
        optimizer.zero_grad(set_to_none=True)

    session.seed_global(spec.seed, "dropout", 0)
    with session.oom_as_run_error("a training step", "raise train.partition.num_parts"):
        # Eager release makes the memory exact and the steps slower, so time is taken in steps of their own.
        with release_eagerly():
            _, peak_bytes = measure_steps(step, model, device=device, num_steps=_NUM_MEMORY_STEPS)
        step_s, _ = measure_steps(step, model, device=device, num_steps=num_steps)
    partition_s = statistics.median(_partition_s(graph, recipe, epoch, device) for epoch in range(_NUM_PARTITIONS))
    optimizer_state = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    gradients = [p for p in model.parameters() if p.requires_grad]
    median_step_s = statistics.median(step_s)
    return StepCost(
        num_nodes=graph.num_nodes,
        num_edges=graph.num_edges * (2 if graph.undirected else 1),
        num_parts=num_parts,
        num_parameters=sum(p.numel() for p in model.parameters()),
        step_s=step_s,
        median_step_s=median_step_s,
        partition_s=partition_s,
        epoch_s=partition_s + math.ceil(num_parts / len(parts)) * median_step_s,
        graph_bytes=graph_bytes(graph),
        part_bytes=num_bytes(t for t in (*part[:2], *part.csr, *part[3:]) if t is not None),
        state_bytes=num_bytes([*model.parameters(), *gradients, *optimizer_state]),
        peak_bytes=peak_bytes,
    )


def random_graph(recipe: Recipe, num_nodes: int, num_edges: int) -> tuple[Graph, Split]:
    """A random graph of N nodes in place of a recipe's data, with features and labels as wide as theirs.

    The graph is undirected, so that of an odd number of messages one is lost.

    Raises:
        ZooError: if the widths are not known without the files of the data, or the sizes do not fit.
    """
    shape, known = known_shape(recipe), DATASETS.get(recipe.data.dataset)
    if shape is None or known is None or known.task is None:
        raise RunError(f"{recipe.name}: a random graph needs a data set with a name; measure on the graph itself")
    # Degrees are as uneven as in ogbn-proteins, which decides how well the kernels' rows are balanced.
    graph = synthetic_graph(num_nodes, num_edges // 2, seed=recipe.train.seed)
    generator = session.generator(recipe.train.seed, "random graph")
    width, num_tasks = shape.num_node_features, shape.num_tasks
    # Under label reuse the columns of the labels are added later, to every part.
    x = torch.rand(num_nodes, width - (0 if recipe.train.label_reuse is None else num_tasks), generator=generator)
    if shape.num_node_categories and graph.categories is not None:
        x[:, -shape.num_node_categories :] = F.one_hot(graph.categories, shape.num_node_categories)
    edge_attr = graph.edge_attr
    if edge_attr is not None and edge_attr.shape[1] != shape.num_edge_features:
        widths = (graph.num_edges, shape.num_edge_features)
        edge_attr = torch.rand(widths, generator=generator) if shape.num_edge_features else None
    y = torch.randint(max(num_tasks, 2), (num_nodes,), generator=generator)
    if known.task == "multilabel":
        y = (torch.rand(num_nodes, num_tasks, generator=generator) < 0.5).float()
    graph = replace(
        graph,
        x=x,
        edge_attr=edge_attr,
        y=y,
        task=known.task,
        num_tasks=num_tasks,
        num_categories=shape.num_node_categories,
    )
    graph = with_self_loops(graph) if recipe.data.self_loops else graph
    return graph, graph.splits[0]


def data_set_size(recipe: Recipe) -> tuple[int, int]:
    """Nodes and messages of a recipe's data set, known without its files; a RunError if they are not."""
    known = OGB.get(recipe.data.dataset)
    if known is None:
        raise RunError(f"{recipe.data.dataset}: its size is known only when it is read; give --nodes and --edges")
    both_ways = known.undirected or recipe.data.undirected
    return known.num_nodes, known.num_edges * (2 if both_ways else 1)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def graph_bytes(graph: Graph) -> int:
    """Bytes of a graph on a GPU; 0 on the CPU, where it may be mapped from a file."""
    tensors = (graph.x, graph.edge_index, graph.edge_attr, graph.y)
    return num_bytes(t for t in tensors if t is not None and t.is_cuda)


def _partition_s(graph: Graph, recipe: Recipe, epoch: int, device: torch.device) -> float:
    """Seconds in which all parts of an epoch are made, and moved to the device."""
    start = time.perf_counter()
    for part in epoch_parts(graph, recipe.train, epoch):
        part.to(device)
    finish(device)
    return time.perf_counter() - start
