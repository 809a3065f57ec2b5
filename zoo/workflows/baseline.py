"""Logistic regression on node features alone: the score that a graph neural network has to beat."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from zoo.data.graph import Graph, Split
from zoo.data.metrics import check_metric, evaluate
from zoo.errors import DataError

# Enough for stable scores; more nodes or steps would make many-label data sets take minutes.
MAX_TRAIN_NODES = 20_000
MAX_ITERS = 200

Array = np.ndarray[Any, Any]


def linear_baseline(graph: Graph, split: Split, metric: str) -> dict[str, float]:
    """Scores, "valid" and "test", of a logistic regression on standardized node features, one per label of many.

    Numbers are predicted by a ridge regression. At most 20,000 train nodes are used, evenly spread over their ids.

    Raises:
        DataError: if the graph has no node features, or the metric does not fit.
    """
    # Imported here, because it takes longer than all else that a command needs to start.
    from sklearn.preprocessing import StandardScaler

    check_metric(graph.task, metric)
    x = graph.x
    if x is None:
        raise DataError(f"{graph.name}: the baseline needs node features; build some first, e.g. 'degree'")
    labels = graph.y.cpu()
    train = split.train.cpu()
    train = train[:: -(-len(train) // MAX_TRAIN_NODES)]
    scaler = StandardScaler().fit(x[train].cpu().numpy())

    def features(nodes: torch.Tensor) -> Array:
        scaled: Array = scaler.transform(x[nodes].cpu().numpy())
        return scaled

    train_x = features(train)
    held_out = {"valid": split.valid.cpu(), "test": split.test.cpu()}
    held_out_x = features(torch.cat(list(held_out.values())))
    if graph.task == "regression":
        columns = [_numbers(train_x, labels[train, task].numpy(), held_out_x) for task in range(graph.num_tasks)]
        logits = np.stack(columns, axis=1)
    elif graph.task == "multilabel":
        columns = [_logits(train_x, labels[train, task].numpy(), held_out_x, 1) for task in range(graph.num_tasks)]
        logits = np.concatenate(columns, axis=1)
    else:
        logits = _logits(train_x, labels[train].numpy(), held_out_x, graph.num_tasks)
    parts = np.split(logits, [len(split.valid)])
    return {
        name: evaluate(metric, labels[nodes], torch.from_numpy(part))
        for (name, nodes), part in zip(held_out.items(), parts, strict=True)
    }


def _numbers(train_x: Array, y: Array, x: Array) -> Array:
    """[m] predictions for [m, F] features of one number, learned from [n] labels, NaN for unlabeled."""
    from sklearn.linear_model import Ridge

    known = ~np.isnan(y)
    if not known.any():
        return np.zeros(len(x))
    predictions: Array = Ridge().fit(train_x[known], y[known]).predict(x)
    return predictions


def _logits(train_x: Array, y: Array, x: Array, num_outputs: int) -> Array:
    """[m, num_outputs] float64 logits for [m, F] features x, learned from [n] labels y; negative and NaN are unlabeled.

    ``num_outputs`` is the number of classes, or 1 for a label that is 0 or 1. A class without examples gets a very low
    one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    known = y >= 0
    classes = np.unique(y[known]).astype(np.int64)
    logits = np.full((len(x), num_outputs), -1e9)
    if len(classes) < 2:
        # With fewer than two classes there is nothing to fit: predict the one there is for every node.
        if num_outputs == 1:
            logits[:] = 1.0 if classes.tolist() == [1] else -1.0
        else:
            logits[:, classes] = 0.0
        return logits
    model = LogisticRegression(max_iter=MAX_ITERS)
    with warnings.catch_warnings():
        # A fit cut short is a slightly weaker baseline, not a fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train_x[known], y[known].astype(np.int64))
    decision = model.decision_function(x)
    if num_outputs == 1:
        logits[:, 0] = decision
    elif len(classes) == 2:
        logits[:, classes[0]], logits[:, classes[1]] = -decision, decision
    else:
        logits[:, classes] = decision
    return logits
