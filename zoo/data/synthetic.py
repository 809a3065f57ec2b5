"""Synthetic data sets in the exact raw format of OGB, at any scale.

What they are for: everything that works on them works on the real ones, without a download. The graph in the format
of ogbn-proteins has a task worth learning (see ``zoo.data.synthetic_model``); the other two are small and random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from tqdm import tqdm

from zoo.data.csv_writer import GzipWriter, csv_ints, csv_milli, write_floats, write_ints
from zoo.data.files import check_free_space, make_folder
from zoo.data.synthetic_model import (
    CHANNELS,
    FULL_EDGES,
    FULL_NODES,
    NUM_TASKS,
    SPECIES,
    Evidence,
    Proteins,
    draw_edge_features,
    draw_edges,
    draw_evidence,
    draw_labels,
    draw_proteins,
    is_strong,
)
from zoo.errors import DataError

Array = np.ndarray[Any, Any]

MIN_NODES = 64
FULL_DEGREE = 2 * FULL_EDGES / FULL_NODES
CHUNK_EDGES = 1_500_000
SPLITS = ("train", "valid", "test")


def write_synthetic_proteins(
    root: str | Path,
    num_nodes: int = 13_000,
    *,
    mean_degree: float | None = None,
    num_modules: int | None = None,
    seed: int = 0,
    gzip_level: int = 1,
) -> Path:
    """Write a synthetic data set in the raw format of ogbn-proteins; the same arguments give the same bytes.

    It has the real one's species, kinds of evidence, number of labels and split by species. At full scale it takes
    about a minute and a half, 1.3 GiB of memory and 0.4 GiB of disk. Do not mistake scores on it for scores on the
    real one.

    Args:
        root: gets the folder ``ogbn_proteins``, which must not exist.
        num_nodes: at least 64; 132,534 is full scale.
        mean_degree: messages per node; by default 597 at full scale, shrinking with the square root of the nodes.
        num_modules: hidden functional modules; by default more for more nodes.
        seed: of all random draws.
        gzip_level: 1 (fast) .. 9 (small).

    Returns:
        The folder written.

    Raises:
        DataError: if an argument does not fit or the folder exists.
    """
    n = num_nodes
    if n < MIN_NODES:
        raise DataError(f"a synthetic ogbn-proteins needs at least {MIN_NODES} nodes, not {n}")
    if seed < 0 or not 1 <= gzip_level <= 9:
        raise DataError(f"seed must not be negative and gzip_level must lie in 1 .. 9, not {seed} and {gzip_level}")
    if mean_degree is None:
        mean_degree = FULL_DEGREE * min(1.0, (n / FULL_NODES) ** 0.5)
    if not 1 <= mean_degree <= n / 4:
        raise DataError(f"mean_degree must lie in 1 .. {n / 4:g} (a quarter of the nodes), not {mean_degree:g}")
    if num_modules is None:
        num_modules = int(np.clip(round(12 * (n / 1000) ** 0.3), 8, 60))
    if not 3 <= num_modules <= n:
        raise DataError(f"num_modules must lie in 3 .. {n:,} (the nodes), not {num_modules}")
    num_edges = round(n * mean_degree / 2)
    folder = _new_folder(root, "ogbn_proteins", "species", num_edges * 16)

    rng = np.random.default_rng(seed)
    proteins = draw_proteins(rng, n, num_modules)
    evidence = draw_evidence(rng, num_modules)
    keys, kinds = draw_edges(rng, proteins, num_edges)
    strong = _write_edges(rng, folder / "raw", proteins, evidence, keys, kinds, gzip_level)

    links = scipy.sparse.csr_matrix((np.ones(strong.shape[1], np.float32), (strong[0], strong[1])), shape=(n, n))
    links = links + links.T
    scale = 1 / np.maximum(np.asarray(links.sum(1)), 1e-9)
    one_hop = scale * (links @ (proteins.membership / proteins.membership.sum(1, keepdims=True)))
    labels = draw_labels(rng, proteins, one_hop, scale * (links @ one_hop))

    taxonomy = np.array([taxon for taxon, _, _ in SPECIES])[proteins.species]
    split = np.array([name for _, _, name in SPECIES])[proteins.species]
    write_ints(folder / "raw" / "node_species.csv.gz", taxonomy)
    write_ints(folder / "raw" / "node-label.csv.gz", labels, level=6)
    _write_counts(folder, n, len(keys))
    _write_splits(folder / "split" / "species", {name: np.flatnonzero(split == name) for name in SPLITS})
    with GzipWriter(folder / "mapping" / "nodeidx2proteinid.csv.gz", 6) as writer:
        lines = (f"{i},{taxon}.SYN{i:06d}\n" for i, taxon in enumerate(taxonomy.tolist()))
        writer.write(("node idx,protein id\n" + "".join(lines)).encode("ascii"))
    with GzipWriter(folder / "mapping" / "labelidx2GO.csv.gz", 9) as writer:
        lines = (f"{task},SYN:{task:07d}\n" for task in range(NUM_TASKS))
        writer.write(("label idx,label name\n" + "".join(lines)).encode("ascii"))
    about = f"num_nodes={n} mean_degree={mean_degree} num_modules={num_modules} seed={seed}"
    _finish(folder, "ogbn-proteins", f"{about}\nEdge features: {', '.join(CHANNELS)}\n")
    return folder


def write_synthetic_arxiv(root: str | Path, num_nodes: int = 500, *, num_edges: int = 3_000, seed: int = 0) -> Path:
    """Write a small random data set in the raw format of ogbn-arxiv: directed, 128 node features, 40 classes, years.

    Args:
        root: gets the folder ``ogbn_arxiv``, which must not exist.
        num_nodes: at least 64.
        num_edges: directed edges.
        seed: of all random draws.

    Returns:
        The folder written.

    Raises:
        DataError: if an argument does not fit or the folder exists.
    """
    folder, rng = _write_random(
        root, "ogbn_arxiv", "time", num_nodes, num_edges, seed, num_features=128, num_classes=40
    )
    write_ints(folder / "raw" / "node_year.csv.gz", rng.integers(2010, 2021, num_nodes))
    _finish(folder, "ogbn-arxiv", f"num_nodes={num_nodes} num_edges={num_edges} seed={seed}\n")
    return folder


def write_synthetic_products(root: str | Path, num_nodes: int = 500, *, num_edges: int = 3_000, seed: int = 0) -> Path:
    """Write a small random data set in the raw format of ogbn-products: undirected, 100 node features, 47 classes.

    Args:
        root: gets the folder ``ogbn_products``, which must not exist.
        num_nodes: at least 64.
        num_edges: undirected edges.
        seed: of all random draws.

    Returns:
        The folder written.

    Raises:
        DataError: if an argument does not fit or the folder exists.
    """
    folder, _ = _write_random(
        root, "ogbn_products", "sales_ranking", num_nodes, num_edges, seed, num_features=100, num_classes=47
    )
    _finish(folder, "ogbn-products", f"num_nodes={num_nodes} num_edges={num_edges} seed={seed}\n")
    return folder


def _write_random(
    root: str | Path,
    name: str,
    split: str,
    num_nodes: int,
    num_edges: int,
    seed: int,
    *,
    num_features: int,
    num_classes: int,
) -> tuple[Path, np.random.Generator]:
    """Write edges, features around a centre per class, labels and a random split."""
    if num_nodes < MIN_NODES or num_edges < 1 or seed < 0:
        raise DataError(
            f"a synthetic {name} needs at least {MIN_NODES} nodes, 1 edge and a seed that is not negative, "
            f"not {num_nodes}, {num_edges} and {seed}"
        )
    folder = _new_folder(root, name, split, num_edges * 16 + num_nodes * num_features * 10)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_nodes)
    centres = rng.normal(0, 1, (num_classes, num_features))
    write_ints(folder / "raw" / "edge.csv.gz", rng.integers(0, num_nodes, (num_edges, 2)))
    write_floats(folder / "raw" / "node-feat.csv.gz", centres[labels] + rng.normal(0, 1, (num_nodes, num_features)))
    write_ints(folder / "raw" / "node-label.csv.gz", labels)
    _write_counts(folder, num_nodes, num_edges)
    order = rng.permutation(num_nodes)
    cuts = np.split(order, [num_nodes // 2, 3 * num_nodes // 4])
    _write_splits(folder / "split" / split, {key: np.sort(nodes) for key, nodes in zip(SPLITS, cuts, strict=True)})
    return folder, rng


def _write_edges(
    rng: np.random.Generator,
    raw: Path,
    proteins: Proteins,
    evidence: Evidence,
    keys: Array,
    kinds: Array,
    gzip_level: int,
) -> Array:
    """Write edges and their features; return the strong edges [2, S]."""
    n, strong = len(proteins.species), [np.empty((2, 0), np.int32)]
    bar = tqdm(total=len(keys), desc="writing edges", unit=" edges", unit_scale=True, disable=None, leave=False)
    with (
        bar,
        GzipWriter(raw / "edge.csv.gz", gzip_level) as edge_file,
        GzipWriter(raw / "edge-feat.csv.gz", gzip_level) as feature_file,
    ):
        for start in range(0, len(keys), CHUNK_EDGES):
            u, v = np.divmod(keys[start : start + CHUNK_EDGES], n)
            features = draw_edge_features(rng, proteins, evidence, u, v, kinds[start : start + CHUNK_EDGES])
            edge_file.write(csv_ints(np.stack([u, v], 1)))
            feature_file.write(csv_milli(features))
            rows = np.flatnonzero(is_strong(features))
            strong.append(np.stack([u[rows], v[rows]]).astype(np.int32))
            bar.update(len(u))
    return np.concatenate(strong, axis=1)


def _new_folder(root: str | Path, name: str, split: str, required_bytes: int) -> Path:
    folder = Path(root).expanduser() / name
    if folder.exists():
        raise DataError(f"{folder}: exists already; remove it or choose another root")
    for part in ("raw", f"split/{split}", "mapping", "processed"):
        make_folder(folder / part)
    check_free_space(folder, required_bytes, "the synthetic data")
    return folder


def _write_counts(folder: Path, num_nodes: int, num_edges: int) -> None:
    write_ints(folder / "raw" / "num-node-list.csv.gz", np.array([num_nodes]))
    write_ints(folder / "raw" / "num-edge-list.csv.gz", np.array([num_edges]))


def _write_splits(folder: Path, splits: dict[str, Array]) -> None:
    for name, nodes in splits.items():
        write_ints(folder / f"{name}.csv.gz", nodes)


def _finish(folder: Path, name: str, about: str) -> None:
    """Say what this is; the release file comes last, because readers take it for the sign of a whole folder."""
    (folder / "SYNTHETIC.txt").write_text(about, encoding="utf-8")
    text = f"Synthetic stand-in for {name}: not real data, random draws only.\n\n{about}"
    (folder / "mapping" / "README.md").write_text(text, encoding="utf-8")
    (folder / "RELEASE_v1.txt").write_text(f"Synthetic stand-in for {name} in the raw format of v1\n", encoding="utf-8")
