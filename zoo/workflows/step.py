"""One optimizer step: the parts of an epoch, the optimizer, its learning rate, and the step itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from zoo.data.graph import Graph, Part
from zoo.data.partition import random_parts
from zoo.errors import RunError
from zoo.spec.train import Optimizer, TrainSpec
from zoo.tensor_file import first_nonfinite
from zoo.workflows import session
from zoo.workflows.evaluate import num_parts_of
from zoo.workflows.objective import Objective

# One kernel for all parameters where there is one: a thousand layers have twenty thousand small tensors.
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, fused=True),
    "rmsprop": torch.optim.RMSprop,
}


def epoch_parts(graph: Graph, spec: TrainSpec, epoch: int) -> Iterator[Part]:
    """Parts of one epoch, in an order that needs no shuffling, as nodes fall into parts at random."""
    return random_parts(graph, num_parts_of(spec.partition), session.generator(spec.seed, "partition", epoch))


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, part: Part, objective: Objective, spec: TrainSpec
) -> float | None:
    """One optimizer step on the train nodes of one part.

    Returns:
        The loss; None if the part has no train node, and then the weights are unchanged.

    Raises:
        FloatingPointError: if the loss or a gradient is not finite; the weights are then unchanged.
        RunError: if the part is too small for the model's normalization.
    """
    if len(part.nodes) == 1 and any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        raise RunError("a part has one node, and batch normalization needs two; lower train.partition.num_parts")
    # Freed, not zeroed: gradients would otherwise add to the peak memory of the forward pass.
    optimizer.zero_grad(set_to_none=True)
    loss = objective.step_loss(model, part)
    if loss is None:
        return None
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    loss.backward()  # type: ignore[no-untyped-call]
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
