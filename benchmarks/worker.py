"""One case in a process of its own, see ``zoo.workflows.worker``."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from benchmarks.peers import PyGModel
from benchmarks.suites import Case
from zoo.errors import RunError
from zoo.models.factory import build_model
from zoo.spec.base import Spec
from zoo.spec.conv import GenConvSpec, PlainAggr
from zoo.spec.model import RevSpec
from zoo.spec.recipe import Recipe
from zoo.spec.shape import GraphShape, input_shape
from zoo.workflows import session
from zoo.workflows.evaluate import Protocol, predict
from zoo.workflows.graphs import place_graph
from zoo.workflows.memory import measure_steps, release_eagerly
from zoo.workflows.step_cost import StepCost, graph_bytes, measure_training, num_bytes, random_graph
from zoo.workflows.worker import serve


class CaseRequest(Spec):
    """A case, the device (``cpu``, ``cuda`` or ``cuda:N``), and the number of CPU threads."""

    case: Case
    device: str
    num_threads: int | None = None


def build(case: Case, recipe: Recipe, shape: GraphShape) -> nn.Module:
    """The model of a case.

    Raises:
        RunError: if PyG's side is asked for and the recipe's model is not the one that it is written for.
    """
    session.seed_global(recipe.train.seed, "init")
    if not case.implementation.startswith("pyg"):
        return build_model(recipe.model, shape)
    conv = GenConvSpec(type="gen", aggr=PlainAggr(type="max"), edge_encoder="per_layer")
    dropout = recipe.model.dropout
    known = RevSpec(
        type="rev", num_layers=case.num_layers, hidden_channels=case.channels, dropout=dropout, conv=conv, num_groups=2
    )
    if recipe.model != known:
        raise RunError(f"{recipe.name}: PyG's side is written for models like rev_deep's; this recipe's is another")
    return PyGModel(case.num_layers, case.channels, shape, dropout=dropout, reversible=case.implementation == "pyg")


def measure(case: Case, device: torch.device) -> StepCost:
    """Measure a case on a random graph.

    Raises:
        ZooError: if there is no such recipe or model, or memory runs out.
    """
    recipe = case.read_recipe()
    with session.oom_as_run_error(case.label, "use a machine with more"):
        graph, split = random_graph(recipe, case.num_nodes, case.num_edges)
        model = build(case, recipe, input_shape(recipe, graph.shape)).to(device)
        if case.work == "train":
            options = case.model_dump(include={"num_steps", "capture", "edge_precision"})
            return measure_training(model, recipe, graph, split, device, **options)
        graph = place_graph(graph, device, case.edge_precision)
        protocol = Protocol(1, case.num_parts, recipe.train.seed, "eval")

        def evaluate() -> None:
            predict(model, graph, protocol, device=device, precision=recipe.train.precision)

        # Nothing has a gradient here.
        model.requires_grad_(False)
        with release_eagerly():
            _, peak_bytes = measure_steps(evaluate, model, device=device, num_steps=1)
        seconds, _ = measure_steps(evaluate, model, device=device, num_steps=case.num_steps)
    return StepCost(
        num_nodes=graph.num_nodes,
        num_edges=2 * graph.num_edges,
        num_parts=case.num_parts,
        num_parameters=sum(p.numel() for p in model.parameters()),
        step_s=tuple(s / case.num_parts for s in seconds),
        median_step_s=statistics.median(seconds) / case.num_parts,
        partition_s=0.0,
        epoch_s=statistics.median(seconds),
        graph_bytes=graph_bytes(graph),
        part_bytes=0,
        state_bytes=num_bytes(model.parameters()),
        peak_bytes=peak_bytes,
    )


def work(text: str) -> dict[str, Any]:
    """The content of a StepCost, for the JSON of a CaseRequest."""
    request = CaseRequest.model_validate_json(text)
    device = session.start(request.device, request.num_threads)
    return measure(request.case, device).model_dump(mode="json")


if __name__ == "__main__":
    serve(work)
