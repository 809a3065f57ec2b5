"""The data sets by name: how each is loaded, what it asks and whose it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from zoo.data.arrays import graph_from_arrays, read_arrays, undirected_edges
from zoo.data.download import data_root, download
from zoo.data.generated import generated_graph
from zoo.data.graph import Graph, Task
from zoo.data.ogb import OGB, load_ogb
from zoo.data.published import (
    PARTS,
    city_arrays,
    copurchase_arrays,
    digits_graph,
    heterophilous_arrays,
    planetoid_arrays,
    wikics_arrays,
)
from zoo.errors import DataError, nearest
from zoo.files import locked, make_folder
from zoo.spec.base import parse_spec
from zoo.spec.plugins import Table
from zoo.spec.results import ReportedResult
from zoo.spec.shape import CityName, GeneratedName, GeneratedSpec
from zoo.spec.train import MetricName

Array = np.ndarray[Any, Any]
Loader = Callable[[str, "str | Path | None"], Graph]

HETEROPHILOUS_URL = "https://github.com/yandex-research/heterophilous-graphs/raw/main/data"
PLANETOID_URL = "https://github.com/kimiyoung/planetoid/raw/master/data"
COPURCHASE_URL = "https://github.com/shchur/gnn-benchmark/raw/master/data/npz"
WIKICS_URL = "https://github.com/pmernyei/wiki-cs-dataset/raw/master/dataset"
CITY_URL = "https://github.com/LeonResearch/City-Networks/raw/refs/heads/main/data"
# Each is published without a split; the benchmark's splits are in another repository, of which this is one commit.
SPLITS_URL = "https://github.com/LUOyk1999/tunedGNN/raw/23f9604e8b13a9a6d3faa2f691cd844006979153/medium_graph/data"
COPURCHASE_FILES = {
    "amazon-photo": ("amazon_electronics_photo", "amazon-photo"),
    "amazon-computers": ("amazon_electronics_computers", "amazon-computer"),
    "coauthor-cs": ("ms_academic_cs", "coauthor-cs"),
    "coauthor-physics": ("ms_academic_phy", "coauthor-physics"),
}
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Dataset:
    """Facts about a data set, known before it is loaded."""

    load: Loader  # takes the name and the data root
    task: Task | None  # None if the data decide
    license: str
    source: str
    summary: str
    reported: tuple[ReportedResult, ...] = ()  # what others measured on it


def load_graph(
    name: str,
    *,
    root: str | Path | None = None,
    path: str | Path | None = None,
    undirected: bool = False,
    generated: GeneratedSpec | Mapping[str, int] | None = None,
) -> Graph:
    """Load a data set, getting it first where that has not been done.

    Args:
        name: a key of ``DATASETS``, or "file" for your own graph.
        root: the folder of all data; by default the environment variable ZOO_DATA, else the user's cache folder.
        path: for "file" only: a .npz file or a folder of .npy files as described in ``zoo.data.arrays``.
        undirected: give every edge of a directed graph its inverse; repeated edges are merged.
        generated: range, num_nodes and seed of a data set that is generated, as in a recipe; what is left out has its
            default.

    Returns:
        The graph, with the node features that the data set has, if any.

    Raises:
        DataError: if the name is unknown, or the data are missing, damaged or do not fit.
    """
    if generated is not None:
        if name not in get_args(GeneratedName):
            raise DataError(f"'generated' goes with {', '.join(get_args(GeneratedName))}, not with {name!r}")
        if not isinstance(generated, GeneratedSpec):
            generated = parse_spec(GeneratedSpec, generated, where=f"{name}: generated", error=DataError)
        return generated_graph(cast(GeneratedName, name), generated)
    if name == "file":
        if path is None:
            raise DataError("the data set 'file' needs a path: a .npz file or a folder of .npy files")
        path = Path(path).expanduser()
        graph = graph_from_arrays(path.stem, read_arrays(path), str(path))
    else:
        if name not in DATASETS:
            hint = nearest(name, DATASETS, f"there are {', '.join(DATASETS)} and file")
            raise DataError(f"unknown data set {name!r}; {hint}")
        if path is not None:
            raise DataError(f"a path goes with the data set 'file' only, not with {name!r}; use root for a data folder")
        graph = DATASETS[name].load(name, root)
    if graph.undirected or not undirected:
        return graph
    if graph.edge_attr is not None or graph.edge_weight is not None:
        values = "features" if graph.edge_attr is not None else "weights"
        raise DataError(f"{graph.name}: a directed graph with edge {values} cannot be made undirected without a choice")
    return replace(graph, edge_index=undirected_edges(graph.edge_index, graph.num_nodes), undirected=True)


def _heterophilous(name: str, root: str | Path | None) -> Graph:
    """ROOT/NAME.npz in the zoo's format or in the one of its publishers; downloaded if it is not there."""
    path = data_root(root) / f"{name}.npz"
    if not path.exists():
        make_folder(path.parent, DataError)
        url = f"{HETEROPHILOUS_URL}/{name.replace('-', '_')}.npz"
        download(url, path, manual=_manual(name, [url], path), max_bytes=MAX_FILE_BYTES)
    arrays = read_arrays(path)
    if "node_features" in arrays:
        arrays = heterophilous_arrays(arrays, str(path))
    return graph_from_arrays(name, arrays, str(path))


