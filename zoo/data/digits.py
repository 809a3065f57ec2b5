"""Handwritten digits as a graph of similar images: real, small and always there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from zoo.data.graph import Graph, Split, validate

NUM_NEIGHBORS = 8
NUM_SPLITS = 10
TRAIN_PER_CLASS = 10
NUM_VALID = 500


def digits_graph() -> Graph:
    """The 1,797 digits of scikit-learn, each linked with its 8 nearest images.

    An edge stands once for both directions. Its features are the Euclidean distance (pixels in 0 .. 1), a Gaussian of
    it, the cosine of the angle between the images, 1 if each is among the nearest of the other, and the better of the
    two ranks as a share of 8. Each of the 10 splits trains on 10 random images per digit.

    Returns:
        The same graph every time.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = data.data.astype(np.float64)  # [N, 64] whole numbers in 0 .. 16
    n = len(pixels)
    # Sums of whole numbers are exact and ties go to the lower id, so the graph is the same on every machine.
    squares = (pixels**2).sum(1)
    products = pixels @ pixels.T
    squared = squares[:, None] + squares[None, :] - 2 * products  # [N, N]
    order = squared.copy()
    np.fill_diagonal(order, np.inf)
    nearest = np.argsort(order, axis=1, kind="stable")[:, :NUM_NEIGHBORS]  # [N, 8]
    rank = np.full((n, n), NUM_NEIGHBORS + 1)
    np.put_along_axis(rank, nearest, np.arange(1, NUM_NEIGHBORS + 1)[None, :], axis=1)
    best, worst = np.minimum(rank, rank.T), np.maximum(rank, rank.T)
    source, target = np.nonzero(np.triu(best <= NUM_NEIGHBORS))
    distance = np.sqrt(squared[source, target]) / 16
    edge_attr = np.stack(
        [
            distance,
            np.exp(-((distance / distance.mean()) ** 2)),
            products[source, target] / np.sqrt(squares[source] * squares[target]),
            worst[source, target] <= NUM_NEIGHBORS,
            best[source, target] / NUM_NEIGHBORS,
        ],
        axis=1,
    )
    graph = Graph(
        name="digits",
        edge_index=torch.from_numpy(np.stack([source, target]).astype(np.int32)),
        undirected=True,
        num_nodes=n,
        x=torch.from_numpy((pixels / 16).astype(np.float32)),
        edge_attr=torch.from_numpy(edge_attr.astype(np.float32)),
        y=torch.from_numpy(data.target.astype(np.int64)),
        splits=tuple(_split(data.target, seed) for seed in range(NUM_SPLITS)),
        task="multiclass",
        num_tasks=10,
    )
    validate(graph)
    return graph


def _split(labels: np.ndarray[Any, Any], seed: int) -> Split:
    # The legacy generator is frozen, so the splits outlive new versions of NumPy.
    order = np.random.RandomState(seed).permutation(len(labels))
    train = np.concatenate([order[labels[order] == digit][:TRAIN_PER_CLASS] for digit in range(10)])
    rest = order[~np.isin(order, train)]
    return Split(*(torch.from_numpy(np.sort(nodes)) for nodes in (train, rest[:NUM_VALID], rest[NUM_VALID:])))
