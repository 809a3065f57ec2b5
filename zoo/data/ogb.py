"""The node-level graphs of the Open Graph Benchmark, read from their raw folders of CSV or .npz files.

The package ``ogb`` is not used: its loader prompts on stdin, keeps its cache as a pickle that current PyTorch refuses,
and needs 15 GiB of memory for ogbn-proteins.

Source: Hu et al., Open Graph Benchmark, arXiv 2005.00687.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from zoo.data.array_files import (
    Arrays,
    convert,
    csv_blocks,
    npz_blocks,
    open_arrays,
    open_or_build,
    read_csv,
    read_npz,
)
from zoo.data.download import check_free_space, data_root, download_and_unpack
from zoo.data.graph import Array, Graph, Split, Task, validate
from zoo.errors import DataError
from zoo.files import make_folder
from zoo.spec.shape import DATASET_WIDTHS, Widths

# The file that holds the categories of nodes, where a data set has them; the older name is still in use.
SPECIES_FILES = ("node_species.csv.gz", "species.csv.gz")


@dataclass(frozen=True)
class OgbInfo:
    """The facts about one of OGB's data sets."""

    name: str
    archive_folder: str  # inside the archive
    task: Task
    num_nodes: int  # a smaller graph in the same format is a stand-in
    num_edges: int  # rows of the edge file
    undirected: bool  # a row of the edge file counts in both directions
    split: str  # the name of its folder
    is_npz: bool = False  # raw files are .npz and not CSV files

    @property
    def widths(self) -> Widths:
        """The columns of its features, and outputs per node."""
        return DATASET_WIDTHS[self.name]

    @property
    def main_file(self) -> str:
        """The file in ``raw`` that holds the edges."""
        return "data.npz" if self.is_npz else "edge.csv.gz"

    @property
    def folder(self) -> str:
        """The name of its folder in the data root."""
        return self.name.replace("-", "_")

    @property
    def url(self) -> str:
        """The address of its archive."""
        return f"http://snap.stanford.edu/ogb/data/nodeproppred/{self.archive_folder}.zip"


VERSION = "1"
# Source: nodeproppred/master.csv of the package ogb; numbers of nodes: https://ogb.stanford.edu/docs/nodeprop/.
OGB: Mapping[str, OgbInfo] = MappingProxyType(
    {
        info.name: info
        for info in (
            OgbInfo("ogbn-proteins", "proteins", "multilabel", 132_534, 39_561_252, True, "species"),
            OgbInfo("ogbn-arxiv", "arxiv", "multiclass", 169_343, 1_166_243, False, "time"),
            OgbInfo("ogbn-products", "products", "multiclass", 2_449_029, 61_859_140, True, "sales_ranking"),
            OgbInfo("ogbn-papers100M", "papers100M-bin", "multiclass", 111_059_956, 1_615_685_872, False, "time", True),
        )
    }
)


def load_ogb(name: str, *, root: str | Path | None = None, url: str | None = None) -> Graph:
    """Open an OGB data set; get and convert it first where that has not been done.

    The first call reads the raw files into a folder ``zoo`` beside them; later calls map that folder, which takes
    moments. Edges that count in both directions are stored once.

    Args:
        name: a key of ``OGB``.
        root: folder that holds or gets the folder of the data set, as for the loaders of ``ogb``; see ``data_root``.
        url: where to get the archive instead of OGB's own place.

    Returns:
        The graph. Species are numbered in the order of the published ogbn-proteins models.

    Raises:
        DataError: if the data set is neither there nor can be had, or is damaged.
    """
    info = OGB[name]
    folder = data_root(root) / info.folder
    cache = folder / "zoo"
    raw_is_there = (folder / "raw" / info.main_file).exists()
    if not raw_is_there and (arrays := open_arrays(cache, None)) is not None:
        # The raw files may be deleted to save space once the cache is whole.
        return _to_graph(info, arrays)
    if not raw_is_there:
        _get(info, folder, url or info.url)
    release = folder / f"RELEASE_v{VERSION}.txt"
    if not release.exists():
        raise DataError(f"{folder}: no {release.name} in it, so it is not version {VERSION}; remove it to get it anew")
    source = _fingerprint(info, folder)
    if not os.access(folder, os.W_OK):
        # A shared read-only copy: use its cache if it has one, else keep ours with the user's own data.
        arrays = open_arrays(cache, source)
        if arrays is not None:
            return _to_graph(info, arrays)
        cache = data_root() / "converted" / f"{info.folder}-{source[info.main_file]}"
        make_folder(cache.parent, DataError)
    return _to_graph(info, open_or_build(cache, source, lambda target: _convert(info, folder, target)))


