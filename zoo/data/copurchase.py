"""Graphs of co-purchases, co-authors and Wikipedia articles in the form in which their publishers give them.

Sources: Shchur et al., Pitfalls of graph neural network evaluation, arXiv 1811.05868, with the splits of Luo et al.,
Classic GNNs are strong baselines, arXiv 2406.08993; Mernyei and Cangea, Wiki-CS, arXiv 2007.02901.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.arrays import multiclass_arrays, read_arrays
from zoo.errors import DataError

Array = np.ndarray[Any, Any]
_SPARSE = tuple(f"{kind}_{part}" for kind in ("adj", "attr") for part in ("data", "indices", "indptr", "shape"))


def copurchase_arrays(graph: Path, split: Path) -> dict[str, Array]:
    """Put a graph of two sparse matrices and its split together.

    Args:
        graph: a .npz file with ``adj_*`` and ``attr_*``, the parts of CSR matrices, and ``labels``. Its lists of names
            are pickled and not read.
        split: a .npz file with the node ids ``train``, ``valid`` and ``test``.

    Returns:
        Arrays as in ``zoo.data.arrays``; features are 1 where a word occurs, as in PyTorch Geometric.

    Raises:
        DataError: if a file is damaged, or the two do not belong together.
    """
    import scipy.sparse

    raw, ids = read_arrays(graph, names=(*_SPARSE, "labels")), read_arrays(split, names=("train", "valid", "test"))
    try:
        matrices = {
            kind: scipy.sparse.csr_matrix(
                tuple(raw[f"{kind}_{part}"] for part in ("data", "indices", "indptr")), shape=raw[f"{kind}_shape"]
            )
            for kind in ("adj", "attr")
        }
        # Indices are checked here; building the matrix looks at lengths alone.
        for matrix in matrices.values():
            matrix.check_format(full_check=True)
        num_nodes = len(raw["labels"])
        if matrices["adj"].shape != (num_nodes, num_nodes) or matrices["attr"].shape[0] != num_nodes:
            raise ValueError(f"{num_nodes:,} labels do not go with matrices of another size")
        masks = np.zeros((3, num_nodes), dtype=bool)
        for mask, key in zip(masks, ("train", "valid", "test"), strict=True):
            if ids[key].min(initial=0) < 0:
                raise ValueError(f"the split {key} has negative ids")
            mask[ids[key]] = True
        x = (matrices["attr"].toarray() > 0).astype(np.uint8)
        source, target = matrices["adj"].nonzero()
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{graph}, {split.name}: these files do not make a graph ({error})") from error
    return multiclass_arrays(np.stack([source, target]), x, raw["labels"], masks)


def wikics_arrays(path: Path) -> dict[str, Array]:
    """Read Wiki-CS with its 20 splits; nodes for early stopping count as valid nodes.

    Args:
        path: ``data.json`` as published.

    Returns:
        Arrays as in ``zoo.data.arrays``.

    Raises:
        DataError: if the file is damaged.
    """
    try:
        raw: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        edges = [(source, target) for source, targets in enumerate(raw["links"]) for target in targets]
        masks = {key: np.array(raw[key], dtype=bool) for key in ("train_masks", "val_masks", "stopping_masks")}
        test = np.broadcast_to(np.array(raw["test_mask"], dtype=bool), masks["train_masks"].shape)
        splits = np.stack([masks["train_masks"], masks["val_masks"] | masks["stopping_masks"], test])
        y, x = np.array(raw["labels"], dtype=np.int64), np.array(raw["features"], dtype=np.float32)
        return multiclass_arrays(np.array(edges, dtype=np.int64).T, x, y, splits)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: not the data of Wiki-CS ({error or type(error).__name__})") from error
