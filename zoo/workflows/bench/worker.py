"""One measurement in a process of its own: ``python -m zoo.workflows.bench.worker '{"case": ..., ...}'``."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.graph import Graph, Part, Split
from zoo.errors import ZooError
from zoo.layers.capture import capture_layers
from zoo.spec.recipe import Recipe
from zoo.spec.shape import input_shape
from zoo.spec.train import TrainSpec
from zoo.workflows import session
from zoo.workflows.bench.case import Case, build, case_graph, read_case_recipe
from zoo.workflows.bench.peers import edge_list
from zoo.workflows.evaluate import Protocol, predict
from zoo.workflows.graphs import place_graph
from zoo.workflows.memory import finish, peak, prompt_release, reset_peak
from zoo.workflows.objective import KnownLabels, Objective
from zoo.workflows.train import build_optimizer, epoch_parts, training_step


def measure(case: Case, *, device: torch.device, watch_memory: bool) -> dict[str, Any]:
    """Time a case and measure the memory it needs. One step, not counted, goes before.

    Returns:
        What was measured: ``num_nodes``, ``num_edges`` (directed) and ``num_parts`` of the graph, ``num_parameters``;
        the seconds of each step in ``step_s`` and their ``median_step_s``; ``epoch_s``, that of all parts if steps are
        as long as those measured, and in training ``partition_s``, the share of it in which the parts are made.
        In bytes, if memory is watched: ``graph_bytes`` of a whole graph on a GPU, ``part_bytes`` of the largest part,
        ``state_bytes`` of parameters, gradients and optimizer, ``peak_bytes`` of the steps beyond all these.

    Raises:
        ZooError: if there is no such recipe or graph, or they do not go together.
    """
    recipe = read_case_recipe(case)
    graph, split = case_graph(case, recipe)
    facts = {
        "num_nodes": graph.num_nodes,
        "num_edges": graph.num_edges * (2 if graph.undirected else 1),
    }
    model = build(case, recipe, input_shape(recipe, graph.shape)).to(device)
    if case.capture:
        capture_layers(model)
    facts["num_parameters"] = sum(parameter.numel() for parameter in model.parameters())
    work = _train if case.work == "train" else _evaluate
    with prompt_release() if watch_memory else nullcontext():
        measured = work(case, recipe, model, graph, split, device)
    if not watch_memory:
        measured = {key: value for key, value in measured.items() if not key.endswith("_bytes")}
    return {**facts, **measured, "median_step_s": statistics.median(measured["step_s"])}


def _train(
    case: Case, recipe: Recipe, model: nn.Module, graph: Graph, split: Split, device: torch.device
) -> dict[str, Any]:
    spec = recipe.train
    objective = Objective(spec, graph, split, device)
    graph = place_graph(graph, device, case.edge_precision)
    optimizer = build_optimizer(spec.optimizer, model)

    def prepared(part: Part) -> Part:
        # PyG wants a list of edges; a user would make it once for each part, so it is no part of a step.
        return part._replace(csr=edge_list(part.csr)) if case.implementation.startswith("pyg") else part  # type: ignore[arg-type]

    parts = (prepared(part) for epoch in range(100) for part, _ in _timed_parts(graph, spec, -epoch, device))
    next(part for part in parts if training_step(model, optimizer, part, objective, spec) is not None)
    del parts
    gradient_bytes = _num_bytes(p for p in model.parameters() if p.requires_grad)
    step_s: list[float] = []
    partition_s: list[float] = []
    part_bytes, peak_bytes, num_parts, epoch = [0], [0], 0, 0
    while len(step_s) < case.num_steps:
        epoch, num_parts, spent_s = epoch + 1, 0, 0.0
        for part, seconds in _timed_parts(graph, spec, epoch, device):
            num_parts, spent_s = num_parts + 1, spent_s + seconds
            if len(step_s) == case.num_steps:
                continue
            part = prepared(part)
            optimizer.zero_grad(set_to_none=True)
            before = reset_peak(device)
            start = _now(device)
            loss = training_step(model, optimizer, part, objective, spec)
            elapsed_s = _now(device) - start
            if loss is not None:
                step_s.append(elapsed_s)
                peak_bytes.append(peak(device) - before - gradient_bytes)
                part_bytes.append(_num_bytes(_tensors(part)))
        partition_s.append(spent_s)
    epoch_s = statistics.median(partition_s) + num_parts * statistics.mean(step_s)
    return {
        "num_parts": num_parts,
        "step_s": step_s,
        "partition_s": statistics.median(partition_s),
        "epoch_s": epoch_s,
        "graph_bytes": _graph_bytes(graph),
        "part_bytes": max(part_bytes),
        "state_bytes": _num_bytes(model.parameters())
        + gradient_bytes
        + _num_bytes(t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)),
        "peak_bytes": max(peak_bytes),
    }


def _evaluate(
    case: Case, recipe: Recipe, model: nn.Module, graph: Graph, split: Split, device: torch.device
) -> dict[str, Any]:
    known = KnownLabels.of(recipe.train, graph, split, device)
    graph = place_graph(graph, device, case.edge_precision)
    protocol = Protocol(1, case.num_parts, recipe.train.seed, "eval")
    elapsed_s: list[float] = []
    peak_bytes = []
    for _ in range(1 + case.num_steps):
        before = reset_peak(device)
        start = _now(device)
        predict(model, graph, protocol, device=device, precision=recipe.train.precision, known=known)
        elapsed_s.append(_now(device) - start)
        peak_bytes.append(peak(device) - before)
    return {
        "num_parts": case.num_parts,
        "step_s": [seconds / case.num_parts for seconds in elapsed_s[1:]],
        "epoch_s": statistics.mean(elapsed_s[1:]),
        "graph_bytes": _graph_bytes(graph),
        "part_bytes": 0,
        "state_bytes": _num_bytes(model.parameters()),
        "peak_bytes": max(peak_bytes[1:]),
    }


def _timed_parts(graph: Graph, spec: TrainSpec, epoch: int, device: torch.device) -> Iterator[tuple[Part, float]]:
    """Each part of an epoch on the device, and the seconds that it took to make it; of the first with the partition."""
    start = _now(device)
    parts = epoch_parts(graph, spec, epoch)
    while (part := next(parts, None)) is not None:
        part = part.to(device)
        yield part, _now(device) - start
        start = _now(device)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told to."""
    finish(device)
    return time.perf_counter()


def _tensors(part: Part) -> list[Tensor]:
    edges = part.csr if isinstance(part.csr, tuple) else [part.csr]
    return [t for t in (part.nodes, part.x, part.edge_attr, *edges) if t is not None]


def _graph_bytes(graph: Graph) -> int:
    """What a whole graph takes on a GPU, 0 on the CPU, where it may be mapped from a file."""
    tensors = [t for t in (graph.x, graph.edge_index, graph.edge_attr, graph.y) if t is not None and t.is_cuda]
    return _num_bytes(tensors)


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> int:
    """Read the measurement to make from the command line, print its result as JSON; an error is one line on stderr."""
    request = json.loads(sys.argv[1])
    # JSON has no tuples.
    case = Case.model_validate_json(json.dumps(request["case"]))
    try:
        device = session.start(request["device"], request["num_threads"])
        measured = measure(case, device=device, watch_memory=request["watch_memory"])
    except ZooError as error:
        print(" ".join(str(error).split("\n")), file=sys.stderr)
        return error.exit_code
    json.dump(measured, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
