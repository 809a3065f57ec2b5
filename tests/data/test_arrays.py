import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoo.data import arrays as arrays_module
from zoo.data.arrays import edges_in_both_directions, graph_from_arrays, read_arrays, undirected_edges
from zoo.data.datasets import load_graph
from zoo.errors import DataError

Arrays = dict[str, Any]


def some_arrays(**changes: Any) -> Arrays:
    """A valid graph of five nodes; a change to None takes an array out."""
    masks = np.zeros((3, 2, 5), bool)
    masks[0, :, 0] = masks[1, :, 1] = masks[2, 0, 2:] = masks[2, 1, 3:] = True
    arrays: Arrays = {
        "edge_index": np.array([[0, 1, 2, 3], [1, 2, 3, 4]], np.int32),
        "x": np.arange(10, dtype=np.uint8).reshape(5, 2),
        "edge_attr": np.linspace(0, 1, 4, dtype=np.float64)[:, None],
        "y": np.array([0, 1, 2, 1, 0]),
        "train_mask": masks[0],
        "valid_mask": masks[1],
        "test_mask": masks[2],
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def written(folder: Path, arrays: Arrays, as_folder: bool = False) -> Path:
    if not as_folder:
        np.savez(folder / "own.npz", **arrays)
        return folder / "own.npz"
    (folder / "own").mkdir()
    for key, value in arrays.items():
        np.save(folder / "own" / f"{key}.npy", value)
    return folder / "own"


@pytest.mark.parametrize("as_folder", [False, True])
def test_own_graphs_load(as_folder: bool, tmp_path: Path) -> None:
    graph = load_graph("file", path=written(tmp_path, some_arrays(), as_folder))
    assert (graph.name, graph.num_nodes, graph.task, graph.num_tasks) == ("own", 5, "multiclass", 3)
    assert graph.undirected
    assert graph.x is not None
    assert graph.x.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert graph.edge_attr is not None
    assert graph.edge_attr.dtype == torch.float32
    assert [split.test.tolist() for split in graph.splits] == [[2, 3, 4], [3, 4]]
    assert graph.edge_index.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]


def test_one_split_may_be_one_row(tmp_path: Path) -> None:
    masks = {key: value[0] for key, value in some_arrays().items() if key.endswith("mask")}
    assert len(load_graph("file", path=written(tmp_path, some_arrays(**masks))).splits) == 1


@pytest.mark.parametrize(
    ("y", "task", "num_tasks"),
    [
        (np.array([0, 1, 0, 1, -1]), "binary", 1),
        (np.array([0, 1, 0, 3, -1]), "multiclass", 4),
        (np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0]], np.uint8), "multilabel", 2),
        (np.array([[0, 1], [1, np.nan], [1, 1], [0, 0], [1, 0]]), "multilabel", 2),
        (np.array([0.0, 1.0, 0.0, np.nan, 1.0]), "binary", 1),
        (np.array([[0], [1], [2], [3], [-1]]), "multiclass", 4),
        (np.array([0.5, 1.0, np.nan, 3.0, -1.0]), "regression", 1),
        (np.array([[0, 1], [1, 0.5], [1, 1], [0, 0], [1, 0]]), "regression", 2),
    ],
)
def test_the_task_follows_from_the_labels(y: np.ndarray, task: str, num_tasks: int, tmp_path: Path) -> None:
    graph = load_graph("file", path=written(tmp_path, some_arrays(y=y)))
    assert (graph.task, graph.num_tasks) == (task, num_tasks)


