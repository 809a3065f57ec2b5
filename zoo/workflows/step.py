"""One optimizer step: the parts of an epoch, the optimizer, its learning rate, the step itself, and how it may fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.graph import Graph, Part
from zoo.data.partition import RandomParts, metis_clusters
from zoo.errors import RunError
from zoo.files import write_json
from zoo.spec.train import Optimizer, TrainSpec
from zoo.tensor_file import first_nonfinite
from zoo.workflows import ranks, session
from zoo.workflows.objective import Objective
from zoo.workflows.ranks import CommonError, tree_sum
from zoo.workflows.run_dir import REPORT_FILE, RunDir

# One kernel for all parameters where there is one: a thousand layers have twenty thousand small tensors.
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, fused=True),
    "rmsprop": torch.optim.RMSprop,
}


def clusters_of(graph: Graph, num_clusters: int) -> Tensor | None:
    """The clusters of a graph that a partition shares out, found once, by rank 0 for all; None: of single nodes."""
    if num_clusters and num_clusters not in graph.clusters:
        found = metis_clusters(graph, num_clusters) if ranks.group.rank == 0 else torch.empty(0)
        graph.clusters[num_clusters] = ranks.share(found)
    return graph.clusters.get(num_clusters)


def epoch_parts(graph: Graph, spec: TrainSpec, epoch: int, *, shared: bool = True) -> RandomParts:
    """Parts of one epoch, in an order that needs no shuffling, as nodes or clusters fall into parts at random.

    If they are shared, those of a step are taken by the ranks in turn, and only a rank's own can be built.
    """
    num_parts, me = spec.partition.num_parts, ranks.group
    own = [not shared or index % spec.parts_per_step % me.size == me.rank for index in range(num_parts)]
    generator = session.generator(spec.seed, "partition", epoch)
    clusters = clusters_of(graph, spec.partition.num_clusters)
    return RandomParts(graph, num_parts, generator, None if all(own) else own.__getitem__, clusters)


@dataclass(frozen=True)
class StepParts(Sequence[Part]):
    """The parts of an optimizer step, each built, moved and given its random numbers when it is asked for."""

    parts: RandomParts
    indices: range
    device: torch.device
    seed_key: tuple[int | str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        part = self.parts.build(self.indices[index]).to(self.device)
        session.seed_global(*self.seed_key, *([index] if index else []))
        return part


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: Sequence[Part], objective: Objective, spec: TrainSpec
) -> float | None:
    """One optimizer step on the train nodes of some parts, which the ranks share; returns the loss.

    The loss is the mean over all labels that the parts predict, however many each of them has: the gradient is the sum
    of those of the parts, each times its number of labels, over the number of all. Every part finds the statistics of
    batch normalization as they were before the step, which moves them by the mean of what the parts would. If no part
    has a train node, there is no loss, and the weights are unchanged.

    Raises:
        FloatingPointError: if the loss or a gradient is not finite; the weights are then unchanged.
        RunError: if a part is too small for the model's normalization.
    """
    # Freed, not zeroed: gradients would otherwise add to the peak memory of the forward pass.
    optimizer.zero_grad(set_to_none=True)
    # The gradients of a single part are neither weighted nor copied.
    if spec.parts_per_step == 1:
        value = _backward(model, parts[0], objective)
    else:
        value = _PartSums(model, objective).backward(parts)
    if value is None:
        return None
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # Checked before the step: afterwards the weights would hold NaN, and no earlier state might be left to go back to.
    if not bool(torch.isfinite(norm)):
        first = first_nonfinite({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        place = "" if first is None else f", first of all in {first}"
        raise FloatingPointError(f"the loss is {value:.4g}, but the norm of its gradient is {norm.item()}{place}")
    if spec.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), spec.max_grad_norm, norm)
    optimizer.step()
    return value


def _backward(model: nn.Module, part: Part, objective: Objective, *, summed: bool = False) -> float | None:
    """Leave in the parameters the gradient of a part's loss, or of that times its labels; None without a train node."""
    if len(part.nodes) == 1 and any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        raise RunError("a part has one node, and batch normalization needs two; lower train.partition.num_parts")
    loss = objective.step_loss(model, part)
    if loss is None:
        return None
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    (loss * objective.num_predicted if summed else loss).backward()  # type: ignore[no-untyped-call]
    return value


