"""Metrics: predictions compared with labels.

A metric takes the labels ``y`` of some nodes, as ``Graph.y`` holds them, and their logits:

- classes: y [n] with -1 for unlabeled; logits [n, C], of which the largest wins, or [n, 1] or [n], of which those above
  0 mean class 1.
- several labels, and numbers to predict: y [n, T] with NaN for unlabeled; logits [n, T].

Unlabeled entries are left out. A DataError says that nothing is left to score, or that a logit is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from zoo.data.graph import Array
from zoo.errors import DataError
from zoo.spec.plugins import Table
from zoo.spec.train import METRIC_FACTS

# scikit-learn's metrics are imported where they are called, because that takes longer than all else at the start.


def metrics_of(task: str) -> list[str]:
    """The metrics that can score a task, the usual one first.

    >>> metrics_of("regression")
    ['mae', 'rmse', 'r2']
    """
    return [name for name, facts in METRIC_FACTS.items() if task in facts.tasks]


def check_metric(task: str, metric: str) -> None:
    """Refuse a metric that does not fit the task, before anything is trained.

    Raises:
        DataError: if the metric is unknown or scores other tasks.
    """
    if metric not in METRIC_FACTS:
        raise DataError(f"unknown metric {metric!r}; there are {', '.join(METRIC_FACTS)}")
    if task not in METRIC_FACTS[metric].tasks:
        raise DataError(f"the metric {metric!r} does not fit a {task} task; use {', '.join(metrics_of(task))}")


def rocauc(y: Tensor, logits: Tensor) -> float:
    """Area under the ROC curve in 0 .. 1, averaged over the labels that occur and fail to occur, as OGB does."""
    from sklearn.metrics import roc_auc_score

    return _mean_area("rocauc", roc_auc_score, y, logits)


def average_precision(y: Tensor, logits: Tensor) -> float:
    """Area under the precision-recall curve as a sum of steps, in 0 .. 1, averaged as for ``rocauc``."""
    from sklearn.metrics import average_precision_score

    return _mean_area("average_precision", average_precision_score, y, logits)


def _mean_area(name: str, area: Callable[[Array, Array], float], y: Tensor, logits: Tensor) -> float:
    areas = []
    for truth, scores in _known_columns(y, logits):
        if (truth == 1).any() and (truth == 0).any():
            areas.append(area(truth, scores))
    if not areas:
        raise DataError(f"{name} is not defined: no task has labels of both classes among these nodes")
    # Summed in this order, the mean is that of OGB's evaluator to the last bit.
    return float(sum(areas) / len(areas))


def accuracy(y: Tensor, logits: Tensor) -> float:
    """Share of the labeled nodes whose class is predicted, in 0 .. 1."""
    truth, guess = _known_classes("accuracy", y, logits)
    return float((guess == truth).mean())


def micro_f1(y: Tensor, logits: Tensor) -> float:
    """F1 in 0 .. 1 of all labels of all nodes counted together; for one class per node it equals accuracy."""
    if y.ndim == 1:
        return accuracy(y, logits)
    truth, scores = _known_values("micro_f1", y, logits)
    # scikit-learn would sort the labels of a whole graph for the same two counts.
    num_right = int(((truth == 1) & (scores > 0)).sum())
    num_positive = int((truth == 1).sum()) + int((scores > 0).sum())
    return 2 * num_right / num_positive if num_positive else 0.0


def macro_f1(y: Tensor, logits: Tensor) -> float:
    """F1 in 0 .. 1 of each class that occurs or is predicted, or of each of several labels, averaged without weights.

    A class that is never right counts 0.
    """
    from sklearn.metrics import f1_score

    if y.ndim == 1:
        return float(f1_score(*_known_classes("macro_f1", y, logits), average="macro", zero_division=0.0))
    _known_values("macro_f1", y, logits)
    columns = _known_columns(y, logits)
    return float(np.mean([f1_score(truth, scores > 0, zero_division=0.0) for truth, scores in columns if len(truth)]))


def mcc(y: Tensor, logits: Tensor) -> float:
    """Matthews correlation coefficient of true and predicted classes, in -1 .. 1; 0 if either are all of one class."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(*_known_classes("mcc", y, logits)))


def mae(y: Tensor, logits: Tensor) -> float:
    """Mean absolute error over all known numbers."""
    truth, guess = _known_values("mae", y, logits)
    return float(np.abs(guess - truth).mean())


def rmse(y: Tensor, logits: Tensor) -> float:
    """Square root of the mean squared error over all known numbers."""
    truth, guess = _known_values("rmse", y, logits)
    return float(np.sqrt(np.square(guess - truth).mean()))


def r2(y: Tensor, logits: Tensor) -> float:
    """Coefficient of determination, averaged over the columns whose known numbers differ; at most 1.

    It is 1 - (sum of squared errors) / (sum of squared distances from the mean), so 0 for the mean itself.
    """
    from sklearn.metrics import r2_score

    columns = [(truth, guess) for truth, guess in _known_columns(y, logits) if len(truth) and np.ptp(truth) > 0]
    if not columns:
        raise DataError("r2 is not defined: the numbers of these nodes do not differ")
    return float(np.mean([r2_score(truth, guess) for truth, guess in columns]))


METRICS: Mapping[str, Callable[[Tensor, Tensor], float]] = Table(
    {
        function.__name__: function
        for function in (rocauc, average_precision, accuracy, micro_f1, macro_f1, mcc, mae, rmse, r2)
    },
    "metrics",
    lambda plugin, _: plugin.load(),
)


def evaluate(metric: str, y: Tensor, logits: Tensor) -> float:
    """Score predictions, on OGB's data sets exactly as OGB's own evaluator does.

    Args:
        metric: a key of ``METRICS``.
        y: [n] or [n, T] labels as in ``Graph.y``, of the nodes to score.
        logits: [n, T] of the same nodes, in any precision.

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


def _known_classes(name: str, y: Tensor, logits: Tensor) -> tuple[Array, Array]:
    """True and predicted classes of the labeled nodes."""
    _check_finite(logits)
    one_logit = logits.ndim == 1 or logits.shape[1] == 1
    guess, known = (logits.reshape(-1) > 0).long() if one_logit else logits.argmax(dim=1), y >= 0
    if not bool(known.any()):
        raise DataError(f"{name} is not defined: none of these nodes has a label")
    return y[known].numpy(), guess[known].numpy()


def _known_values(name: str, y: Tensor, logits: Tensor) -> tuple[Array, Array]:
    """Known labels or numbers of all columns and the logits that go with them, each in one row."""
    truth, scores = (np.concatenate(columns) for columns in zip(*_known_columns(y, logits), strict=True))
    if not len(truth):
        raise DataError(f"{name} is not defined: none of these nodes has a label")
    return truth, scores


def _known_columns(y: Tensor, logits: Tensor) -> list[tuple[Array, Array]]:
    """Known labels or numbers and their logits, as float64, for each of T columns; [n] classes are one column."""
    _check_finite(logits)
    labels = y.detach().cpu().double()
    if labels.ndim == 1:
        labels = torch.where(labels < 0, torch.nan, labels).unsqueeze(1)
    scores = logits.detach().cpu().double()
    scores = scores.unsqueeze(1) if scores.ndim == 1 else scores
    if labels.shape != scores.shape:
        raise DataError(f"labels {list(y.shape)} do not go with predictions {list(logits.shape)}")
    columns = []
    for truth, guess in zip(labels.T, scores.T, strict=True):
        known = ~truth.isnan()
        columns.append((truth[known].numpy(), guess[known].numpy()))
    return columns
