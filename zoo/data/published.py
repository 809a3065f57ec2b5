"""Public graphs in the forms in which their publishers give them, as arrays; pickles are read without trusting them.

Sources: Platonov et al., A critical look at heterophilous graphs, arXiv 2302.11640; Shchur et al., Pitfalls of graph
neural network evaluation, arXiv 1811.05868, with the splits of Luo et al., Classic GNNs are strong baselines, arXiv
2406.08993; Mernyei and Cangea, Wiki-CS, arXiv 2007.02901; Yang et al., Revisiting semi-supervised learning with graph
embeddings, arXiv 1603.08861 (cora, citeseer, pubmed); the digits of scikit-learn; Liang et al., arXiv 2503.09008.
"""

from __future__ import annotations

import collections
import gzip
import io
import json
import math
import pickle
import pickletools
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from zoo.data.arrays import MASKS, multiclass_arrays, read_arrays, undirected_edges
from zoo.data.graph import Graph, Split, validate
from zoo.errors import DataError

Array = np.ndarray[Any, Any]

_SPARSE = tuple(f"{kind}_{part}" for kind in ("adj", "attr") for part in ("data", "indices", "indptr", "shape"))
# The files of a citation graph.
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
_NUM_PLANETOID_VALID, _MAX_PICKLE_BYTES = 500, 256 << 20
_NUM_NEIGHBORS, _NUM_SPLITS, _TRAIN_PER_CLASS, _NUM_VALID = 8, 10, 10, 500
_CITY_FILES = ("node_features_augmented", "10-chunk_16-hop_node_labels", "edge_indices", *MASKS)
_STORAGES = {"torch FloatStorage": torch.float32, "torch LongStorage": torch.int64, "torch BoolStorage": torch.uint8}
# All tensors of London have about 300 MB.
_MAX_CITY_BYTES, _MAX_CITY_MEMBERS = 1 << 30, 1000


