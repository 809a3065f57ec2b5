"""A graph from named arrays: the format of a user's own data and of the zoo's .npz files.

Required arrays are ``edge_index`` [2, E], ``y`` and ``train_mask``, ``valid_mask`` (or ``val_mask``), ``test_mask``
([N], [num_splits, N] or [N, num_splits], bool). Optional ones are ``x`` [N, F], ``edge_attr`` [E, D], ``edge_weight``
[E], ``categories`` [N], and the scalars ``undirected`` (default true: each edge once, or every edge in both directions)
and ``task``. Without ``task``, labels other than whole numbers are those of a regression; else a 2-D ``y`` is
multilabel, a 1-D ``y`` without labels above 1 is binary, any other is multiclass. Labels of -1 (but of a regression)
and NaN are unlabeled.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.data.array_files import npy_header
from zoo.data.graph import Array, Graph, Split, Task, validate
from zoo.errors import DataError, nearest
from zoo.files import write_errors

MASKS = ("train_mask", "valid_mask", "test_mask")
REQUIRED = ("edge_index", "y", *MASKS)
KNOWN = (*REQUIRED, "x", "edge_attr", "edge_weight", "categories", "undirected", "task")
ALIASES = {"val_mask": "valid_mask"}
MAX_NPZ_BYTES = 32 << 30
# Files of zeros shrink a thousandfold, graphs a hundredfold at most. Small arrays may be anything.
_MAX_NPZ_RATIO, _MIN_CHECKED_BYTES = 300, 64 << 20


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, Array]:
    """Read the arrays of a .npz file, of some names alone if given, or map those of a folder of .npy files.

    Nothing is unpickled.

    Raises:
        DataError: if the path is neither, or an array is damaged, pickled or too large.
    """
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: no such file or folder; give a .npz file or a folder of .npy files")
    try:
        return _read_folder(path) if path.is_dir() else _read_npz(path, names)
    except DataError:
        raise
    except Exception as error:
        # Damaged files make NumPy, zipfile and zlib raise a dozen types, tokenizer's and MemoryError among them.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as plain NumPy arrays ({reason})") from error


def _read_folder(path: Path) -> dict[str, Array]:
    files = sorted(path.glob("*.npy"))
    if not files:
        raise DataError(f"{path}: no .npy files in this folder; it needs {', '.join(REQUIRED)}")
    for file in files:
        # Reading from a pipe could wait forever.
        if not file.is_file():
            raise DataError(f"{file}: not a regular file")
    return {file.stem: np.load(file, mmap_mode="c", allow_pickle=False) for file in files}


def _read_npz(path: Path, names: Collection[str] | None) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > MAX_NPZ_BYTES or size > max(_MAX_NPZ_RATIO * path.stat().st_size, _MIN_CHECKED_BYTES):
            raise DataError(f"{path}: unpacks to {size:,} bytes; give arrays that large as a folder of .npy files")
        found = {member.filename.removesuffix(".npy"): member for member in members}
        return {name: _read_member(archive, m) for name, m in found.items() if names is None or name in names}


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """One array; refused if it declares a larger size than it has: memory for all of it would be taken first."""
    with archive.open(member) as file:
        shape, _, dtype = npy_header(file)
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} declares the shape {list(shape)}, but has {member.file_size:,} bytes")
        file.seek(0)
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
        return array


def graph_from_arrays(name: str, arrays: Mapping[str, Array], where: str, *, undirected: bool = True) -> Graph:
    """Check named arrays and make them a graph.

    Args:
        name: of the graph.
        arrays: as described at the top of this file.
        where: begins every error message.
        undirected: what edges are that the arrays do not call ``undirected`` or not, and not all of which are listed
            in both directions.

    Returns:
        A valid graph.

    Raises:
        DataError: if arrays are missing, unknown or do not belong together.
    """
    if both := [key for key, other in ALIASES.items() if key in arrays and other in arrays]:
        raise DataError(f"{where}: {both[0]} and {ALIASES[both[0]]} are the same array; leave one out")
    arrays = {ALIASES.get(key, key): value for key, value in arrays.items()}
    if missing := [key for key in REQUIRED if key not in arrays]:
        raise DataError(f"{where}: the arrays {', '.join(missing)} are missing; there are {', '.join(sorted(arrays))}")
    for key in arrays:
        if key not in KNOWN:
            known = f"known: {', '.join(KNOWN)}"
            raise DataError(f"{where}: unknown array {key!r}; {nearest(key, KNOWN, known)}")
    task, labels = _labels(arrays, where)
    # An output for each label, number to predict or class, one alone for a binary task.
    num_tasks = labels.shape[1] if labels.ndim == 2 else 1 if task == "binary" else max(int(labels.max()) + 1, 2)
    edge_index = arrays["edge_index"]
    if edge_index.dtype.kind not in "iu":
        raise DataError(f"{where}: edge_index must hold whole numbers, not {edge_index.dtype}")
    if edge_index.dtype not in (np.int32, np.int64):
        edge_index = edge_index.astype(np.int64)
    undirected = _flag(arrays["undirected"], where) if (told := "undirected" in arrays) else undirected
    categories = arrays.get("categories")
    if categories is not None and categories.dtype.kind not in "iu":
        raise DataError(f"{where}: categories must hold whole numbers, not {categories.dtype}")
    graph = Graph(
        name=name,
        edge_index=torch.from_numpy(np.require(edge_index, requirements=["C", "W"])),
        undirected=undirected,
        num_nodes=len(labels),
        x=_floats(arrays, "x", where),
        categories=None if categories is None else torch.from_numpy(categories.astype(np.int64)),
        edge_attr=_floats(arrays, "edge_attr", where),
        edge_weight=_floats(arrays, "edge_weight", where),
        y=torch.from_numpy(labels),
        splits=_splits(arrays, len(labels), where),
        task=task,
        num_tasks=num_tasks,
    )
    try:
        validate(graph)
    except DataError as error:
        raise DataError(f"{where}: {str(error).removeprefix(f'{name}: ')}") from error
    if undirected or not told:
        kept = one_direction(graph)
        if kept is not None:
            edge_attr, weight = (None if t is None else t[kept] for t in (graph.edge_attr, graph.edge_weight))
            edges = graph.edge_index[:, kept]
            return replace(graph, edge_index=edges, edge_attr=edge_attr, edge_weight=weight, undirected=True)
    if undirected and (twice := edges_in_both_directions(graph.edge_index, graph.num_nodes)):
        raise DataError(
            f"{where}: {twice:,} edges are listed in both directions though undirected is true; "
            "list each edge once, or add undirected = false"
        )
    return graph


def save_graph(graph: Graph, path: str | Path) -> Path:
    """Write a graph as a .npz file, which ``load_graph("file", path=path)`` reads.

    Args:
        graph: as loaded, without the self-loops of a recipe.
        path: of the file; its stem is the name of the graph when it is read.

    Raises:
        DataError: if it cannot be written, or the graph has self-loops that it does not store.
    """
    path = Path(path)
    if not isinstance(graph, Graph):
        raise DataError(f"expected a zoo.Graph, got {type(graph).__name__}; zoo.Graph.from_pyg makes one of a PyG Data")
    if graph.self_loops or path.suffix != ".npz":
        raise DataError(f"{path}: only a graph without data.self_loops can be saved, under a name that ends in .npz")
    tensors = {"edge_index": graph.edge_index, "x": graph.x, "edge_attr": graph.edge_attr, "y": graph.y}
    tensors |= {"edge_weight": graph.edge_weight, "categories": graph.categories}
    arrays = {key: tensor.cpu().numpy() for key, tensor in tensors.items() if tensor is not None}
    arrays |= {f"{name}_mask": graph.masks(name).numpy() for name in ("train", "valid", "test")}
    arrays |= {"undirected": np.array(graph.undirected), "task": np.array(graph.task)}
    part = path.with_name(f".{path.stem}.part.npz")
    with write_errors(path, DataError):
        np.savez(part, **arrays)  # type: ignore[arg-type]
        part.replace(path)
    return path


def one_direction(graph: Graph) -> Tensor | None:
    """One of the two directions of every edge, if the edges are those of an undirected graph listed in both.

    Returns:
        [E / 2] ascending positions of the edges from a smaller to a larger node; None if an edge lacks its inverse or
        differs from it in its features, is listed twice, or is a self-loop.
    """
    source, target = graph.edge_index.long()
    # A cheap check first, which decides for most lists of directed edges.
    if not graph.num_edges or 2 * int((source < target).sum()) != graph.num_edges:
        return None
    keys, order = torch.sort(source * graph.num_nodes + target)
    inverse_keys, inverse = torch.sort(target * graph.num_nodes + source)
    if not torch.equal(keys, inverse_keys) or bool((keys[1:] == keys[:-1]).any()):
        return None
    # Edges order[k] and inverse[k] join the same nodes in opposite directions.
    values = [tensor for tensor in (graph.edge_attr, graph.edge_weight) if tensor is not None]
    if not all(torch.equal(tensor[order], tensor[inverse]) for tensor in values):
        return None
    return torch.nonzero(source < target).squeeze(1)


def edges_in_both_directions(edge_index: Tensor, num_nodes: int) -> int:
    """Number of pairs of different nodes that are joined by edges of both directions."""
    source, target = edge_index.long()
    up = torch.unique((source * num_nodes + target)[source < target])
    down = torch.unique((target * num_nodes + source)[source > target])
    return len(up) + len(down) - len(torch.unique(torch.cat([up, down])))


def undirected_edges(edge_index: Tensor, num_nodes: int) -> Tensor:
    """The undirected edges behind directed ones [2, E], listed in one or both directions, repeated or not.

    Returns:
        [2, E'] each pair once, smaller node first, sorted.
    """
    low, high = edge_index.long().min(dim=0).values, edge_index.long().max(dim=0).values
    keys = torch.unique(low * num_nodes + high)
    return torch.stack([keys // num_nodes, keys % num_nodes]).to(edge_index.dtype)


def multiclass_arrays(edge_index: Array, x: Array, y: Array, masks: Array) -> dict[str, Array]:
    """The arrays of a published graph of classes; self-loops are left out.

    Args:
        edge_index: [2, E] in either direction or in both.
        x: [N, F].
        y: [N], -1 for unlabeled.
        masks: [3, N] or [3, num_splits, N] bool: train, valid, test.

    Raises:
        ValueError: if an edge leads to a node that is not there.
    """
    edges = torch.from_numpy(edge_index[:, edge_index[0] != edge_index[1]].astype(np.int64))
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= len(y)):
        raise ValueError(f"edges lead to nodes that are not there, outside 0 .. {len(y) - 1:,}")
    return {
        "edge_index": undirected_edges(edges, len(y)).numpy().astype(np.int32),
        "x": x,
        "y": y.astype(np.int64),
        **dict(zip(MASKS, masks, strict=True)),
        "task": np.array("multiclass"),
    }


def _labels(arrays: Mapping[str, Array], where: str) -> tuple[Task, Array]:
    """The task, and the labels as ``Graph.y`` holds them."""
    y = arrays["y"]
    if y.ndim not in (1, 2) or not len(y) or (y.ndim == 2 and not y.shape[1]):
        raise DataError(f"{where}: y must be [N] or [N, T] and not empty, not {list(y.shape)}")
    if y.dtype.kind not in "iufb":
        raise DataError(f"{where}: y must hold numbers, not {y.dtype}")
    if y.dtype.kind in "iu" and y.ndim == 2 and y.shape[1] == 1 and y.max() > 1:
        y = y[:, 0]  # [N, 1] classes, as OGB has them
    task = _task(arrays, y, where)
    if task == "regression":
        return task, _float32(y.reshape(len(y), -1))
    if task == "multilabel":
        # Whole-number labels have no NaN, so -1 stands for unlabeled there too.
        return task, np.where(y < 0, np.nan, y).astype(np.float32) if y.dtype.kind in "iu" else _float32(y)
    if y.dtype.kind == "f" and not (np.isnan(y) | (y == np.floor(y))).all():
        raise DataError(f"{where}: y must hold whole numbers for a {task} task, or NaN for unlabeled")
    return task, np.nan_to_num(y, nan=-1).astype(np.int64)


def _task(arrays: Mapping[str, Array], y: Array, where: str) -> Task:
    if "task" not in arrays:
        # Zeros and ones may be stored as floats, for the binary cross entropy; other floats are numbers to predict.
        if y.dtype.kind == "f" and not np.isin(y[~np.isnan(y)], (-1, 0, 1) if y.ndim == 1 else (0, 1)).all():
            return "regression"
        if y.ndim == 2:
            return "multilabel"
        return "binary" if np.nanmax(y) <= 1 else "multiclass"
    task = str(arrays["task"])
    if task not in get_args(Task):
        raise DataError(f"{where}: task is {task!r}, expected one of {', '.join(get_args(Task))}")
    if task != "regression" and (task == "multilabel") != (y.ndim == 2):
        raise DataError(f"{where}: a {task} task does not go with y of shape {list(y.shape)}")
    return cast("Task", task)


def _flag(value: Array, where: str) -> bool:
    if value.shape != () or value.dtype.kind not in "biu" or int(value) not in (0, 1):
        raise DataError(f"{where}: undirected must be one true or false, not {value.dtype} {list(value.shape)}")
    return bool(value)


def _floats(arrays: Mapping[str, Array], key: str, where: str) -> Tensor | None:
    """[rows, columns] float32, or [rows] weights; a mapped float32 array stays mapped."""
    if key not in arrays:
        return None
    array = arrays[key]
    if array.dtype.kind not in "iufb":
        raise DataError(f"{where}: {key} must hold numbers, not {array.dtype}")
    num_dimensions = 1 if key == "edge_weight" else 2
    if array.ndim != num_dimensions:
        expected = "one dimension" if num_dimensions == 1 else "two dimensions"
        raise DataError(f"{where}: {key} must have {expected}, not {list(array.shape)}")
    return torch.from_numpy(_float32(array))


def _float32(array: Array) -> Array:
    """The same numbers in a writable float32 array, infinite where float32 ends, which ``validate`` reports."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.require(array, dtype=np.float32, requirements=["C", "W"])


def _splits(arrays: Mapping[str, Array], num_nodes: int, where: str) -> tuple[Split, ...]:
    masks = []
    for key in MASKS:
        mask = arrays[key]
        if mask.dtype.kind not in "biu" or (mask.dtype.kind != "b" and not np.isin(mask, (0, 1)).all()):
            raise DataError(f"{where}: {key} must be bool, not {mask.dtype} of other values")
        mask = np.atleast_2d(mask).astype(bool)
        if mask.ndim == 2 and mask.shape[1] != num_nodes:
            mask = mask.T  # [N, num_splits], as PyTorch Geometric stores several splits
        if mask.ndim != 2 or mask.shape[1] != num_nodes:
            raise DataError(
                f"{where}: {key} must be [N], [num_splits, N] or [N, num_splits] with N = {num_nodes:,}, "
                f"not {list(arrays[key].shape)}"
            )
        masks.append(mask)
    # Several splits, each with its train and valid mask, may share one test mask, as in Wiki-CS.
    counts = {key: len(mask) for key, mask in zip(MASKS, masks, strict=True)}
    if set(counts.values()) - {1, num_splits := max(counts.values())}:
        listed = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise DataError(f"{where}: the masks hold different numbers of splits: {listed}")
    masks = [np.broadcast_to(mask, (num_splits, num_nodes)) for mask in masks]
    return tuple(Split(*(torch.from_numpy(np.flatnonzero(row)) for row in rows)) for rows in zip(*masks, strict=True))