def _get(info: OgbInfo, folder: Path, url: str) -> None:
    if folder.exists() and any(path.name != "processed" for path in folder.iterdir() if not path.name.startswith(".")):
        raise DataError(
            f"{folder}: has no raw/{info.main_file} and no usable cache; remove the folder to get {info.name} anew"
        )
    make_folder(folder.parent, DataError)
    download_and_unpack(
        url,
        folder,
        archive_folder=info.archive_folder,
        needed=lambda unpacked: [unpacked / f"RELEASE_v{VERSION}.txt", *_raw_files(info, unpacked).values()],
        manual=(
            f"to add {info.name} by hand, fetch {info.url} on a machine with network, unzip it in {folder.parent} and "
            f"rename the folder {info.archive_folder} to {info.folder}, so that {folder}/raw/{info.main_file} exists; "
            "or point ZOO_DATA at a folder that holds it"
        ),
    )


def _raw_files(info: OgbInfo, folder: Path) -> dict[str, Path]:
    raw, split = folder / "raw", folder / "split" / info.split
    names = ["num-node-list.csv.gz", "num-edge-list.csv.gz", "edge.csv.gz", "node-label.csv.gz"]
    names += ["node-feat.csv.gz"] * bool(info.widths.node) + ["edge-feat.csv.gz"] * bool(info.widths.edge)
    files = {name: raw / name for name in (["data.npz", "node-label.npz"] if info.is_npz else names)}
    if info.widths.categories:
        files[SPECIES_FILES[0]] = next(
            (raw / name for name in SPECIES_FILES if (raw / name).exists()), raw / SPECIES_FILES[0]
        )
    return files | {f"{name}.csv.gz": split / f"{name}.csv.gz" for name in ("train", "valid", "test")}


def _fingerprint(info: OgbInfo, folder: Path) -> dict[str, str]:
    """Tell raw files apart without reading them, by the checksums that gzip and zip files hold of their contents."""
    result = {}
    for name, path in _raw_files(info, folder).items():
        try:
            if path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    result[name] = "".join(f"{member.CRC:08x}" for member in archive.infolist())
                continue
            with open(path, "rb") as file:
                file.seek(-8, os.SEEK_END)
                result[name] = file.read(8).hex()
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: missing or cut short; remove {folder} to get {info.name} anew") from error
    return result


def _convert(info: OgbInfo, folder: Path, target: Path) -> None:
    """Read the raw files into .npy files and check that they make a graph."""
    files = _raw_files(info, folder)
    labels = _convert_npz(info, files, target) if info.is_npz else _convert_csv(info, files, target)
    if info.task == "multiclass":
        # Class numbers are small, so float32 holds them exactly; an empty field is an unlabeled node.
        labels = np.where(np.isnan(labels[:, 0]), -1, labels[:, 0]).astype(np.int64)
    np.save(target / "y.npy", labels)
    for name in ("train", "valid", "test"):
        np.save(target / f"{name}.npy", read_csv(files[f"{name}.csv.gz"], None, "int64", f"{name} nodes")[:, 0])
    arrays = {path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in target.glob("*.npy")}
    validate(_to_graph(info, arrays))