def _planetoid(name: str, root: str | Path | None) -> Graph:
    urls = [f"{PLANETOID_URL}/ind.{name}.{part}" for part in PARTS]
    return _converted(name, root, urls, lambda raw: planetoid_arrays(raw, name))


def _copurchase(name: str, root: str | Path | None) -> Graph:
    file, split = COPURCHASE_FILES[name]
    urls = [f"{COPURCHASE_URL}/{file}.npz", f"{SPLITS_URL}/{split}_split.npz"]
    return _converted(name, root, urls, lambda raw: copurchase_arrays(raw / f"{file}.npz", raw / f"{split}_split.npz"))


def _wikics(name: str, root: str | Path | None) -> Graph:
    return _converted(name, root, [f"{WIKICS_URL}/data.json"], lambda raw: wikics_arrays(raw / "data.json"))


def _city(name: str, root: str | Path | None) -> Graph:
    return _converted(name, root, [f"{CITY_URL}/{name}.tar.gz"], lambda raw: city_arrays(raw / f"{name}.tar.gz", name))


def _converted(
    name: str, root: str | Path | None, urls: list[str], convert: Callable[[Path], Mapping[str, Array]]
) -> Graph:
    """ROOT/NAME.npz; made from the published files in ROOT/NAME, downloaded if need be, if it is not there."""
    folder = data_root(root)
    path = folder / f"{name}.npz"
    if not path.exists():
        raw = folder / name
        make_folder(raw, DataError)
        with locked(raw / ".lock", DataError):
            for url in urls:
                target = raw / url.rsplit("/", 1)[1]
                if not target.exists():
                    download(url, target, manual=_manual(name, urls, raw), max_bytes=MAX_FILE_BYTES)
            if not path.exists():
                arrays, part_path = convert(raw), raw / f"{name}.part.npz"
                # What is no graph must not be stored.
                graph_from_arrays(name, arrays, str(raw))
                np.savez_compressed(part_path, **arrays)  # type: ignore[arg-type]
                part_path.replace(path)
    return graph_from_arrays(name, read_arrays(path), str(path))


def _manual(name: str, urls: list[str], place: Path) -> str:
    what = urls[0] if len(urls) == 1 else f"the {len(urls)} files {urls[0]} ... {urls[-1].rsplit('/', 1)[1]}"
    return (
        f"to add {name} by hand, fetch {what} on a machine with network and put it at {place}; "
        "or point ZOO_DATA at a folder that holds it"
    )


