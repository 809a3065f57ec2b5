"""Evaluate a model part by part: logits averaged over views, then one figure for each split, beside published ones."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.data.graph import Graph, Split
from zoo.data.metrics import evaluate as score
from zoo.data.partition import RandomParts
from zoo.errors import DataError, RecipeError, RunError, ZooWarning
from zoo.hub.config import CONFIG_FILE, read_config
from zoo.layers.equilibrium import EquilibriumLayer
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured, ReportedResult, protocol_in_words
from zoo.spec.shape import input_shape
from zoo.spec.train import EvalSpec, TestSpec, lower_is_better
from zoo.workflows import ranks, session
from zoo.workflows.create import ZooInfo, info_of
from zoo.workflows.graphs import as_graph, graph_digest, is_synthetic, place_graph, recipe_graph
from zoo.workflows.load import is_run, load_located, locate
from zoo.workflows.objective import KnownLabels
from zoo.workflows.options import EdgePrecision
from zoo.workflows.progress import Progress
from zoo.workflows.run_dir import RunDir
from zoo.workflows.step import clusters_of

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Protocol:
    """A way to measure a figure: logits averaged over ``num_views`` random partitions into ``num_parts`` parts.

    Attributes:
        num_views: V.
        num_parts: P; 1 is the whole graph.
        seed: with the purpose and the view's number it decides the partitions.
        purpose: evaluations with different purposes see different partitions.
        num_clusters: that the parts are made of; 0: of single nodes.
    """

    num_views: int
    num_parts: int
    seed: int
    purpose: str
    num_clusters: int = 0

    @property
    def num_steps(self) -> int:
        """Number of parts that are run in all."""
        return self.num_views * self.num_parts

    def __str__(self) -> str:
        return protocol_in_words(self.num_views, self.num_parts, self.num_clusters)


def eval_protocol(recipe: Recipe) -> Protocol:
    """The protocol of validation during training."""
    return make_protocol(recipe.eval, recipe.train.seed, "eval")


def test_protocol(recipe: Recipe) -> Protocol:
    """The protocol of the final evaluation, on the best weights."""
    return make_protocol(recipe.test, recipe.train.seed, "test")


def make_protocol(
    spec: EvalSpec | TestSpec, seed: int, purpose: str, num_views: int | None = None, num_parts: int | None = None
) -> Protocol:
    """The protocol of a recipe's evaluation or, where they are given, with other numbers of views and parts.

    Raises:
        RunError: if there are more parts than clusters.
    """
    num_views = spec.num_views if num_views is None else num_views
    num_parts = spec.partition.num_parts if num_parts is None else num_parts
    # Every view of an undivided graph is the same.
    if num_parts == 1:
        return Protocol(1, 1, seed, purpose)
    if 0 < (most := spec.partition.num_clusters) < num_parts:
        raise RunError(f"num_parts: expected 1 to {most:,}, the number of clusters of the recipe, got {num_parts:,}")
    return Protocol(num_views, num_parts, seed, purpose, most)


def views(graph: Graph, protocol: Protocol, num_done: int = 0) -> Iterator[tuple[RandomParts, int]]:
    """All parts of all views but the first ``num_done``, each as a partition and a number in it; the same every time.

    Ranks take them in turn, and only a rank's own can be built.
    """
    first, clusters = -num_done, clusters_of(graph, protocol.num_clusters)
    for view in range(protocol.num_views):
        own = [(first + index) % ranks.group.size == ranks.group.rank for index in range(protocol.num_parts)]
        generator = session.generator(protocol.seed, protocol.purpose, view)
        parts = RandomParts(graph, protocol.num_parts, generator, None if all(own) else own.__getitem__, clusters)
        yield from ((parts, index) for index in range(max(-first, 0), len(parts)))
        first += len(parts)


@dataclass
class Partial:
    """A prediction that can go on where it was stopped: the [n, T] sum of the logits so far, on the CPU of rank 0."""

    total: Tensor
    num_done: int = 0

    @classmethod
    def begin(cls, num_nodes: int, num_tasks: int) -> Partial:
        """Nothing so far; ranks other than 0 have no rows."""
        return cls(torch.zeros(num_nodes if ranks.group.rank == 0 else 0, num_tasks))


@dataclass(frozen=True)
class Logits:
    """Logits [n, T] of some nodes, whose ids are given in ascending order."""

    nodes: Tensor
    rows: Tensor

    def __getitem__(self, nodes: Tensor) -> Tensor:
        """The rows of the nodes with these ids."""
        return self.rows[torch.searchsorted(self.nodes, nodes)]


@torch.no_grad()
def predict(
    model: nn.Module,
    graph: Graph,
    protocol: Protocol,
    *,
    device: torch.device,
    precision: str,
    known: KnownLabels | None = None,
    nodes: Tensor | None = None,
    on_part: Callable[[], None] = lambda: None,
    partial: Partial | None = None,
) -> Tensor:
    """Run a model on a graph, part by part, without dropout; ranks share the parts, and rank 0 gets the logits.

    Args:
        model: on ``device``; comes back in the mode it was in.
        graph: on any device.
        protocol: which parts.
        device: where the model computes.
        precision: "fp32" or "bf16".
        known: the labels that a model of a recipe with label reuse reads, on ``device``; None for all others.
        nodes: [n] ids, whose logits are kept; None: all N.
        on_part: called after each part.
        partial: takes the sum so far; parts that are in it already are not run again.

    Returns:
        [n, T] float32 logits on the CPU, averaged over the views; no rows on ranks other than 0.
    """
    training = model.training
    model.eval()
    nodes = torch.arange(graph.num_nodes) if nodes is None else nodes
    row_of = torch.full((graph.num_nodes,), -1)
    row_of[nodes] = torch.arange(len(nodes))
    partial = partial or Partial.begin(len(nodes), graph.num_tasks)
    try:
        todo = views(graph, protocol, partial.num_done)
        while turn := list(islice(todo, ranks.group.size)):
            logits, rows = torch.empty(0), [row_of[parts.nodes(index).cpu()] for parts, index in turn]
            if ranks.group.rank < len(turn):
                parts, index = turn[ranks.group.rank]
                part = parts.build(index).to(device)
                with session.autocast(device, precision):
                    inputs = part.x, part.csr, part.edge_attr, part.edge_weight
                    logits = model(*inputs) if known is None else known.run(model, part)
                # Summed on the CPU, where the logits of all nodes take no memory from the model, and in float32,
                # because sums of bfloat16 would lose digits.
                logits = logits.float().cpu()[rows[ranks.group.rank] >= 0]
                # Freed before the next part is built, which would otherwise double the memory.
                del part, inputs
            for places, sent in zip(rows, ranks.gather(logits), strict=False):
                partial.total[places[places >= 0]] += sent
            partial.num_done += len(turn)
            for _ in turn:
                on_part()
    finally:
        # Also after a stop, which on_part raises.
        model.train(training)
    return partial.total if protocol.num_views == 1 else partial.total / protocol.num_views


@contextmanager
def changed_steps(model: nn.Module, num_steps: int | None) -> Iterator[None]:
    """Let a model whose steps share weights take another number of them for a while; None: its own.

    Of an equilibrium these are the most iterations of a solve.

    Raises:
        RunError: if every layer has weights of its own, so that there are none for further ones.
    """
    if num_steps is None:
        yield
        return
    stack: Any = getattr(model, "stack", None)
    name, value = "num_steps", cast(Any, num_steps)
    if isinstance(stack, EquilibriumLayer):
        name, value = "solver", replace(stack.solver, max_iters=num_steps)
    else:
        distinct: Any = getattr(stack, "layers", None) or getattr(stack, "blocks", ())
        if not len(distinct) < getattr(stack, "num_steps", 0):
            raise RunError(
                "--steps: every layer of this model has weights of its own; expected shared ones or family deq"
            )
    before = getattr(stack, name)
    setattr(stack, name, value)
    try:
        yield
    finally:
        setattr(stack, name, before)


def measure(
    graph: Graph, split: Split, metric: str, logits: Tensor | Logits, protocol: Protocol, splits: Sequence[str] = SPLITS
) -> list[Measured]:
    """Score logits on some splits.

    Args:
        graph: for its labels.
        split: its nodes.
        metric: name.
        logits: [N, T], or of the nodes of these splits.
        protocol: how the logits were made; noted beside each figure.
        splits: which of train, valid and test.

    Raises:
        DataError: if the metric is not defined for these labels.
    """
    figures = []
    for name in splits:
        nodes = getattr(split, name).cpu()
        try:
            value = score(metric, graph.y.cpu()[nodes], logits[nodes])
        except DataError as error:
            raise DataError(f"{graph.name}: {name} nodes: {error}") from error
        views = {key: getattr(protocol, key) or None for key in ("num_views", "num_parts", "num_clusters")}
        figures.append(Measured.model_validate({"split": name, "metric": metric, "value": value, **views}))
    return figures


def evaluate(
    reference: str | os.PathLike[str] | nn.Module,
    data: object = None,
    *,
    split: str | Sequence[str] = SPLITS,
    num_views: int | None = None,
    num_parts: int | None = None,
    num_steps: int | None = None,
    device: str | None = None,
    num_threads: int | None = None,
    edge_precision: EdgePrecision = "fp32",
    quiet: bool = False,
) -> list[Comparison]:
    """Evaluate a model on its own data set, or on another graph.

    >>> import zoo
    >>> test = zoo.evaluate("quickstart", split="test", device="cpu", quiet=True)[0]
    >>> test.figure.metric, test.figure.value > 0.9, test.is_within
    ('accuracy', True, True)

    Args:
        reference: a run, a bundle or a name, as for ``zoo.load``; or a model of the zoo.
        data: a ``torch_geometric.data.Data``, a ``zoo.Graph``, or the path of the graph now, for a model of a graph of
            the user's own; None: as the model's recipe says.
        split: which of train, valid and test.
        num_views: V; None: as the recipe's test says.
        num_parts: P; None: as the recipe's test says.
        num_steps: steps that the stack takes, more or fewer than in training, for models whose steps share weights; of
            an equilibrium the most iterations. The figures are then compared with none. None: as the recipe says.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        num_threads: of the CPU.
        edge_precision: of the edge features on a GPU; "fp16" halves their memory.
        quiet: show no progress.

    Returns:
        A figure for each split, beside what was published under the same protocol.

    Raises:
        ZooError: if the model or its data cannot be loaded or do not fit together.
    """
    splits = (split,) if isinstance(split, str) else tuple(split)
    unknown = [repr(name) for name in splits if name not in SPLITS]
    if unknown or not splits:
        raise RunError(f"split: expected some of {', '.join(SPLITS)}, got {(unknown or ['none'])[0]}")
    chosen = session.start(device, num_threads)
    model = reference if isinstance(reference, nn.Module) else load_located(locate(reference, quiet=quiet))
    info = info_of(model)
    recipe, own = info.recipe, None
    label = recipe.name if isinstance(reference, nn.Module) else os.fspath(reference)
    if isinstance(data, str | os.PathLike):
        if recipe.data.dataset != "file":
            raise RecipeError(f"--data goes with the data set 'file' only; this model's is {recipe.data.dataset!r}")
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": os.fspath(data)})})
    elif data is not None:
        own = as_graph(data)
    graph, nodes = recipe_graph(recipe, own)
    # Otherwise the first matrix product would fail, with an error that names neither graph nor model.
    check_shape(graph, info)
    # A graph given as an argument may be a new one; a file or a data set should be the one that was trained on.
    recorded = "" if own is not None or info.folder is None else _data_digest(info.folder)
    if recorded and recorded != graph_digest(graph, nodes):
        text = f"{label}: the data are not those that the model was trained on"
        warnings.warn(text, ZooWarning, stacklevel=2)
    protocol = make_protocol(recipe.test, recipe.train.seed, "test", num_views, num_parts)
    if (parts := protocol.num_parts) > graph.num_nodes:
        raise RunError(f"--parts {parts:,}: {graph.name} has only {graph.num_nodes:,} nodes")
    scored = nodes.nodes(*splits)
    with (
        changed_steps(model, num_steps),
        session.oom_as_run_error(label, "raise --parts"),
        Progress(protocol.num_steps, unit="part", quiet=quiet) as progress,
    ):
        logits = predict(
            model.to(chosen),
            place_graph(graph, chosen, edge_precision),
            protocol,
            device=chosen,
            precision=recipe.train.precision,
            known=KnownLabels.of(recipe.train, graph, nodes, chosen),
            nodes=scored,
            on_part=lambda: progress.step("evaluating", {}),
        )
    figures = ranks.share(
        measure(graph, nodes, recipe.metric, Logits(scored, logits), protocol, splits) if ranks.group.rank == 0 else []
    )
    sizes = {name: len(getattr(nodes, name)) for name in splits}
    if num_steps is not None or is_synthetic(recipe, graph):
        # The source reports figures on the real data with its own steps, which cannot be compared with others.
        recipe = recipe.model_copy(update={"source": None})
    compared = compare_with_published(figures, info.results if num_steps is None else (), recipe, sizes)
    return [replace(comparison, commit=info.commit) for comparison in compared]


def check_shape(graph: Graph, info: ZooInfo) -> None:
    """Raise a RunError if a graph, as the recipe prepares it, has other widths than the model was made for."""
    shape = input_shape(info.recipe, graph.shape)
    if shape != info.shape:
        raise RunError(f"{graph.name}: the graph has {shape!r}, the model was made for {info.shape!r}")


def _data_digest(folder: Path) -> str:
    """SHA-256 of the data that the model of a run or a bundle was trained on; empty if it is not known."""
    if is_run(folder):
        results = RunDir(folder).results()
        return "" if results is None else results.data_sha256
    return read_config(folder).provenance.data_sha256


# Another device or library may round a sum otherwise and so turn a few predictions over.
_ROUNDING = 5e-4
_NUM_FLIPS = 2
# A published mean stands for runs of several seeds; two deviations hold 95 % of them.
_NUM_DEVIATIONS = 2.0
_UNSTATED_DEVIATION = 0.005


@dataclass(frozen=True)
class Comparison:
    """A measured figure and the published one.

    Attributes:
        figure: what was measured.
        published: the figure under the same protocol; None: there is none.
        tolerance: how far off it may be.
        origin: who published it: "config.json" or the source that the recipe names.
        elsewhere: what was published of this split and metric under other protocols, if nothing under this one.
        commit: of the model that was measured; empty if it does not come from the Hub.
    """

    figure: Measured
    published: float | None = None
    tolerance: float = 0.0
    origin: str = ""
    elsewhere: tuple[ReportedResult, ...] = ()
    commit: str = ""

    @property
    def is_within(self) -> bool:
        """True if the figure is close enough to the published one, or none was published."""
        return self.published is None or abs(self.figure.value - self.published) <= self.tolerance

    @property
    def is_regression(self) -> bool:
        """True if the figure is not the one recorded with these very weights.

        A source speaks of other weights, perhaps trained for longer: its figures are shown and decide nothing.
        """
        return self.origin == CONFIG_FILE and not self.is_within


def compare_with_published(
    figures: Sequence[Measured], recorded: Sequence[Measured], recipe: Recipe, sizes: Mapping[str, int]
) -> list[Comparison]:
    """Find what was published for each figure, under the same protocol; ``sizes`` are numbers of nodes by split.

    What is recorded with the weights, in ``config.json``, comes first: the same weights on the same partitions must
    give it again, but for rounding and two nodes of the split. Else the recipe's source is quoted, which reports the
    mean of several runs: its figure may be two standard deviations off.
    """
    return [_compare(figure, recorded, recipe, sizes[figure.split]) for figure in figures]


def _compare(figure: Measured, recorded: Sequence[Measured], recipe: Recipe, num_nodes: int) -> Comparison:
    for record in recorded:
        if record.model_copy(update={"value": figure.value}) == figure:
            flips = _NUM_FLIPS / max(num_nodes, 1)
            # An error has the unit of the labels, of which only a share can be said to be small.
            is_error = lower_is_better(figure.metric)
            tolerance = _ROUNDING * abs(record.value) if is_error else max(_ROUNDING, flips)
            return Comparison(figure, record.value, tolerance, CONFIG_FILE)
    reported = [
        other
        for other in (recipe.source.reported if recipe.source else ())
        if (other.split, other.metric) == (figure.split, figure.metric)
    ]
    for other in reported:
        # A number that the source does not state is None here and equals none.
        if (other.num_views, other.num_parts, None) == (figure.num_views, figure.num_parts, figure.num_clusters):
            deviation = _UNSTATED_DEVIATION if other.std is None else other.std
            return Comparison(figure, other.mean, _NUM_DEVIATIONS * deviation, other.source)
    return Comparison(figure, elsewhere=tuple(reported))