def _count(path: Path, what: str) -> int:
    values = read_npz(path, f"num_{what}_list") if path.suffix == ".npz" else read_csv(path, 1, "int64", what)
    if values.size != 1 or not 1 <= values.item() < (2**31 if what == "nodes" else 2**63):
        raise DataError(f"{path}: expected one positive number of {what}; nodes are numbered in 32 bits")
    return int(values.item())


def _convert_npz(info: OgbInfo, files: Mapping[str, Path], target: Path) -> Array:
    """Copy edges and node features, a chunk at a time; the [N, 1] labels."""
    data, label_file = files["data.npz"], files["node-label.npz"]
    num_nodes, num_edges = _count(data, "nodes"), _count(data, "edges")
    edges, features = npz_blocks(data, "edge_index"), npz_blocks(data, "node_feat")
    edge_index, x = target / "edge_index.npy", target / "x.npy"
    convert(edges, f"{data}: edge_index", edge_index, (2, num_edges), np.int32, limit=num_nodes)
    convert(features, f"{data}: node_feat", x, (num_nodes, None), np.float32)
    labels = read_npz(label_file, "node_label")
    if labels.shape != (num_nodes, 1):
        raise DataError(f"{label_file}: the labels are {list(labels.shape)}, expected [{num_nodes}, 1]")
    return labels


def _convert_csv(info: OgbInfo, files: Mapping[str, Path], target: Path) -> Array:
    """Copy edges, features and species, a chunk at a time; the [N, T] labels."""
    num_nodes, num_edges = (
        _count(files["num-node-list.csv.gz"], "nodes"),
        _count(files["num-edge-list.csv.gz"], "edges"),
    )
    widths = info.widths
    num_values = num_edges * (2 + widths.edge) + num_nodes * (2 + widths.node + widths.tasks)
    check_free_space(target, 4 * num_values, f"the converted {info.name}")

    edges = csv_blocks(files["edge.csv.gz"], num_edges, "int64", "edges", transposed=True)
    edge_index = target / "edge_index.npy"
    convert(edges, f"{files['edge.csv.gz']}: edges", edge_index, (2, num_edges), np.int32, limit=num_nodes)
    for what, stem, num_rows in (("edge", "edge_attr", num_edges), ("node", "x", num_nodes)):
        if (file := files.get(f"{what}-feat.csv.gz")) is not None:
            blocks = csv_blocks(file, num_rows, "float32", f"{what} features")
            convert(blocks, f"{file}: {what} features", target / f"{stem}.npy", (num_rows, None), np.float32)
    if SPECIES_FILES[0] in files:
        species = read_csv(files[SPECIES_FILES[0]], num_nodes, "int64", "species")[:, 0]
        np.save(target / "categories.npy", species_to_categories(species))
    return read_csv(files["node-label.csv.gz"], num_nodes, "float32", "labels")


def species_to_categories(species: np.ndarray) -> np.ndarray:
    """Number species [N] 0 .. K - 1 as the published ogbn-proteins models expect it.

    Their code takes taxonomy ids modulo the largest one before it sorts them, which moves the largest to the front.
    """
    return np.unique(species % species.max(), return_inverse=True)[1].astype(np.int64)


def _to_graph(info: OgbInfo, arrays: Arrays) -> Graph:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        return Graph(
            name=info.name,
            edge_index=tensors["edge_index"],
            undirected=info.undirected,
            num_nodes=len(tensors["y"]),
            x=tensors["x"] if info.widths.node else None,
            categories=tensors["categories"] if info.widths.categories else None,
            edge_attr=tensors["edge_attr"] if info.widths.edge else None,
            y=tensors["y"],
            splits=(Split(tensors["train"], tensors["valid"], tensors["test"]),),
            task=info.task,
            num_tasks=info.widths.tasks,
        )
    except KeyError as error:
        raise DataError(f"{info.name}: the converted data lack {error}; remove the folder 'zoo' beside raw/") from error