_OGB_PAGE = "https://ogb.stanford.edu/docs/nodeprop/"
_HETEROPHILOUS = "https://github.com/yandex-research/heterophilous-graphs"
_COPURCHASE = "https://github.com/shchur/gnn-benchmark"
_TUNED = "https://github.com/LUOyk1999/tunedGNN"
_PLANETOID = "https://github.com/kimiyoung/planetoid"
_CITY = "https://github.com/LeonResearch/City-Networks"
_ECHO = "https://github.com/Graph-ECHO-Benchmark/ECHO"


def _ogb_entry(name: str, license: str, summary: str) -> Dataset:
    return Dataset(lambda name, root: load_ogb(name, root=root), OGB[name].task, license, _OGB_PAGE, summary)


def _heterophilous_entry(task: Task, summary: str, *reported: ReportedResult) -> Dataset:
    return Dataset(_heterophilous, task, "MIT", _HETEROPHILOUS, summary, reported)


def _planetoid_entry(summary: str, *reported: ReportedResult) -> Dataset:
    license = "MIT (repository; the texts state none)"
    return Dataset(_planetoid, "multiclass", license, _PLANETOID, summary, reported)


def _copurchase_entry(summary: str, *reported: ReportedResult) -> Dataset:
    return Dataset(_copurchase, "multiclass", "MIT", _COPURCHASE, summary, reported)


def _generated_entry(task: Task, source: str, summary: str) -> Dataset:
    # The license is that of this package, which makes them.
    return Dataset(lambda name, root: generated_graph(cast(GeneratedName, name)), task, "MIT", source, summary)


def _test(metric: MetricName, model: str, mean: float, std: float | None, source: str) -> ReportedResult:
    return ReportedResult(split="test", metric=metric, mean=mean, std=std, model=model, source=source)


