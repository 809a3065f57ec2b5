"""Metrics: predictions compared with labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from zoo.errors import DataError

Array = np.ndarray[Any, Any]

# The tasks that a metric can score.
METRIC_TASKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "rocauc": ("multilabel", "binary"),
        "accuracy": ("multiclass", "binary"),
        "micro_f1": ("multilabel", "multiclass"),
    }
)


def check_metric(task: str, metric: str) -> None:
    """Refuse a metric that does not fit the task, before anything is trained.

    Args:
        task: "multilabel", "multiclass" or "binary".
        metric: a key of ``METRICS``.

    Raises:
        DataError: if the metric is unknown or scores other tasks.
    """
    if metric not in METRIC_TASKS:
        raise DataError(f"unknown metric {metric!r}; there are {', '.join(METRIC_TASKS)}")
    if task not in METRIC_TASKS[metric]:
        fitting = ", ".join(name for name, tasks in METRIC_TASKS.items() if task in tasks)
        raise DataError(f"the metric {metric!r} does not fit a {task} task; use {fitting}")


def rocauc(y_true: Tensor, logits: Tensor) -> float:
    """Area under the ROC curve, averaged over the tasks that have labels of both classes, as OGB does.

    Args:
        y_true: [n, T] zeros and ones with NaN for unlabeled, or [n] with -1 for unlabeled.
        logits: [n, T], or [n, 1] or [n] if T is 1.

    Returns:
        In 0 .. 1.

    Raises:
        DataError: if no task has both classes, or a logit is not finite.
    """
    labels, scores = _columns(y_true, logits)
    areas = []
    for task in range(labels.shape[1]):
        known = ~np.isnan(labels[:, task])
        column = labels[known, task]
        if (column == 1).any() and (column == 0).any():
            areas.append(roc_auc_score(column, scores[known, task]))
    if not areas:
        raise DataError("rocauc is not defined: no task has labels of both classes among these nodes")
    # Summed in this order, the mean is that of OGB's evaluator to the last bit.
    return float(sum(areas) / len(areas))


def accuracy(y_true: Tensor, logits: Tensor) -> float:
    """Share of the labelled nodes whose class is predicted.

    Args:
        y_true: [n] classes, -1 for unlabeled.
        logits: [n, C], the largest wins; or [n, 1] or [n], above 0 means class 1.

    Returns:
        In 0 .. 1.

    Raises:
        DataError: if no node has a label, or a logit is not finite.
    """
    known = y_true >= 0
    if not bool(known.any()):
        raise DataError("accuracy is not defined: none of these nodes has a label")
    return float((predicted_classes(logits)[known] == y_true[known]).double().mean())


def micro_f1(y_true: Tensor, logits: Tensor) -> float:
    """F1 of all labels of all nodes counted together; for one class per node it equals accuracy.

    Args:
        y_true: [n, T] zeros and ones with NaN for unlabeled, or [n] classes with -1 for unlabeled.
        logits: [n, T], above 0 means 1; or [n, C], the largest wins.

    Returns:
        In 0 .. 1; 0 if nothing is true and nothing predicted.

    Raises:
        DataError: if no node has a label, or a logit is not finite.
    """
    if y_true.ndim == 1:
        return accuracy(y_true, logits)
    labels, scores = _columns(y_true, logits)
    known = ~np.isnan(labels)
    if not known.any():
        raise DataError("micro_f1 is not defined: none of these nodes has a label")
    truth, guess = labels[known] == 1, scores[known] > 0
    positives = int(truth.sum()) + int(guess.sum())
    return 2 * int((truth & guess).sum()) / positives if positives else 0.0


METRICS: Mapping[str, Callable[[Tensor, Tensor], float]] = MappingProxyType(
    {"rocauc": rocauc, "accuracy": accuracy, "micro_f1": micro_f1}
)


def predicted_classes(logits: Tensor) -> Tensor:
    """[n] int64 classes from [n, C] logits, or from [n, 1] or [n] logits of class 1.

    Raises:
        DataError: if a logit is not finite.
    """
    _check_finite(logits)
    if logits.ndim == 1 or logits.shape[1] == 1:
        return (logits.reshape(-1) > 0).long()
    return logits.argmax(dim=1)


def evaluate(metric: str, y: Tensor, logits: Tensor) -> float:
    """Score predictions, on OGB's data sets exactly as OGB's own evaluator does.

    Args:
        metric: a key of ``METRICS``.
        y: [n] or [n, T] labels as in ``Graph.y``, of the nodes to score.
        logits: [n, T] of the same nodes, in any precision.

    Returns:
        The value of the metric.

    Raises:
        DataError: if the metric is unknown or not defined for these labels, or shapes or values do not fit.
    """
    if metric not in METRICS:
        raise DataError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
    if len(y) != len(logits):
        raise DataError(f"{len(y):,} labels do not go with {len(logits):,} predictions")
    return METRICS[metric](y.detach().cpu(), logits.detach().float().cpu())


def _check_finite(logits: Tensor) -> None:
    if bad := int((~torch.isfinite(logits)).sum()):
        raise DataError(f"{bad:,} of {logits.numel():,} predictions are NaN or infinite")


def _columns(y_true: Tensor, logits: Tensor) -> tuple[Array, Array]:
    """Labels and logits as [n, T] float arrays, NaN for unlabeled."""
    _check_finite(logits)
    labels = y_true.detach().cpu().double()
    if labels.ndim == 1:
        labels = torch.where(labels < 0, torch.nan, labels).unsqueeze(1)
    scores = logits.detach().cpu().double()
    scores = scores.unsqueeze(1) if scores.ndim == 1 else scores
    if labels.shape != scores.shape:
        raise DataError(f"labels {list(y_true.shape)} do not go with predictions {list(logits.shape)}")
    return labels.numpy(), scores.numpy()