class _PartSums:
    """Adds up gradients and statistics over the parts of a step, in an order that no number of ranks changes."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        self.model, self.objective = model, objective
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Statistics of batch normalization, and vectors of spectral normalization.
        self.buffers = list(model.buffers())
        self.before = [buffer.clone() for buffer in self.buffers]
        self.stack: Any = getattr(model, "stack", None)
        # Of each part of this rank: its number, loss, number of labels, and error of inversion.
        self.losses: list[tuple[int, float, int, float | None]] = []
        self.fault = ""

    def backward(self, parts: Sequence[Part]) -> float | None:
        """As :func:`_backward`, of all parts together."""
        num_ranks, rank = ranks.group.size, ranks.group.rank
        total = tree_sum(lambda index: self._part(index, parts[index]), rank, num_ranks, len(parts))
        # All ranks learn of a fault of one, so that they skip the step or stop together.
        told = ranks.exchange((self.losses, self.fault))
        if fault := next((fault for _, fault in told if fault), ""):
            raise FloatingPointError(fault)
        losses = sorted(loss for losses, _ in told for loss in losses)
        if not losses:
            return None
        if total is None:
            total = self._flat([None] * len(self.parameters), [None] * len(self.buffers))
        num_labels = sum(count for _, _, count, _ in losses)
        self._unpack(ranks.sum_over_ranks(total), len(losses), num_labels)
        if getattr(self.stack, "inversion_error", None) is not None:
            self.stack.inversion_error = max(error or 0.0 for _, _, _, error in losses)
        return sum(value * count for _, value, count, _ in losses) / num_labels

    def _part(self, index: int, part: Part) -> Tensor | None:
        """The sums of one part, taken out of the model."""
        if self.fault:
            return None
        try:
            value = _backward(self.model, part, self.objective, summed=True)
        except FloatingPointError as error:
            self.fault = str(error)
            return None
        if value is None:
            return None
        self.losses.append((index, value, self.objective.num_predicted, getattr(self.stack, "inversion_error", None)))
        moved = [(after - before).float() for after, before in zip(self.buffers, self.before, strict=True)]
        flat = self._flat([parameter.grad for parameter in self.parameters], moved)
        for parameter in self.parameters:
            parameter.grad = None
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)
        return flat

    def _flat(self, gradients: Sequence[Tensor | None], moved: Sequence[Tensor | None]) -> Tensor:
        """Gradients, moves of buffers, and for each parameter a one if it has a gradient, as one flat tensor."""
        shapes = [*self.parameters, *self.buffers]
        values = zip(shapes, [*gradients, *moved], strict=True)
        # Minus zero changes nothing that it is added to, not even another minus zero.
        flat = [torch.full_like(shape, -0.0, dtype=torch.float32) if v is None else v for shape, v in values]
        flags = torch.tensor([float(g is not None) for g in gradients], device=flat[0].device)
        return torch.cat([*(tensor.flatten() for tensor in flat), flags])

    def _unpack(self, total: Tensor, num_parts: int, num_labels: int) -> None:
        sizes = [tensor.numel() for tensor in (*self.parameters, *self.buffers)]
        *values, flags = torch.split(total, [*sizes, len(self.parameters)])
        # A parameter without a gradient in any part has none: the optimizer would not leave it alone otherwise.
        has_gradient = flags.tolist()
        for parameter, value, has in zip(self.parameters, values, has_gradient, strict=False):
            parameter.grad = value.div_(num_labels).view_as(parameter) if has else None
        for buffer, before, value in zip(self.buffers, self.before, values[len(self.parameters) :], strict=True):
            buffer.copy_(before + (value / num_parts).view_as(before).to(before.dtype))


def build_optimizer(spec: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Optimizer of a recipe over all parameters of a model."""
    return _OPTIMIZERS[spec.type](model.parameters(), **spec.model_dump(exclude={"type"}))


def set_learning_rate(optimizer: torch.optim.Optimizer, spec: TrainSpec, epoch: int) -> None:
    """Set the learning rate of an epoch, which is a function of its number alone."""
    warmup, rate = spec.schedule.num_warmup_epochs, spec.optimizer.lr
    if epoch <= warmup:
        rate *= epoch / warmup
    elif spec.schedule.type == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * (epoch - 1 - warmup) / (spec.num_epochs - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = rate


class DivergedError(CommonError):
    """Numbers of a run that are not finite."""


def diverged(run: RunDir, place: str, fault: str, model: nn.Module) -> DivergedError:
    """The error of a run whose numbers are no longer finite: where, what was kept, and what helps."""
    # A folder that is gone, or a full disk, must not hide the fault itself.
    try:
        report_norms(run, place, fault, model)
        kept, report = run.states(), f"norms of all layers: {REPORT_FILE}; "
    except RunError:
        kept, report = [], ""
    last = f"the last good state is {kept[0].name}" if kept else "no state was saved yet"
    advice = "lower train.optimizer.lr or set train.max_grad_norm in another --out"
    return DivergedError(f"{run.path}: {place}: {fault}; {last}; {report}{advice}")


def report_norms(run: RunDir, place: str, fault: str, model: nn.Module) -> None:
    """Write the norms of the weights and gradients of each layer, in the model's order, into the run directory."""
    if ranks.group.rank > 0:
        return
    layers = {}
    for name, layer in model.named_modules():
        own = list(layer.parameters(recurse=False))
        groups = {"weights": own, "gradients": [parameter.grad for parameter in own if parameter.grad is not None]}
        norms = {kind: torch.nn.utils.get_total_norm(group).item() for kind, group in groups.items() if group}
        if norms:
            # JSON has no number for infinity and NaN.
            layers[name] = {kind: norm if math.isfinite(norm) else str(norm) for kind, norm in norms.items()}
    write_json(run.path / REPORT_FILE, {"place": place, "fault": fault, "norms": layers}, RunError)


@contextmanager
def run_errors(run: RunDir, model: nn.Module, place: str, key: str) -> Iterator[None]:
    """Turn numbers that are not finite and a lack of memory into errors that say where that was and what helps.

    ``key`` names the part of the recipe, such as ``train``, whose partition decides how much memory is needed.

    Raises:
        RunError: in place of FloatingPointError and of errors about memory.
    """
    try:
        with session.oom_as_run_error(f"{run.path}: {place}", f"raise {key}.partition.num_parts"):
            yield
    except FloatingPointError as error:
        raise diverged(run, place, str(error), model) from error