DATASETS: Mapping[str, Dataset] = Table(
    {
        "ogbn-proteins": _ogb_entry(
            "ogbn-proteins", "CC0", "Proteins of 8 species, 8 kinds of evidence per edge, 112 labels."
        ),
        "ogbn-arxiv": _ogb_entry("ogbn-arxiv", "ODC-BY", "Papers of computer science and whom they cite, 40 areas."),
        "ogbn-products": _ogb_entry("ogbn-products", "Amazon license", "Products bought together, 47 categories."),
        "ogbn-papers100M": _ogb_entry(
            "ogbn-papers100M", "ODC-BY", "111 million papers and whom they cite, 172 areas for 1.5 million of them."
        ),
        "digits": Dataset(
            # It comes with scikit-learn, so there is nothing to look for under the root.
            lambda name, root: digits_graph(),
            "multiclass",
            "CC BY 4.0",
            "https://archive.ics.uci.edu/dataset/80",
            "Images of digits linked with their 8 nearest, 10 train images per digit; comes with scikit-learn.",
        ),
        "minesweeper": _heterophilous_entry(
            "binary",
            "Cells of a minefield; which hide a mine?",
            _test("rocauc", "ResNet without graph", 0.5089, 0.0139, _HETEROPHILOUS),
            _test("rocauc", "GCN", 0.8975, 0.0052, _HETEROPHILOUS),
            _test("rocauc", "GT-sep", 0.9229, 0.0047, _HETEROPHILOUS),
            _test("rocauc", "SAGE", 0.9351, 0.0057, _HETEROPHILOUS),
            _test("rocauc", "GAT-sep", 0.9391, 0.0035, _HETEROPHILOUS),
            _test("rocauc", "tuned GAT, 15 layers, 3 splits", 0.9773, 0.0073, _TUNED),
            _test("rocauc", "tuned GraphSAGE, 15 layers, 3 splits", 0.9777, 0.0062, _TUNED),
            _test("rocauc", "tuned GCN, 12 layers, 3 splits", 0.9786, 0.0024, _TUNED),
        ),
        "roman-empire": _heterophilous_entry(
            "multiclass",
            "Words of an article, 18 syntactic roles.",
            _test("accuracy", "tuned GCN", 0.9127, None, _TUNED),
        ),
        "amazon-ratings": _heterophilous_entry(
            "multiclass",
            "Products bought together, 5 classes of rating.",
            _test("accuracy", "tuned GAT", 0.5554, None, _TUNED),
        ),
        "tolokers": _heterophilous_entry("binary", "Crowd workers on shared tasks; who was banned?"),
        "questions": _heterophilous_entry(
            "binary", "Users of a question site; who stays active?", _test("rocauc", "tuned GCN", 0.7902, None, _TUNED)
        ),
        "chameleon-filtered": _heterophilous_entry(
            "multiclass", "Articles on chameleons without duplicates, 5 classes of traffic."
        ),
        "squirrel-filtered": _heterophilous_entry(
            "multiclass",
            "Articles on squirrels without duplicates, 5 classes of traffic.",
            _test("accuracy", "tuned GraphSAGE", 0.4078, 0.0147, _TUNED),
            _test("accuracy", "tuned GAT", 0.4173, 0.0207, _TUNED),
            _test("accuracy", "tuned GCN", 0.4501, 0.0163, _TUNED),
        ),
        "amazon-photo": _copurchase_entry(
            "Cameras bought together, 8 categories.",
            _test("accuracy", "tuned GCN, 6 layers, 3 runs", 0.9610, 0.0046, _TUNED),
            _test("accuracy", "tuned GAT, 3 layers, 3 runs", 0.9660, 0.0033, _TUNED),
            _test("accuracy", "tuned GraphSAGE, 6 layers, 3 runs", 0.9678, 0.0023, _TUNED),
        ),
        "amazon-computers": _copurchase_entry("Computers bought together, 10 categories."),
        "coauthor-cs": _copurchase_entry("Computer scientists who wrote together, 15 fields."),
        "coauthor-physics": _copurchase_entry("Physicists who wrote together, 5 fields."),
        "wikics": Dataset(
            _wikics,
            "multiclass",
            "MIT",
            "https://github.com/pmernyei/wiki-cs-dataset",
            "Wikipedia articles on computer science, 10 areas.",
            (_test("accuracy", "tuned GAT", 0.8107, None, _TUNED),),
        ),
        "cora": _planetoid_entry(
            "Papers and citations, 7 topics, 20 train papers per topic.",
            _test("accuracy", "GCN", 0.815, None, "https://arxiv.org/abs/1609.02907"),
            _test("accuracy", "GCNII, 64 layers", 0.855, None, "https://github.com/chennnM/GCNII"),
        ),
        "citeseer": _planetoid_entry("Papers and citations, 6 topics, 20 train papers per topic."),
        "pubmed": _planetoid_entry("Papers on diabetes and citations, 3 topics, 20 train papers per topic."),
        **{
            name: Dataset(_city, "multiclass", "ODbL (OpenStreetMap)", _CITY, f"Roads of {city}, 10 classes of reach.")
            for name, city in zip(get_args(CityName), ("Paris", "Shanghai", "Los Angeles", "London"), strict=True)
        },
        **{
            f"graph-transfer-{shape}": _generated_entry(
                "multiclass",
                "https://arxiv.org/abs/2302.02941",
                f"{shape.capitalize().replace('-', ' ')}s; a node tells the class of another, range hops away.",
            )
            for shape in ("line", "ring", "crossed-ring")
        },
        "shortest-path": _generated_entry("regression", _ECHO, "Small graphs; hops to a source, at most range."),
        "eccentricity": _generated_entry(
            "regression", _ECHO, "Small graphs; hops to the farthest node, at most range."
        ),
        "diameter": _generated_entry(
            "regression", _ECHO, "Small graphs; every node tells the diameter of its graph, at most range."
        ),
        "road": _generated_entry(
            "multiclass",
            "https://arxiv.org/abs/2503.09008",
            "Junctions of a road-like network; how far do range hops reach, in 10 classes?",
        ),
    },
    "datasets",
    lambda plugin, _: plugin.load(),
)