@pytest.mark.parametrize("directions", [None, True])
def test_edges_listed_in_both_directions_are_undirected(directions: bool | None, tmp_path: Path) -> None:
    edge_index = np.array([[0, 1, 2, 1, 3, 2], [1, 0, 1, 2, 2, 3]])
    attr = np.array([[1], [1], [2], [2], [3], [3]])
    undirected = None if directions is None else np.array(directions)
    arrays = some_arrays(edge_index=edge_index, edge_attr=attr, undirected=undirected)
    graph = load_graph("file", path=written(tmp_path, arrays))
    assert graph.undirected
    assert graph.edge_index.tolist() == [[0, 1, 2], [1, 2, 3]]
    assert graph.edge_attr is not None
    assert graph.edge_attr.tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("edge_index", "attr"),
    [
        ([[0, 1], [1, 0]], [[1], [2]]),  # the directions differ in their features
        ([[0, 1, 0, 1], [1, 0, 1, 0]], [[1]] * 4),  # repeated
        ([[0, 1, 2], [1, 0, 2]], [[1]] * 3),  # a self-loop, which would count twice
    ],
)
def test_edges_that_undirected_ones_cannot_stand_for_stay_directed(
    edge_index: list[list[int]], attr: list[list[int]], tmp_path: Path
) -> None:
    arrays = some_arrays(edge_index=np.array(edge_index), edge_attr=np.array(attr))
    with pytest.raises(DataError, match="both directions"):
        load_graph("file", path=written(tmp_path, arrays))
    graph = graph_from_arrays("own", arrays, "own", undirected=False)
    assert not graph.undirected
    assert graph.edge_index.tolist() == edge_index


def test_masks_may_be_those_of_pytorch_geometric(tmp_path: Path) -> None:
    arrays = some_arrays()
    expected = load_graph("file", path=written(tmp_path, arrays))
    arrays["val_mask"] = arrays.pop("valid_mask").T
    arrays["train_mask"] = arrays["train_mask"].T
    found = load_graph("file", path=written(tmp_path, arrays))
    for one, other in zip(expected.splits, found.splits, strict=True):
        assert torch.equal(one.train, other.train)
        assert torch.equal(one.valid, other.valid)
        assert torch.equal(one.test, other.test)


def test_one_test_mask_serves_several_splits(tmp_path: Path) -> None:
    arrays = some_arrays(test_mask=np.array([0, 0, 0, 1, 1], bool))
    assert [split.test.tolist() for split in load_graph("file", path=written(tmp_path, arrays)).splits] == [[3, 4]] * 2


def test_the_task_can_be_given(tmp_path: Path) -> None:
    arrays = some_arrays(y=np.array([0, 1, 0, 1, 1]), task=np.array("multiclass"))
    graph = load_graph("file", path=written(tmp_path, arrays))
    assert (graph.task, graph.num_tasks) == ("multiclass", 2)


def test_minus_one_is_unlabeled_in_whole_number_labels(tmp_path: Path) -> None:
    y = np.array([[0, 1], [1, -1], [1, 1], [0, 0], [1, 0]])
    graph = load_graph("file", path=written(tmp_path, some_arrays(y=y)))
    assert torch.isnan(graph.y).nonzero().tolist() == [[1, 1]]


def test_directed_graphs_and_categories_load(tmp_path: Path) -> None:
    arrays = some_arrays(undirected=np.array(False), categories=np.array([0, 1, 0, 1, 2], np.uint8))
    graph = load_graph("file", path=written(tmp_path, arrays))
    assert not graph.undirected
    assert graph.categories is not None
    assert graph.categories.tolist() == [0, 1, 0, 1, 2]


