"""A run as a user sees it: its sizes, a bar in a terminal or lines elsewhere, and TensorBoard if installed."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from typing_extensions import Self

from zoo.data.graph import Graph, Split
from zoo.ops.dispatch import backend_for, named_backend
from zoo.spec.recipe import Recipe
from zoo.workflows import ranks
from zoo.workflows.memory import peak
from zoo.workflows.session import device_name

_writer_class: Any = None
try:
    from torch.utils.tensorboard import SummaryWriter

    _writer_class = SummaryWriter
except ImportError:
    # TensorBoard is not a dependency.
    pass


# Long enough for a rate of steps that will hold, short enough to stop a run that would take a month.
_SETTLED_S = 5.0
# On a narrower terminal the figures replace the bar, and these are shown in metrics.jsonl alone.
_WIDE_COLUMNS = 100
_NARROW_BAR = "{desc} [{elapsed}<{remaining}{postfix}]"
_ON_WIDE_ONLY = ("epoch_s", "memory")
# Float32 tensors of the size of all weights that a step holds: weights, gradients, and the optimizer's state.
_NUM_COPIES = {"adam": 4, "adamw": 4, "rmsprop": 3, "sgd": 2}


class Progress:
    """Reports on stderr. A stderr that goes away does not stop the run.

    Args:
        total: steps of the whole task.
        unit: what one step is called.
        quiet: show nothing.
        done: steps that an earlier process has done.
    """

    def __init__(self, total: int, *, unit: str, quiet: bool = False, done: int = 0) -> None:
        self._bar: tqdm[Any] | None = None
        self._quiet = quiet
        self._warned: set[tuple[str, str]] = set()
        self._left, self._steps, self._settled_at = total - done, 0, 0.0
        if not quiet and _has_room_for_a_bar():
            self._is_narrow = os.get_terminal_size(sys.stderr.fileno()).columns < _WIDE_COLUMNS
            shape = _NARROW_BAR if self._is_narrow else None
            self._bar = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, smoothing=0.1, bar_format=shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._safely(lambda bar: bar.close())

    def step(self, label: str, figures: Mapping[str, str]) -> None:
        """One step is done, at a place such as ``epoch 3/200``; ``figures`` are the latest of each."""
        self._show(label, figures, num_steps=1)
        self._show_time_left()

    def stage(self, label: str) -> None:
        """The run is at something that is not a step, such as an evaluation."""
        self._safely(lambda bar: bar.set_description(label))

    def line(self, text: str) -> None:
        """Print a line that stays above the bar."""
        if self._quiet:
            return
        try:
            tqdm.write(text, file=sys.stderr) if self._bar else print(text, file=sys.stderr, flush=True)
        except OSError:
            self._quiet = True

    def warning(self, label: str, text: str) -> None:
        """A warning, shown once for each label whatever its numbers are: they differ from run to run."""
        key = re.sub(r"\d+", "0", text)
        if (label, key) not in self._warned:
            self._warned.add((label, key))
            self.line(f"Warning: {label}: {text}")

    def figures(self, label: str, figures: Mapping[str, str]) -> None:
        """The figures of an evaluation: on the bar or, where there is none, as a line."""
        if self._bar is None:
            self.line("  ".join([label, *(f"{name} {value}" for name, value in figures.items())]))
        self._show(label, figures, num_steps=0)

    def _show(self, label: str, figures: Mapping[str, str], *, num_steps: int) -> None:
        """Put the figures that the terminal has room for on the bar, and move it on."""

        def show(bar: tqdm[Any]) -> None:
            bar.set_description(label, refresh=False)
            shown = {name: text for name, text in figures.items() if not (self._is_narrow and name in _ON_WIDE_ONLY)}
            # The bar is drawn at each evaluation, and as often as it chooses between them.
            bar.set_postfix(shown, refresh=not num_steps)
            bar.update(num_steps)

        self._safely(show)

    def _show_time_left(self) -> None:
        """Show once, after the first steps, how long all others will take if that is more than a minute."""
        self._left -= 1
        self._steps += 1
        now = time.monotonic()
        if self._steps == 1:
            # The first step is not counted: it compiles kernels.
            self._settled_at = now
        elif self._settled_at and now - self._settled_at >= _SETTLED_S:
            left_s = self._left * (now - self._settled_at) / (self._steps - 1)
            self._settled_at = 0.0
            if left_s > 60:
                self.line(f"about {duration_in_words(left_s)} left for {self._left:,} more steps")

    def _safely(self, action: Any) -> None:
        if self._bar is None:
            return
        try:
            action(self._bar)
        except OSError:
            self._bar, self._quiet = None, True


def log(*lines: str, quiet: bool = False) -> None:
    """Print lines on stderr, unless that has gone away."""
    if not quiet:
        with suppress(OSError):
            print(*lines, sep="\n", file=sys.stderr, flush=True)


def rank_costs(began: float, device: torch.device) -> dict[str, tuple[float, ...]]:
    """Peak memory of all ranks, and how long each was busy since its clock showed a time; as the results name them."""
    costs = ranks.exchange((peak(device), round(ranks.group.busy_clock() - began, 3)))
    return dict(zip(("rank_memory_bytes", "rank_busy_s"), zip(*costs, strict=True), strict=True))


def duration_in_words(seconds: float) -> str:
    """A duration in its largest whole unit and the next, such as "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} days {minutes // 60 % 24} h"


def _has_room_for_a_bar() -> bool:
    """True if stderr is a terminal that knows its size; a bar of no width would show nothing."""
    try:
        return sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (OSError, ValueError):
        return False


class Board:
    """TensorBoard's event files in a folder, if the package is installed; those from ``step`` on are replaced."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step = folder, step
        self._writer: Any = None

    def add(self, record: Mapping[str, float], step: int) -> None:
        """Add the figures of an epoch."""
        if self._writer is None and _writer_class is not None:
            # Not before there is something to write: a run that fails at once leaves no folder behind.
            self._writer = _writer_class(str(self._folder), purge_step=self._step)
        if self._writer is not None:
            for name, value in record.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer is not None:
            self._writer.close()


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
    num_steps = math.ceil(train.partition.num_parts / train.parts_per_step)
    steps = "1 step" if num_steps == 1 else f"{num_steps:,} steps"
    return [
        f"data    {graph.name}: {graph.num_nodes:,} nodes, {num_edges:,} edges, {features}",
        f"task    {graph.task}, {shape.num_tasks:,} outputs; {nodes}",
        f"model   {spec.type}, {spec.num_layers:,} layers x {spec.hidden_channels:,} channels, "
        f"{num_parameters:,} parameters",
        f"memory  {mib:,.1f} MiB for weights, gradients and {train.optimizer.type}, besides data and activations",
        f"length  at most {train.num_epochs:,} epochs of {steps}",
    ]
