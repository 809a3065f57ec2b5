"""Small random data sets in the raw formats of ogbn-arxiv, ogbn-products and ogbn-papers100M."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("train", "valid", "test")


def write_random_arxiv(root: Path, num_nodes: int = 500, *, num_edges: int = 3_000, seed: int = 0) -> Path:
    """Write a directed graph with 128 node features, 40 classes and years."""
    folder, rng = _write_graph(root, "ogbn_arxiv", "time", (num_nodes, num_edges), (128, 40), seed)
    _write(folder / "raw" / "node_year.csv.gz", rng.integers(2010, 2021, num_nodes))
    return _finish(folder)


def write_random_products(root: Path, num_nodes: int = 500, *, num_edges: int = 3_000, seed: int = 0) -> Path:
    """Write an undirected graph with 100 node features and 47 classes."""
    folder, _ = _write_graph(root, "ogbn_products", "sales_ranking", (num_nodes, num_edges), (100, 47), seed)
    return _finish(folder)


def write_random_papers(root: Path, num_nodes: int = 500, *, num_edges: int = 3_000, seed: int = 0) -> Path:
    """Write a directed graph with 128 node features and years, and 172 classes of which few nodes have one."""
    folder, rng = root / "ogbn_papers100M", np.random.default_rng(seed)
    for part in ("raw", "split/time", "mapping", "processed"):
        (folder / part).mkdir(parents=True)
    labels = np.full((num_nodes, 1), np.nan, np.float32)
    labeled = rng.permutation(num_nodes)[: num_nodes // 2]
    labels[labeled, 0] = rng.integers(0, 172, len(labeled))
    np.savez_compressed(
        folder / "raw" / "data.npz",
        edge_index=rng.integers(0, num_nodes, (2, num_edges)),
        node_feat=rng.normal(0, 1, (num_nodes, 128)).astype(np.float32),
        node_year=rng.integers(1900, 2021, (num_nodes, 1)),
        num_nodes_list=np.array([num_nodes]),
        num_edges_list=np.array([num_edges]),
    )
    np.savez_compressed(folder / "raw" / "node-label.npz", node_label=labels)
    for key, nodes in zip(SPLITS, np.array_split(labeled, 3), strict=True):
        _write(folder / "split" / "time" / f"{key}.csv.gz", np.sort(nodes))
    return _finish(folder)


def _write_graph(
    root: Path, name: str, split: str, sizes: tuple[int, int], widths: tuple[int, int], seed: int
) -> tuple[Path, np.random.Generator]:
    """Write edges, features around a center per class, labels and a random split."""
    (num_nodes, num_edges), (num_features, num_classes) = sizes, widths
    folder, rng = root / name, np.random.default_rng(seed)
    for part in ("raw", f"split/{split}", "mapping", "processed"):
        (folder / part).mkdir(parents=True)
    labels = rng.integers(0, num_classes, num_nodes)
    centers = rng.normal(0, 1, (num_classes, num_features))
    _write(folder / "raw" / "edge.csv.gz", rng.integers(0, num_nodes, (num_edges, 2)))
    features = centers[labels] + rng.normal(0, 1, (num_nodes, num_features))
    _write(folder / "raw" / "node-feat.csv.gz", features, "%.6f")
    _write(folder / "raw" / "node-label.csv.gz", labels)
    _write(folder / "raw" / "num-node-list.csv.gz", np.array([num_nodes]))
    _write(folder / "raw" / "num-edge-list.csv.gz", np.array([num_edges]))
    parts = np.split(rng.permutation(num_nodes), [num_nodes // 2, 3 * num_nodes // 4])
    for key, nodes in zip(SPLITS, parts, strict=True):
        _write(folder / "split" / split / f"{key}.csv.gz", np.sort(nodes))
    return folder, rng


def _write(path: Path, values: Any, number: str = "%d") -> None:
    with gzip.open(path, "wt", compresslevel=1) as file:
        np.savetxt(file, values, fmt=number, delimiter=",")


def _finish(folder: Path) -> Path:
    """Mark the folder as synthetic; readers take the release file, the last, for the sign of a whole one."""
    (folder / "SYNTHETIC.txt").write_text("random\n", encoding="utf-8")
    (folder / "RELEASE_v1.txt").write_text("random\n", encoding="utf-8")
    return folder
