import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from tests.data.conftest import Server
from tests.data.test_arrays import Payload
from zoo.data import datasets
from zoo.data.arrays import undirected_edges
from zoo.data.datasets import COPURCHASE_FILES, load_graph
from zoo.data.published import copurchase_arrays, wikics_arrays
from zoo.errors import DataError

N, WIDTH = 12, 5


def published(canary: Path) -> dict[str, Any]:
    """A graph as its publishers store it: CSR matrices, labels, and a pickled list of names, here a hostile one."""
    rng = np.random.RandomState(0)
    adj = scipy.sparse.csr_matrix((rng.rand(N, N) < 0.2).astype(np.float32))
    attr = scipy.sparse.csr_matrix(((rng.rand(N, WIDTH) < 0.4) * rng.randint(1, 4, (N, WIDTH))).astype(np.float32))
    arrays: dict[str, Any] = {"labels": rng.randint(3, size=N), "node_names": np.array([Payload(canary)], dtype=object)}
    for kind, matrix in (("adj", adj), ("attr", attr)):
        parts = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": matrix.shape}
        arrays |= {f"{kind}_{name}": part for name, part in parts.items()}
    return arrays


SPLIT = {"train": np.array([3, 1, 0, 7]), "valid": np.array([2, 5]), "test": np.array([4, 6, 8, 9, 10, 11])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "graph.npz", **published(tmp_path / "canary"))
    np.savez(tmp_path / "split.npz", **SPLIT)
    return tmp_path


@pytest.mark.parametrize("name", COPURCHASE_FILES)
def test_a_copurchase_graph_is_downloaded_once_and_equals_pytorch_geometrics(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, split = COPURCHASE_FILES[name]
    raw = published(tmp_path / "canary")
    np.savez(server.folder / f"{file}.npz", **raw)
    np.savez(server.folder / f"{split}_split.npz", **SPLIT)
    monkeypatch.setattr(datasets, "COPURCHASE_URL", server.url("")[:-1])
    monkeypatch.setattr(datasets, "SPLITS_URL", server.url("")[:-1])
    for _ in range(2):
        graph = load_graph(name, root=tmp_path / "root")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = importlib.import_module("torch_geometric.io.npz").parse_npz(raw)
    assert torch.equal(graph.edge_index.long(), undirected_edges(theirs.edge_index, N))
    assert graph.x is not None
    assert torch.equal(graph.x, theirs.x)
    assert torch.equal(graph.y, theirs.y)
    assert [ids.tolist() for ids in (graph.splits[0].train, graph.splits[0].valid)] == [[0, 1, 3, 7], [2, 5]]
    assert server.requests == [f"/{file}.npz", f"/{split}_split.npz"]
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(5)}, "another size"),
        ({"adj_indices": np.array([99])}, "do not make a graph"),
        ({"attr_indptr": np.array([0])}, "do not make a graph"),
        ({"adj_data": np.array([None], dtype=object)}, "cannot be read as plain NumPy arrays"),
    ],
)
def test_a_damaged_graph_is_named(changes: dict[str, Any], message: str, folder: Path) -> None:
    np.savez(folder / "graph.npz", **{**published(folder / "canary"), **changes})
    with pytest.raises(DataError, match=rf"graph\.npz.*{message}"):
        copurchase_arrays(folder / "graph.npz", folder / "split.npz")


@pytest.mark.parametrize("ids", [np.array([-1]), np.array([N]), np.array([0.5])])
def test_a_split_of_another_graph_is_refused(ids: Any, folder: Path) -> None:
    np.savez(folder / "split.npz", **{**SPLIT, "valid": ids})
    with pytest.raises(DataError, match=r"split\.npz: these files do not make a graph"):
        copurchase_arrays(folder / "graph.npz", folder / "split.npz")


def test_the_pickled_names_would_harm(folder: Path) -> None:
    with np.load(folder / "graph.npz", allow_pickle=True) as arrays:
        assert len(arrays["node_names"]) == 1
    assert (folder / "canary").exists()


def wikics(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "features": [[0.5, -1.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]],
        "labels": [0, 2, 1, 1],
        "links": [[1, 0], [2], [1], []],
        "train_masks": [[True, False, False, False], [False, True, False, False]],
        "val_masks": [[False, True, False, False], [False, False, False, False]],
        "stopping_masks": [[False, False, True, False], [True, False, False, False]],
        "test_mask": [False, False, False, True],
    }
    return {**data, **changes}


def test_wikics_has_undirected_edges_and_the_splits_of_its_benchmark(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server.folder / "data.json").write_text(json.dumps(wikics()))
    monkeypatch.setattr(datasets, "WIKICS_URL", server.url("")[:-1])
    graph = load_graph("wikics", root=tmp_path / "root")
    assert graph.edge_index.tolist() == [[0, 1], [1, 2]]
    assert graph.num_tasks == 3
    assert [[s.train.tolist(), s.valid.tolist(), s.test.tolist()] for s in graph.splits] == [
        [[0], [1, 2], [3]],
        [[1], [0], [3]],
    ]


@pytest.mark.parametrize("changes", [{"links": [[9], [], [], []]}, {"labels": None}, {"val_masks": [[True, False]]}])
def test_a_damaged_wikics_is_named(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(wikics(**changes)))
    with pytest.raises(DataError, match=r"data\.json: not the data of Wiki-CS"):
        wikics_arrays(tmp_path / "data.json")
