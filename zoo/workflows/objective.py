"""The objective of training: the loss of the labels, label reuse, and distillation from a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.data.graph import Graph, Part, Split
from zoo.spec.plugins import Plugin, Table
from zoo.spec.train import TrainSpec
from zoo.workflows import session

_EPS = 1 - math.log(2)


def multilabel_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy of [n, T] logits, averaged over the labels that are known, at least one; NaN is not."""
    known = ~torch.isnan(y)
    # Most data have all labels. Reversible layers store so little that tensors of [n, T] are among the largest, so
    # the mask is avoided.
    if bool(known.all()):
        return functional.binary_cross_entropy_with_logits(logits, y)
    losses = functional.binary_cross_entropy_with_logits(logits, y.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum()


def binary_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy of [n, 1] logits and [n] classes 0 and 1."""
    return functional.binary_cross_entropy_with_logits(logits.squeeze(1), y.float())


def regression_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, y: Tensor) -> Tensor:
    """A mean loss of [n, T] numbers over those that are known, at least one; NaN is not."""
    known = ~torch.isnan(y)
    return loss(logits[known], y[known])


def log_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of log(eps + ce) - log(eps) over [n, T] logits and [n] classes; ce is the cross entropy, eps = 1 - ln 2.

    The logarithm keeps a few nodes that are far off from deciding the step. It is 0 where the cross entropy is.

    Source: arXiv 2103.13355.
    """
    losses = functional.cross_entropy(logits, y, reduction="none")
    return ((losses + _EPS).log() - math.log(_EPS)).mean()


def _installed_loss(plugin: Plugin, key: tuple[str, str]) -> Callable[[Tensor, Tensor], Tensor]:
    if key[0] not in plugin.tasks:
        raise KeyError(key)
    loss: Callable[[Tensor, Tensor], Tensor] = plugin.load()
    return loss


LOSSES: Mapping[tuple[str, str], Callable[[Tensor, Tensor], Tensor]] = Table(
    {
        ("multilabel", "bce_with_logits"): multilabel_loss,
        ("binary", "bce_with_logits"): binary_loss,
        ("multiclass", "cross_entropy"): functional.cross_entropy,
        ("multiclass", "log_cross_entropy"): log_cross_entropy,
        ("regression", "mse"): partial(regression_loss, functional.mse_loss),
        ("regression", "mae"): partial(regression_loss, functional.l1_loss),
        ("regression", "huber"): partial(regression_loss, functional.huber_loss),
    },
    "losses",
    _installed_loss,
)


def losses_of(task: str) -> list[str]:
    """The losses that fit a task, the usual one first.

    >>> losses_of("regression")
    ['mse', 'mae', 'huber']
    """
    return [loss for of_task, loss in LOSSES if of_task == task]


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of a teacher's [n, T] predictions from a model's, both softened, times the squared temperature.

    The temperature divides the logits of both. The sum is divided by nodes times classes, as in the published code of
    RevGAT, not by nodes alone.

    Source: arXiv 1503.02531.
    """
    soft, target = (logits / temperature).log_softmax(1), (teacher / temperature).softmax(1)
    return functional.kl_div(soft, target, reduction="sum") / logits.numel() * temperature**2


@dataclass(frozen=True, eq=False)
class KnownLabels:
    """The labels that a model under label reuse may read: T more node features, after those of the graph.

    Attributes:
        y: [N] class of each labeled train node, -1 elsewhere.
        num_iters: passes before the last one.
    """

    y: Tensor
    num_tasks: int
    num_iters: int

    @classmethod
    def of(cls, spec: TrainSpec, graph: Graph, split: Split, device: torch.device) -> KnownLabels | None:
        """The labels of the train nodes, on the device; None if the recipe's model reads none."""
        if spec.label_reuse is None:
            return None
        y = torch.full_like(graph.y, -1)
        y[split.train] = graph.y[split.train]
        return cls(y.to(device), graph.num_tasks, spec.label_reuse.num_iters)

    def run(self, model: nn.Module, part: Part, read: Tensor | None = None) -> Tensor:
        """Run a model that reads labels, in the mode it is in.

        A label is read as a one-hot row. The rows of all other nodes are zero in the first pass and the class
        probabilities of the pass before in every further one; only the last pass keeps a gradient.

        Args:
            model: for F + T node features.
            part: on the device of the model.
            read: [n] bool, the nodes whose labels are read; None: all labeled train nodes.

        Returns:
            [n, T] logits of the last pass.

        Source: arXiv 2103.13355, section 3.
        """
        y = self.y[part.nodes]
        read = y >= 0 if read is None else read
        columns = part.x.new_zeros(len(y), self.num_tasks)
        columns[read, y[read]] = 1
        for _ in range(self.num_iters):
            with torch.no_grad():
                # Autocast may return bfloat16, whose probabilities would not add up to one.
                guess = _run(model, part, columns).float().softmax(1)
            columns = torch.where(read.unsqueeze(1), columns, guess)
        return _run(model, part, columns)


def _run(model: nn.Module, part: Part, columns: Tensor) -> Tensor:
    logits: Tensor = model(torch.cat([part.x, columns], 1), part.csr, part.edge_attr, part.edge_weight)
    return logits


class Objective:
    """The function that a run minimizes, with all that it needs of the graph on one device.

    Args:
        spec: of the training.
        graph: for its labels and its task.
        split: for its train and valid nodes; those without a label are left out.
        device: where the loss is computed.
        teacher: [N, T] logits to learn from under ``spec.distillation``; without them the labels alone teach.

    Attributes:
        spec, graph, split, device: as given.
        is_train: [N] bool, the nodes that are learned from.
        known: the labels that the model reads, if it does.
        valid: [n] ids of the labeled valid nodes, on the CPU.
        num_predicted: how many labels the latest ``step_loss`` is a mean over.
    """

    def __init__(
        self, spec: TrainSpec, graph: Graph, split: Split, device: torch.device, teacher: Tensor | None = None
    ) -> None:
        y = graph.y.cpu()
        labeled = ~torch.isnan(y).all(1) if y.is_floating_point() else y >= 0
        is_train = torch.zeros(graph.num_nodes, dtype=torch.bool)
        is_train[split.train.cpu()] = True
        self.spec, self.graph, self.split, self.device = spec, graph, split, device
        self.y = graph.y.to(device)
        self.is_train = (is_train & labeled).to(device)
        self.known = KnownLabels.of(spec, graph, split, device)
        self.loss = LOSSES[graph.task, spec.loss or losses_of(graph.task)[0]]
        self.num_predicted = 0
        self.valid = split.valid.cpu()[labeled[split.valid.cpu()]]
        self._teacher = None if teacher is None else teacher.to(device)

    def step_loss(self, model: nn.Module, part: Part) -> Tensor | None:
        """Run the model on a part, in the recipe's precision, and compare it with labels that it has not read.

        The labels that it reads are sampled, as dropout is, from PyTorch's global generator: that of the CPU, so that
        they are the same on every device. Without a train node in the part there is no loss.
        """
        chosen = self.is_train[part.nodes]
        if not bool(chosen.any()):
            return None
        with session.autocast(self.device, self.spec.precision):
            if self.known is None or self.spec.label_reuse is None:
                logits = model(part.x, part.csr, part.edge_attr, part.edge_weight)
            else:
                read = sample_read(chosen, self.spec.label_reuse.mask_rate)
                # A label that is read must not be predicted as well: the model would learn to copy it.
                chosen = chosen & ~read
                logits = self.known.run(model, part, read)
        logits = logits.float()
        y = self.y[part.nodes[chosen]]
        self.num_predicted = int((~torch.isnan(y)).sum()) if y.is_floating_point() else len(y)
        loss = self.loss(logits[chosen], y)
        if self._teacher is None or self.spec.distillation is None:
            return loss
        alpha, temperature = self.spec.distillation.alpha, self.spec.distillation.temperature
        return (1 - alpha) * loss + alpha * distillation_loss(logits, self._teacher[part.nodes], temperature)

    def valid_loss(self, logits: Tensor) -> float:
        """The loss of the labels alone; ``logits`` are [n, T], of the nodes ``valid``."""
        return self.loss(logits.to(self.device), self.y[self.valid.to(self.device)]).item()


def sample_read(train: Tensor, mask_rate: float) -> Tensor:
    """Sample, of [n] labeled train nodes as a mask, those whose labels a training step reads.

    Each is read with the chance ``mask_rate``; at least one of them is left to be predicted.
    """
    nodes = train.nonzero().squeeze(1)
    values = torch.rand(len(nodes))
    read = torch.zeros_like(train)
    # The node of the largest value is never read, even if every value is below the mask rate.
    read[nodes[(values < values.max().clamp(max=mask_rate)).to(nodes.device)]] = True
    return read