def heterophilous_arrays(raw: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Translate the arrays of the heterophilous benchmark into those of ``zoo.data.arrays``.

    Args:
        raw: as published.
        where: begins every error message.

    Raises:
        DataError: if an array is missing or has no sense as an edge list.
    """
    try:
        labels, edges = raw["node_labels"], raw["edges"]
        if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
            raise DataError(f"{where}: edges must be whole numbers [E, 2], not {edges.dtype} {list(edges.shape)}")
        if edges.size and (edges.min() < 0 or edges.max() >= len(labels)):
            raise DataError(f"{where}: edges lead to nodes outside 0 .. {len(labels) - 1:,}")
        return {
            "edge_index": undirected_edges(torch.from_numpy(edges.T.astype(np.int64)), len(labels)).numpy(),
            "x": raw["node_features"],
            "y": labels,
            "train_mask": raw["train_masks"],
            "valid_mask": raw["val_masks"],
            "test_mask": raw["test_masks"],
        }
    except KeyError as error:
        raise DataError(f"{where}: the array {error} is missing") from error


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


class _Matrix:
    """Receives the attributes of a pickled sparse matrix and nothing else."""

    def __init__(self, *args: object) -> None:
        self.args = args


def _rebuild(kind: type, base: object, state: object) -> _Matrix:
    """Stand-in for ``copyreg._reconstructor``, which makes objects of plain classes; only matrices are such."""
    if kind is not _Matrix:
        raise pickle.UnpicklingError("an object that is no sparse matrix")
    return _Matrix()


def _encode(text: str, encoding: str) -> bytes:
    """Stand-in for ``_codecs.encode``, by which the second pickle protocol stores bytes."""
    return text.encode("latin1")


# The only names that these files need; every other name is refused before it is looked up.
_ALLOWED: dict[tuple[str, str], object] = {
    ("collections", "defaultdict"): collections.defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
    ("__builtin__", "object"): object,
    ("builtins", "object"): object,
    ("copy_reg", "_reconstructor"): _rebuild,
    ("copyreg", "_reconstructor"): _rebuild,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
    ("numpy._core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
    ("scipy.sparse.csr", "csr_matrix"): _Matrix,
    ("scipy.sparse._csr", "csr_matrix"): _Matrix,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which such a file does not need") from None

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside")


def read_pickle(path: Path) -> Any:
    """Read a file of plain containers, NumPy arrays and sparse matrices.

    Args:
        path: a pickle, possibly of Python 2 and of unknown origin.

    Returns:
        A dense array, or what else is in it.

    Raises:
        DataError: if the file is missing, damaged or holds anything else.
    """
    try:
        if path.stat().st_size > _MAX_PICKLE_BYTES:
            raise DataError(f"{path}: larger than {_MAX_PICKLE_BYTES:,} bytes, so not a file of this data set")
        value = _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        if isinstance(value, _Matrix):
            import scipy.sparse

            state = value.__dict__
            parts = tuple(np.asarray(state[key]) for key in ("data", "indices", "indptr"))
            shape = state["_shape"] if "_shape" in state else state["shape"]
            return np.asarray(scipy.sparse.csr_matrix(parts, shape=shape).todense())
        return value
    except DataError:
        raise
    except Exception as error:
        # An unpickler on arbitrary bytes may raise nearly anything; nothing it raises means a usable file.
        raise DataError(f"{path}: not read, {error or type(error).__name__}") from error


def planetoid_arrays(folder: Path, name: str) -> dict[str, Array]:
    """Put the files of a data set together, with the public split.

    Args:
        folder: holds ``ind.NAME.x`` and the others.
        name: "cora", "citeseer" or "pubmed".

    Returns:
        Arrays as in ``zoo.data.arrays``. Nodes of citeseer without a description have no features and no label.

    Raises:
        DataError: if the files are missing, damaged, unsafe or do not belong together.
    """
    files = {part: folder / f"ind.{name}.{part}" for part in PARTS}
    parts = {part: read_pickle(path) for part, path in files.items() if part != "test.index"}
    try:
        test = np.array(files["test.index"].read_text(encoding="ascii").split(), dtype=np.int64)
        num_train, num_known = len(parts["y"]), len(parts["ally"])
        first, num_nodes = int(test.min()), int(test.max()) + 1
        if first < num_known or parts["allx"].shape[0] != num_known or len(test) != len(parts["tx"]):
            raise ValueError("the files are of different sizes")
        x = np.zeros((num_nodes, parts["allx"].shape[1]), dtype=np.float32)
        y = np.full(num_nodes, -1, dtype=np.int64)
        x[:num_known], y[:num_known] = parts["allx"], np.asarray(parts["ally"]).argmax(axis=1)
        x[test], y[test] = parts["tx"], np.asarray(parts["ty"]).argmax(axis=1)
        edges = [(int(source), int(target)) for source, targets in parts["graph"].items() for target in targets]
        masks = np.zeros((3, num_nodes), dtype=bool)
        masks[0, :num_train] = True
        masks[1, num_train : num_train + _NUM_PLANETOID_VALID] = True
        masks[2, test] = True
        return multiclass_arrays(np.array(edges, dtype=np.int64).T, x, y, masks)
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: the files of {name} do not make a graph ({error})") from error


def city_arrays(path: Path, name: str) -> dict[str, Array]:
    """Read the roads of a city of City-Networks; nothing is unpickled, and nothing is written.

    As in ``torch_geometric.datasets.CityNetwork``, the features of a junction include the mean of those of its roads.
    The latter, which that class leaves out, are length in meters, speed limit in km/h, and one-hot codes of one-way,
    lanes, reversed and kind (``dataset_generation/generate_dataset.py`` of github.com/LeonResearch/City-Networks).

    Args:
        path: ``NAME.tar.gz`` as published.
        name: of the data set.

    Returns:
        Arrays as in ``zoo.data.arrays``; each road once, with its features if the archive has them.

    Raises:
        DataError: if the archive is damaged, unsafe or incomplete.
    """
    try:
        tensors = _city_tensors(path, name)
        if missing := [key for key in _CITY_FILES if key not in tensors]:
            raise ValueError(f"no {name}/{missing[0]}.pt in it")
        x, y, edges, *sets = (tensors[key] for key in _CITY_FILES)
        if any(values.dtype.kind not in "ib" or values.min(initial=0) < 0 for values in (y, edges, *sets)):
            raise ValueError("labels, edges and sets must be whole numbers from 0")
        masks = np.zeros((3, len(y)), dtype=bool)
        # Published archives hold masks; the code of the authors that makes them writes the nodes of a set.
        for mask, nodes in zip(masks, sets, strict=True):
            mask[nodes] = True
        arrays = multiclass_arrays(edges, x, y, masks)
        if (features := tensors.get("edge_features")) is not None:
            there, back = np.lexsort(edges[::-1]), np.lexsort(edges)
            if len(features) != len(there) or not np.array_equal(edges[:, there], edges[::-1, back]):
                raise ValueError("edges must be listed in both directions, with a row of edge_features each")
            # The features of both directions are equal but for rounding.
            arrays["edge_attr"] = features[there][edges[0, there] < edges[1, there]]
        return arrays
    except Exception as error:
        # Arbitrary bytes make gzip, tarfile, zipfile and pickletools raise nearly anything.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: not the network of {name} ({reason}); remove the file to get it anew") from error


def _city_tensors(path: Path, name: str) -> dict[str, Array]:
    """The tensors in the folder ``name`` of an archive, by file stem."""
    with gzip.open(path) as unpacked:
        content = unpacked.read(_MAX_CITY_BYTES + 1)
    if len(content) > _MAX_CITY_BYTES:
        raise ValueError(f"it unpacks to more than {_MAX_CITY_BYTES:,} bytes")
    tensors, wanted = {}, {f"{name}/{stem}.pt": stem for stem in (*_CITY_FILES, "edge_features")}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for count, member in enumerate(archive):
            place = PurePosixPath(member.name)
            # A sparse file may declare any size.
            is_plain = member.isdir() or (member.isreg() and not member.issparse())
            if not is_plain or place.is_absolute() or ".." in place.parts or count == _MAX_CITY_MEMBERS:
                raise ValueError(f"it holds the unsafe member {member.name!r}")
            if str(place) in wanted and (file := archive.extractfile(member)) is not None:
                try:
                    tensors[wanted[str(place)]] = _tensor(file.read())
                except Exception as error:
                    raise ValueError(f"{place}: {error}") from error
    return tensors


def _tensor(content: bytes) -> Array:
    """Read a file of one dense tensor by the arguments of the opcodes of its pickle, none of which is executed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # Without compression, no value is larger than the file.
        if any(member.compress_type for member in archive.infolist()):
            raise ValueError("compressed, which torch.save does not do")
        [index] = [member for member in archive.namelist() if member.endswith("data.pkl")]
        opcodes = pickletools.genops(archive.read(index)[:4096])
        words = [word for opcode, word, _ in opcodes if word is not None and "PUT" not in opcode.name]
        if words[1:3] != ["torch._utils _rebuild_tensor_v2", "storage"] or words[3] not in _STORAGES:
            raise ValueError("not one dense tensor")
        kind, key, _, count, offset, *view, _ = words[3:]
        values = torch.frombuffer(bytearray(archive.read(f"{index[:-4]}/{key}")), dtype=_STORAGES[kind])
    sizes, strides = view[: len(view) // 2], view[len(view) // 2 :]
    if len(values) != count or math.prod(sizes) > count:
        raise ValueError("it declares other values than it has")
    # PyTorch refuses a view that leaves the values.
    tensor = values.as_strided(sizes, strides, offset).clone()
    return (tensor != 0 if kind == "torch BoolStorage" else tensor).numpy()


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
    nearest = np.argsort(order, axis=1, kind="stable")[:, :_NUM_NEIGHBORS]  # [N, 8]
    rank = np.full((n, n), _NUM_NEIGHBORS + 1)
    np.put_along_axis(rank, nearest, np.arange(1, _NUM_NEIGHBORS + 1)[None, :], axis=1)
    best, worst = np.minimum(rank, rank.T), np.maximum(rank, rank.T)
    source, target = np.nonzero(np.triu(best <= _NUM_NEIGHBORS))
    distance = np.sqrt(squared[source, target]) / 16
    edge_attr = np.stack(
        [
            distance,
            np.exp(-((distance / distance.mean()) ** 2)),
            products[source, target] / np.sqrt(squares[source] * squares[target]),
            worst[source, target] <= _NUM_NEIGHBORS,
            best[source, target] / _NUM_NEIGHBORS,
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
        splits=tuple(_split(data.target, seed) for seed in range(_NUM_SPLITS)),
        task="multiclass",
        num_tasks=10,
    )
    validate(graph)
    return graph


def _split(labels: np.ndarray[Any, Any], seed: int) -> Split:
    # The legacy generator is frozen, so the splits outlive new versions of NumPy.
    order = np.random.RandomState(seed).permutation(len(labels))
    train = np.concatenate([order[labels[order] == digit][:_TRAIN_PER_CLASS] for digit in range(10)])
    rest = order[~np.isin(order, train)]
    return Split(*(torch.from_numpy(np.sort(nodes)) for nodes in (train, rest[:_NUM_VALID], rest[_NUM_VALID:])))
