"""Metrics: predictions compared with labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import DataError

Array = np.ndarray[Any, Any]

# The tasks that a metric can score.
METRIC_TASKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "rocauc": ("multilabel", "binary"),
        "average_precision": ("multilabel", "binary"),
        "accuracy": ("multiclass", "binary"),
        "micro_f1": ("multilabel", "multiclass"),
        "macro_f1": ("multilabel", "multiclass", "binary"),
        "mcc": ("multiclass", "binary"),
        "mae": ("regression",),
        "rmse": ("regression",),
        "r2": ("regression",),
    }
)


def metrics_of(task: str) -> list[str]:
    """The metrics that can score a task, the usual one first."""
    return [name for name, tasks in METRIC_TASKS.items() if task in tasks]


def check_metric(task: str, metric: str) -> None:
    """Refuse a metric that does not fit the task, before anything is trained.

    Args:
        task: "multilabel", "multiclass", "binary" or "regression".
        metric: a key of ``METRICS``.

    Raises:
        DataError: if the metric is unknown or scores other tasks.
    """
    if metric not in METRIC_TASKS:
        raise DataError(f"unknown metric {metric!r}; there are {', '.join(METRIC_TASKS)}")
    if task not in METRIC_TASKS[metric]:
        raise DataError(f"the metric {metric!r} does not fit a {task} task; use {', '.join(metrics_of(task))}")


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
    # Imported here, because it takes longer than all else that a command needs to start.
    from sklearn.metrics import roc_auc_score

    return _mean_area("rocauc", roc_auc_score, y_true, logits)


def average_precision(y_true: Tensor, logits: Tensor) -> float:
    """Area under the precision-recall curve as a sum of steps, averaged over the tasks with labels of both classes.

    Args:
        y_true: [n, T] zeros and ones with NaN for unlabeled, or [n] with -1 for unlabeled.
        logits: [n, T], or [n, 1] or [n] if T is 1.

    Returns:
        In 0 .. 1.

    Raises:
        DataError: if no task has both classes, or a logit is not finite.
    """
    from sklearn.metrics import average_precision_score

    return _mean_area("average_precision", average_precision_score, y_true, logits)


def _mean_area(name: str, area: Callable[[Array, Array], float], y_true: Tensor, logits: Tensor) -> float:
    labels, scores = _columns(y_true, logits)
    areas = []
    for task in range(labels.shape[1]):
        known = ~np.isnan(labels[:, task])
        column = labels[known, task]
        if (column == 1).any() and (column == 0).any():
            areas.append(area(column, scores[known, task]))
    if not areas:
        raise DataError(f"{name} is not defined: no task has labels of both classes among these nodes")
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
    truth, guess = _known_classes("accuracy", y_true, logits)
    return float((guess == truth).mean())


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


def macro_f1(y_true: Tensor, logits: Tensor) -> float:
    """F1 of each class, or of each of several labels, averaged without weights.

    Args:
        y_true: [n] classes with -1 for unlabeled, or [n, T] zeros and ones with NaN for unlabeled.
        logits: [n, C], the largest wins; [n, 1] or [n], above 0 means class 1; or [n, T], above 0 means 1.

    Returns:
        In 0 .. 1, over the classes that occur or are predicted; 0 for a class that is never right.

    Raises:
        DataError: if no node has a label, or a logit is not finite.
    """
    from sklearn.metrics import f1_score

    if y_true.ndim == 1:
        return float(f1_score(*_known_classes("macro_f1", y_true, logits), average="macro", zero_division=0.0))
    labels, scores = _columns(y_true, logits)
    known = ~np.isnan(labels)
    columns = [(known[:, task], task) for task in range(labels.shape[1]) if known[:, task].any()]
    if not columns:
        raise DataError("macro_f1 is not defined: none of these nodes has a label")
    return float(np.mean([f1_score(labels[n, t], scores[n, t] > 0, zero_division=0.0) for n, t in columns]))


def mcc(y_true: Tensor, logits: Tensor) -> float:
    """Matthews correlation coefficient of true and predicted classes.

    Args:
        y_true: [n] classes, -1 for unlabeled.
        logits: [n, C], the largest wins; or [n, 1] or [n], above 0 means class 1.

    Returns:
        In -1 .. 1; 0 if all nodes are of one class or all predictions are.

    Raises:
        DataError: if no node has a label, or a logit is not finite.
    """
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(*_known_classes("mcc", y_true, logits)))


def mae(y_true: Tensor, logits: Tensor) -> float:
    """Mean absolute error over all known numbers.

    Args:
        y_true: [n, T] numbers, NaN for unlabeled.
        logits: [n, T] predictions.

    Raises:
        DataError: if no number is known, or a prediction is not finite.
    """
    return float(np.abs(_errors("mae", y_true, logits)).mean())


def rmse(y_true: Tensor, logits: Tensor) -> float:
    """Square root of the mean squared error over all known numbers.

    Args:
        y_true: [n, T] numbers, NaN for unlabeled.
        logits: [n, T] predictions.

    Raises:
        DataError: if no number is known, or a prediction is not finite.
    """
    return float(np.sqrt(np.square(_errors("rmse", y_true, logits)).mean()))


def r2(y_true: Tensor, logits: Tensor) -> float:
    """Coefficient of determination, averaged over the columns whose known numbers differ.

    It is 1 - (sum of squared errors) / (sum of squared distances from the mean).

    Args:
        y_true: [n, T] numbers, NaN for unlabeled.
        logits: [n, T] predictions.

    Returns:
        At most 1; 0 for the mean itself.

    Raises:
        DataError: if no column has two different numbers, or a prediction is not finite.
    """
    labels, predictions = _columns(y_true, logits)
    values = []
    for truth, guess in zip(labels.T, predictions.T, strict=True):
        known = ~np.isnan(truth)
        distances = np.square(truth[known] - truth[known].mean()).sum() if known.any() else 0.0
        if distances > 0:
            values.append(1 - np.square(truth[known] - guess[known]).sum() / distances)
    if not values:
        raise DataError("r2 is not defined: the numbers of these nodes do not differ")
    return float(np.mean(values))


METRICS: Mapping[str, Callable[[Tensor, Tensor], float]] = MappingProxyType(
    {
        "rocauc": rocauc,
        "average_precision": average_precision,
        "accuracy": accuracy,
        "micro_f1": micro_f1,
        "macro_f1": macro_f1,
        "mcc": mcc,
        "mae": mae,
        "rmse": rmse,
        "r2": r2,
    }
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


def _known_classes(name: str, y_true: Tensor, logits: Tensor) -> tuple[Array, Array]:
    """True and predicted classes of the labeled nodes."""
    guess, known = predicted_classes(logits), y_true >= 0
    if not bool(known.any()):
        raise DataError(f"{name} is not defined: none of these nodes has a label")
    return y_true[known].numpy(), guess[known].numpy()


def _errors(name: str, y_true: Tensor, logits: Tensor) -> Array:
    """Predictions minus known numbers, in one row."""
    labels, predictions = _columns(y_true, logits)
    known = ~np.isnan(labels)
    if not known.any():
        raise DataError(f"{name} is not defined: none of these nodes has a label")
    errors: Array = predictions[known] - labels[known]
    return errors


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
