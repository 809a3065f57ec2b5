"""Train from Python, on a data set by name or on a graph in memory."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import RunError
from zoo.spec.recipe import Recipe, read_recipe
from zoo.workflows.graphs import EdgePrecision, adapt_recipe, as_graph
from zoo.workflows.run_dir import GRAPH_FILE, RECIPE_FILE, RunDir, fresh_folder
from zoo.workflows.train import train as train_recipe


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    data: object = None,
    out: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    on_epoch: Callable[[Mapping[str, float]], object] | None = None,
    resume: bool = False,
    baseline: bool = False,
    device: str | None = None,
    num_threads: int | None = None,
    capture: bool = False,
    edge_precision: EdgePrecision = "fp32",
    quiet: bool = False,
) -> RunDir:
    """Train a recipe and evaluate its best weights, as ``revgnn-zoo train`` does.

    A graph that is given is kept in the run directory, so that the run can be resumed, evaluated and moved like any
    other. The recipe is adapted to it: loss and metric follow from the labels where the recipe's do not fit them.

    >>> import zoo
    >>> losses = []
    >>> run = zoo.train("quickstart", out="runs/mine", quiet=True, device="cpu",
    ...     overrides={"model.num_layers": 2, "model.hidden_channels": 8, "train.num_epochs": 2},
    ...     on_epoch=lambda record: losses.append(record["train_loss"]))
    >>> len(losses)
    2
    >>> [comparison.figure.split for comparison in zoo.evaluate(run, split="test", quiet=True, device="cpu")]
    ['test']

    Args:
        recipe: the name of a shipped recipe, a JSON file, or a recipe; with ``resume`` also the folder of a run, which
            holds its recipe and its graph.
        data: a ``torch_geometric.data.Data`` or a ``zoo.Graph``; None: the recipe's own data set.
        out: the run directory; None: a new folder below ``runs``.
        overrides: values of the recipe by dotted key, such as ``{"train.num_epochs": 5}``.
        on_epoch: called after each epoch with its line of ``metrics.jsonl``: ``epoch``, ``train_loss`` and more; for
            example ``wandb.log``.
        resume: continue an unfinished run, or one that has fewer epochs than the recipe; start one that is not there.
        baseline: also fit a logistic or ridge regression to the node features.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        num_threads: of the CPU.
        capture: replay CUDA graphs of one reversible layer for all layers, on a GPU.
        edge_precision: of the edge features on a GPU; "fp16" halves their memory.
        quiet: show no progress.

    Returns:
        The run directory, which ``zoo.evaluate``, ``zoo.load`` and ``zoo.push`` take; ``results()`` holds its figures.

    Raises:
        RunError: if the run directory or an option cannot be used, or a loss or gradient is not finite.
        ZooError: if the recipe does not fit its data, or these cannot be loaded.
    """
    if edge_precision not in typing.get_args(EdgePrecision):
        raise RunError(
            f"edge_precision: expected one of {', '.join(typing.get_args(EdgePrecision))}, got {edge_precision!r}"
        )
    if on_epoch is not None and not callable(on_epoch):
        raise RunError(f"on_epoch: expected a function, got {on_epoch!r}")
    if resume and isinstance(recipe, str | os.PathLike) and (Path(recipe) / RECIPE_FILE).is_file():
        folder = Path(recipe)
        chosen = RunDir(folder).recipe(overrides)
    else:
        chosen = read_recipe(recipe, overrides)
        folder = fresh_folder(chosen.name) if out is None else Path(out)
    graph = None
    if data is not None:
        graph = as_graph(data)
        chosen = adapt_recipe(chosen, graph, str((folder / GRAPH_FILE).absolute()))
    train_recipe(
        chosen,
        folder,
        graph=graph,
        keep_graph=graph is not None,
        on_epoch=on_epoch,
        resume=resume,
        baseline=baseline,
        device=device,
        num_threads=num_threads,
        capture=capture,
        edge_precision=edge_precision,
        quiet=quiet,
    )
    return RunDir(folder)