FAULTS = {
    "missing": ({"y": None, "test_mask": None}, "the arrays y, test_mask are missing"),
    "unknown": ({"valid_masks": np.zeros(5)}, "unknown array 'valid_masks'; did you mean 'valid_mask'"),
    "twice": ({"val_mask": np.zeros(5)}, "val_mask and valid_mask are the same array"),
    "float edges": ({"edge_index": np.zeros((2, 4))}, "edge_index must hold whole numbers, not float64"),
    "beyond": ({"edge_index": np.full((2, 4), 5)}, "8 node ids above 4"),
    "unsigned beyond": ({"edge_index": np.full((2, 4), 2**32 - 1, np.uint32)}, "8 node ids above 4"),
    "flat edges": ({"edge_index": np.zeros(4, int)}, r"edge_index must be \[2, E\]"),
    "NaN": ({"x": np.full((5, 1), np.nan)}, "x holds 5 values"),
    "beyond float32": ({"x": np.full((5, 1), 1e300)}, "x holds 5 values that are NaN or infinite in float32"),
    "edges beyond float32": (
        {"edge_attr": np.full((4, 1), -1e39)},
        "edge_attr holds 4 values that are NaN or infinite",
    ),
    "labels beyond float32": ({"y": np.full((5, 2), 1e300)}, "y holds 10 numbers that are infinite"),
    "no columns": ({"x": np.zeros((5, 0))}, "x has no columns"),
    "huge label": ({"y": np.array([0, 1, 2, 1, 10**12])}, "y holds 1 labels above 999,999"),
    "large label": ({"y": np.array([0, 1, 2, 1, 2_000_000])}, "y holds 1 labels above 999,999"),
    "huge category": ({"categories": np.array([0, 1, 2, 1, 10**9])}, "categories holds 1 values above 999,999"),
    "text features": ({"x": np.array([["a"]] * 5)}, "x must hold numbers"),
    "flat features": ({"x": np.zeros(5)}, "x must have two dimensions"),
    "short features": ({"edge_attr": np.zeros((3, 1))}, "E = 4"),
    "parts of classes": ({"y": np.full(5, 0.5), "task": np.array("binary")}, "y must hold whole numbers for a binary"),
    "text labels": ({"y": np.array(["a"] * 5)}, "y must hold numbers"),
    "no labels": ({"y": np.zeros(0, int)}, "not empty"),
    "three dimensions": ({"y": np.zeros((5, 1, 1))}, "y must be"),
    "bad label": ({"y": np.array([0, 1, 2, -2, 0])}, "1 labels outside"),
    "bad task": ({"task": np.array("ranking")}, "task is 'ranking', expected one of multilabel"),
    "other task": ({"task": np.array("multilabel")}, "does not go with y of shape"),
    "mask length": ({"train_mask": np.zeros(4, bool)}, "train_mask must be"),
    "mask values": ({"train_mask": np.array([0, 2, 0, 0, 0])}, "train_mask must be bool"),
    "numbers of splits": ({"train_mask": np.eye(5, dtype=bool)}, "train_mask 5, valid_mask 2, test_mask 2"),
    "empty split": ({"train_mask": np.zeros((2, 5), bool)}, "split 0: train has no nodes"),
    "overlap": ({"train_mask": np.ones((2, 5), bool)}, "in both train and valid"),
    "undirected": ({"undirected": np.array(2)}, "undirected must be one true or false"),
    "categories": ({"categories": np.zeros(5)}, "categories must hold whole numbers"),
    "both directions": (
        {"edge_index": np.array([[0, 1, 2, 2], [1, 0, 3, 2]])},
        "1 edges are listed in both directions .* add undirected = false",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_name_the_file_and_the_array(case: str, tmp_path: Path) -> None:
    changes, message = FAULTS[case]
    path = written(tmp_path, some_arrays(**changes))
    with pytest.raises(DataError, match=message) as caught:
        load_graph("file", path=path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("as_folder", [False, True])
def test_pickled_arrays_are_refused_unread(as_folder: bool, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    x = np.array([[Payload(canary)]] * 5, dtype=object)
    path = written(tmp_path, some_arrays(x=x), as_folder)
    with pytest.raises(DataError, match="cannot be read as plain NumPy arrays"):
        load_graph("file", path=path)
    assert not canary.exists()


@pytest.mark.parametrize("damage", ["cut", "html", "empty"])
def test_damaged_files_are_named(damage: str, tmp_path: Path) -> None:
    path = written(tmp_path, some_arrays())
    content = {"cut": path.read_bytes()[:300], "html": b"<html></html>", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"own\.npz: cannot be read"):
        load_graph("file", path=path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"0" * 100_000)
    monkeypatch.setattr(arrays_module, "MAX_NPZ_BYTES", 99_999)
    with pytest.raises(DataError, match=r"unpacks to 100,000 bytes; .*folder of .npy files"):
        load_graph("file", path=path)


def test_paths_that_are_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_graph("file", path=tmp_path / "none.npz")
    with pytest.raises(DataError, match=r"no \.npy files"):
        load_graph("file", path=tmp_path)
    with pytest.raises(DataError, match="needs a path"):
        load_graph("file")
    with pytest.raises(DataError, match="a path goes with the data set 'file' only"):
        load_graph("digits", path=tmp_path)


def test_large_folders_are_mapped(tmp_path: Path) -> None:
    path = written(tmp_path, some_arrays(edge_attr=np.ones((4, 3), np.float32)), as_folder=True)
    arrays = read_arrays(path)
    graph = graph_from_arrays("own", arrays, str(path))
    assert graph.edge_attr is not None
    assert isinstance(arrays["edge_attr"], np.memmap)
    assert graph.edge_attr.data_ptr() == arrays["edge_attr"].ctypes.data
    graph.edge_attr.zero_()
    assert np.load(path / "edge_attr.npy").all()


def test_undirected_edges_are_merged() -> None:
    edge_index = torch.tensor([[3, 0, 1, 3, 2, 2], [0, 3, 0, 0, 2, 2]])
    assert undirected_edges(edge_index, 4).tolist() == [[0, 0, 2], [1, 3, 2]]
    assert edges_in_both_directions(edge_index, 4) == 1


def test_a_directed_graph_can_be_made_undirected(tmp_path: Path) -> None:
    arrays = some_arrays(undirected=np.array(False), edge_index=np.array([[0, 1, 2, 2], [1, 0, 1, 3]]), edge_attr=None)
    graph = load_graph("file", path=written(tmp_path, arrays), undirected=True)
    assert graph.undirected
    assert graph.edge_index.tolist() == [[0, 1, 2], [1, 2, 3]]
    arrays["edge_attr"] = np.zeros((4, 1))
    with pytest.raises(DataError, match="cannot be made undirected"):
        load_graph("file", path=written(tmp_path, arrays), undirected=True)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_random_damage_ends_in_one_line_whatever_numpy_raises(save: Any, tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    path = tmp_path / "own.npz"
    save(path, **some_arrays())
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for position in rng.randint(len(data), size=rng.randint(1, 4)):
            data[position] = rng.randint(256)
        path.write_bytes(data)
        try:
            read_arrays(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)  # noqa: PT017, PT018


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_damaged_header_of_an_array_ends_in_one_line(as_folder: bool, tmp_path: Path) -> None:
    headers = ["{'descr': (", "'\\\\", "{'descr': 1}", "x" * 60, "\0" * 10]
    for number, header in enumerate(headers):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3))
        data = buffer.getvalue().replace(b"{'descr': '<f8'", header.encode().ljust(15)[:15])
        folder = tmp_path / str(number)
        folder.mkdir()
        if as_folder:
            (folder / "x.npy").write_bytes(data)
        else:
            with zipfile.ZipFile(folder / "own.npz", "w") as archive:
                archive.writestr("x.npy", data)
        with pytest.raises(DataError, match="cannot be read as plain NumPy arrays"):
            read_arrays(folder if as_folder else folder / "own.npz")


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(DataError, match="cannot be read as plain NumPy arrays"):
        read_arrays(tmp_path / "own.npz")


def test_an_array_larger_than_its_file_takes_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 6)})
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 100)
    with pytest.raises(DataError, match=r"x.npy declares the shape \[1099511627776, 6\], but has 2\d\d bytes"):
        read_arrays(tmp_path / "own.npz")


def test_a_file_of_zeros_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "own.npz", x=np.zeros(80 << 20, np.uint8))
    with pytest.raises(DataError, match="unpacks to 83,886,"):
        read_arrays(tmp_path / "own.npz")


def test_a_pipe_in_a_folder_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"x\.npy: not a regular file"):
        read_arrays(tmp_path)
