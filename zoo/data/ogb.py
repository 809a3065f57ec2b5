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
from typing import Any

import numpy as np
import torch

from zoo.data.array_files import (
    Arrays,
    convert_edges,
    convert_features,
    convert_npz,
    count_columns,
    open_arrays,
    open_or_build,
    read_count,
    read_csv,
    read_npz,
)
from zoo.data.download import check_free_space, data_root, download_and_unpack
from zoo.data.graph import Graph, Split, Task, validate
from zoo.errors import DataError
from zoo.files import make_folder

Array = np.ndarray[Any, Any]
# The file that holds the categories of nodes, where a data set has them; the older name is still in use.
SPECIES_FILES = ("node_species.csv.gz", "species.csv.gz")


@dataclass(frozen=True)
class OgbInfo:
    """The facts about one of OGB's data sets.

    Attributes:
        name: e.g. "ogbn-proteins".
        archive_folder: the name of the folder inside the archive.
        task: what a label means.
        num_nodes: N; a smaller graph in the same format is a stand-in.
        num_edges: rows of the edge file.
        num_tasks: outputs per node.
        undirected: True if a row of the edge file counts in both directions.
        split: the name of the split's folder.
        has_node_attr: True if the nodes have features.
        has_edge_attr: True if the edges have features.
        has_species: True if the nodes have species.
        is_npz: True if the raw files are .npz and not CSV files.
    """

    name: str
    archive_folder: str
    task: Task
    num_nodes: int
    num_edges: int
    num_tasks: int
    undirected: bool
    split: str
    has_node_attr: bool = True
    has_edge_attr: bool = False
    has_species: bool = False
    is_npz: bool = False

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
            OgbInfo(
                "ogbn-proteins",
                archive_folder="proteins",
                task="multilabel",
                num_nodes=132_534,
                num_edges=39_561_252,
                num_tasks=112,
                undirected=True,
                split="species",
                has_node_attr=False,
                has_edge_attr=True,
                has_species=True,
            ),
            OgbInfo(
                "ogbn-arxiv",
                archive_folder="arxiv",
                task="multiclass",
                num_nodes=169_343,
                num_edges=1_166_243,
                num_tasks=40,
                undirected=False,
                split="time",
            ),
            OgbInfo(
                "ogbn-products",
                archive_folder="products",
                task="multiclass",
                num_nodes=2_449_029,
                num_edges=61_859_140,
                num_tasks=47,
                undirected=True,
                split="sales_ranking",
            ),
            OgbInfo(
                "ogbn-papers100M",
                archive_folder="papers100M-bin",
                task="multiclass",
                num_nodes=111_059_956,
                num_edges=1_615_685_872,
                num_tasks=172,
                undirected=False,
                split="time",
                is_npz=True,
            ),
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
    names += ["node-feat.csv.gz"] * info.has_node_attr + ["edge-feat.csv.gz"] * info.has_edge_attr
    files = {name: raw / name for name in (["data.npz", "node-label.npz"] if info.is_npz else names)}
    if info.has_species:
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


def _check_num_nodes(num_nodes: int, where: Path) -> None:
    if num_nodes >= 2**31:
        raise DataError(f"{where}: {num_nodes:,} nodes do not fit into 32 bits")


def _convert_npz(info: OgbInfo, files: Mapping[str, Path], target: Path) -> Array:
    """Copy edges and node features, a chunk at a time; the [N, 1] labels."""
    data = files["data.npz"]
    counts = [read_npz(data, f"num_{what}_list") for what in ("nodes", "edges")]
    if any(count.size != 1 or count.item() < 1 for count in counts):
        raise DataError(f"{data}: expected one positive number of nodes and one of edges")
    num_nodes, num_edges = (int(count.item()) for count in counts)
    _check_num_nodes(num_nodes, data)
    convert_npz(data, "edge_index", target / "edge_index.npy", (2, num_edges), np.int32, limit=num_nodes)
    convert_npz(data, "node_feat", target / "x.npy", (num_nodes, None), np.float32)
    labels = read_npz(files["node-label.npz"], "node_label")
    if labels.shape != (num_nodes, 1):
        raise DataError(f"{files['node-label.npz']}: the labels are {list(labels.shape)}, expected [{num_nodes}, 1]")
    return labels


def _convert_csv(info: OgbInfo, files: Mapping[str, Path], target: Path) -> Array:
    """Copy edges, features and species, a chunk at a time; the [N, T] labels."""
    num_nodes = read_count(files["num-node-list.csv.gz"], "nodes")
    num_edges = read_count(files["num-edge-list.csv.gz"], "edges")
    _check_num_nodes(num_nodes, files["num-node-list.csv.gz"])
    num_values = 2 * num_edges + num_nodes * (info.num_tasks + 2)
    if info.has_edge_attr:
        num_values += num_edges * count_columns(files["edge-feat.csv.gz"])
    if info.has_node_attr:
        num_values += num_nodes * count_columns(files["node-feat.csv.gz"])
    check_free_space(target, 4 * num_values, f"the converted {info.name}")

    convert_edges(files["edge.csv.gz"], target / "edge_index.npy", num_edges, num_nodes)
    if info.has_edge_attr:
        convert_features(files["edge-feat.csv.gz"], target / "edge_attr.npy", num_edges, "edge features")
    if info.has_node_attr:
        convert_features(files["node-feat.csv.gz"], target / "x.npy", num_nodes, "node features")
    if info.has_species:
        species = read_csv(files[SPECIES_FILES[0]], num_nodes, "int64", "species")[:, 0]
        np.save(target / "categories.npy", species_to_categories(species))
    return read_csv(files["node-label.csv.gz"], num_nodes, "float32", "labels")


def species_to_categories(species: np.ndarray) -> np.ndarray:
    """Number the species 0 .. K - 1 as the published ogbn-proteins models expect it.

    Their code takes taxonomy ids modulo the largest one before it sorts them, which moves the largest to the front.

    Args:
        species: [N] positive integers.

    Returns:
        [N] int64.
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
            x=tensors["x"] if info.has_node_attr else None,
            categories=tensors["categories"] if info.has_species else None,
            edge_attr=tensors["edge_attr"] if info.has_edge_attr else None,
            y=tensors["y"],
            splits=(Split(tensors["train"], tensors["valid"], tensors["test"]),),
            task=info.task,
            num_tasks=info.num_tasks,
        )
    except KeyError as error:
        raise DataError(f"{info.name}: the converted data lack {error}; remove the folder 'zoo' beside raw/") from error
