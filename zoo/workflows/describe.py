"""Describe a run directory, a bundle, or a training run that begins."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from zoo.data.graph import Graph, Split
from zoo.hub.config import read_config
from zoo.ops.dispatch import backend_for, named_backend
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured
from zoo.spec.shape import GraphShape
from zoo.workflows.evaluate import num_parts_of
from zoo.workflows.load import is_run
from zoo.workflows.run_dir import RunDir
from zoo.workflows.session import device_name

# Float32 tensors of the size of all weights that a step holds: weights, gradients, and the optimizer's state.
_NUM_COPIES = {"adam": 4, "adamw": 4, "rmsprop": 3, "sgd": 2}


def describe_folder(folder: Path) -> tuple[Recipe, GraphShape | None, tuple[Measured, ...]]:
    """The recipe, the shape if it is known yet, and the measured figures.

    Raises:
        ZooError: if the folder is neither a run directory nor a bundle, or is damaged.
    """
    if not is_run(folder):
        config = read_config(folder)
        return config.recipe, config.shape, config.results
    run = RunDir(folder)
    best, results = run.best(), run.results()
    shape = None if best is None else best.epoch.shape
    return run.recipe(), shape, () if results is None else results.results


def machine_lines(device: torch.device) -> list[str]:
    """Lines on what a run computes with; known before any data are loaded."""
    backend = backend_for(device)[0]
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    lines = [f"device  {device_name(device)}{threads}, kernels: {backend}"]
    if device.type == "cpu" and backend == "chunked" and named_backend() is None:
        lines.append('hint    these kernels are slow; pip install "revgnn-zoo[fast]" installs fast ones')
    return lines


def task_lines(recipe: Recipe, graph: Graph, split: Split, model: nn.Module) -> list[str]:
    """Lines on the sizes of a graph and a model that is trained on it, and on how long that goes on."""
    spec, train = recipe.model, recipe.train
    shape, num_edges = graph.shape, graph.edge_index.shape[1]
    features = f"{shape.num_node_features:,} node and {shape.num_edge_features:,} edge features"
    nodes = f"{len(split.train):,} train, {len(split.valid):,} valid, {len(split.test):,} test"
    num_parameters = sum(p.numel() for p in model.parameters())
    mib = num_parameters * 4 * _NUM_COPIES[train.optimizer.type] / 2**20
    num_parts = num_parts_of(train.partition)
    num_steps = math.ceil(num_parts / train.parts_per_step)
    steps = "1 step" if num_steps == 1 else f"{num_steps:,} steps"
    return [
        f"data    {graph.name}: {graph.num_nodes:,} nodes, {num_edges:,} edges, {features}",
        f"task    {graph.task}, {shape.num_tasks:,} outputs; {nodes}",
        f"model   {spec.type}, {spec.num_layers:,} layers x {spec.hidden_channels:,} channels, "
        f"{num_parameters:,} parameters",
        f"memory  {mib:,.1f} MiB for weights, gradients and {train.optimizer.type}, besides data and activations",
        f"length  at most {train.num_epochs:,} epochs of {steps}",
    ]
