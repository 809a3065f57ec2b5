import importlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import scipy.sparse
import torch

from tests.data.conftest import Server
from tests.data.test_arrays import Payload, some_arrays
from zoo.data import datasets
from zoo.data.arrays import undirected_edges
from zoo.data.datasets import DATASETS, load_graph
from zoo.data.graph import directed_edges
from zoo.data.metrics import metrics_of
from zoo.data.published import read_pickle
from zoo.errors import DataError
from zoo.spec.shape import DatasetName


def test_every_data_set_of_a_recipe_is_known() -> None:
    assert {*DATASETS, "file"} == set(get_args(DatasetName))


def test_every_data_set_says_what_its_labels_mean_and_whose_it_is() -> None:
    for entry in DATASETS.values():
        assert entry.task is not None
        assert {figure.metric for figure in entry.reported} <= {metrics_of(entry.task)[0]}
        assert entry.source.startswith("https://")
        assert entry.license


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="unknown data set 'ogbn-protein'; did you mean 'ogbn-proteins'"):
        load_graph("ogbn-protein")
    with pytest.raises(DataError, match=r"there are ogbn-proteins, .* and file"):
        load_graph("zzz")


def test_arxiv_can_be_made_undirected(ogb_root: Path) -> None:
    directed = load_graph("ogbn-arxiv", root=ogb_root)
    graph = load_graph("ogbn-arxiv", root=ogb_root, undirected=True)
    assert graph.undirected
    both = {tuple(edge) for edge in directed_edges(graph)[0].T.tolist()}
    assert both == {tuple(edge) for pair in directed.edge_index.T.tolist() for edge in (pair, pair[::-1])}
    products = load_graph("ogbn-products", root=ogb_root)
    again = load_graph("ogbn-products", root=ogb_root, undirected=True)
    assert torch.equal(products.edge_index, again.edge_index)


def raw_heterophilous(**changes: Any) -> dict[str, Any]:
    arrays = some_arrays()
    return {
        "node_features": arrays["x"].astype(np.float32),
        "node_labels": arrays["y"],
        "edges": np.array([[0, 1], [2, 1], [1, 2], [4, 0]]),
        "train_masks": arrays["train_mask"],
        "val_masks": arrays["valid_mask"],
        "test_masks": arrays["test_mask"],
        **changes,
    }


@pytest.mark.parametrize("name", ["roman-empire", "squirrel-filtered", "chameleon-filtered"])
def test_a_heterophilous_graph_is_downloaded_once(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = f"{name.replace('-', '_')}.npz"
    np.savez(server.folder / file, **raw_heterophilous())
    monkeypatch.setattr(datasets, "HETEROPHILOUS_URL", server.url("")[:-1])
    root = tmp_path / "root"
    for _ in range(2):
        graph = load_graph(name, root=root)
        assert graph.edge_index.tolist() == [[0, 0, 1], [1, 4, 2]]
        assert (graph.name, graph.undirected, graph.num_tasks, len(graph.splits)) == (name, True, 3, 2)
    assert server.requests == [f"/{file}"]


def test_a_file_in_our_format_is_used_as_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "cora.npz", **some_arrays())
    np.savez(tmp_path / "tolokers.npz", **some_arrays(y=np.array([0, 1, 1, 0, 1])))
    assert load_graph("cora", root=tmp_path).num_tasks == 3
    assert load_graph("tolokers", root=tmp_path).task == "binary"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": np.zeros((2, 4))}, "edges must be whole numbers"),
        ({"edges": np.array([[0, 5]])}, "edges lead to nodes outside"),
        ({"node_features": np.zeros((4, 2))}, "N = 5"),
    ],
)
def test_a_damaged_heterophilous_file_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "questions.npz", **raw_heterophilous(**changes))
    with pytest.raises(DataError, match=f"questions.npz: .*{message}"):
        load_graph("questions", root=tmp_path)
    raw = raw_heterophilous()
    del raw["val_masks"]
    np.savez(tmp_path / "questions.npz", **raw)
    with pytest.raises(DataError, match="'val_masks' is missing"):
        load_graph("questions", root=tmp_path)


@pytest.mark.parametrize("name", ["minesweeper", "cora"])
def test_without_network_the_error_says_what_to_do_by_hand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("HETEROPHILOUS_URL", "PLANETOID_URL"):
        monkeypatch.setattr(datasets, url, "http://127.0.0.1:9/data")
    with pytest.raises(
        DataError, match=rf"to add {name} by hand, fetch .*127.0.0.1:9/data/.* put it at {tmp_path}/{name}"
    ):
        load_graph(name, root=tmp_path)


def test_addresses_are_those_of_pytorch_geometric() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = importlib.import_module("torch_geometric.datasets")
    assert theirs.HeterophilousGraphDataset.url == datasets.HETEROPHILOUS_URL
    assert theirs.Planetoid.url == datasets.PLANETOID_URL


def old_matrix(matrix: scipy.sparse.csr_matrix) -> bytes:
    """A pickled matrix as the first protocol of Python 2 wrote it, with the module names of its time."""
    content = pickle.dumps(matrix, protocol=0).replace(b"cscipy.sparse._csr\n", b"cscipy.sparse.csr\n")
    content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    return content.replace(b"ccopyreg\n", b"ccopy_reg\n").replace(b"c__builtin__\n", b"c__builtin__\n")


def write_planetoid(folder: Path, name: str, gap: bool = False) -> None:
    """60 known nodes of which 6 are train nodes, 10 test nodes in disorder, 10 or 11 ids for them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(0)
    known, train, test = 600, 6, 10
    num_nodes = known + test + gap
    order = rng.permutation([i for i in range(known, num_nodes) if not (gap and i == known + 4)])

    def features(rows: int) -> scipy.sparse.csr_matrix:
        return scipy.sparse.csr_matrix((rng.rand(rows, 5) < 0.4).astype(np.float32))

    allx, ally = features(known), np.eye(3, dtype=np.int32)[rng.randint(3, size=known)]
    parts = {"allx": allx, "x": allx[:train], "tx": features(test), "ally": ally, "y": ally[:train]}
    parts["ty"] = np.eye(3, dtype=np.int32)[rng.randint(3, size=test)]
    graph: dict[int, list[int]] = {i: [] for i in range(num_nodes)}
    for source, target in rng.randint(num_nodes, size=(900, 2)).tolist():
        graph[source].append(target)
        graph[target].append(source)
    for key, value in {**parts, "graph": graph}.items():
        content = old_matrix(value) if scipy.sparse.issparse(value) else pickle.dumps(value, protocol=2)
        (folder / f"ind.{name}.{key}").write_bytes(content)
    (folder / f"ind.{name}.test.index").write_text("\n".join(map(str, order)) + "\n")


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_planetoid_files_are_read_like_by_pytorch_geometric(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_planetoid(server.folder, name, gap=name == "citeseer")
    monkeypatch.setattr(datasets, "PLANETOID_URL", server.url("")[:-1])
    graph = load_graph(name, root=tmp_path / "root")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = importlib.import_module("torch_geometric.io.planetoid").read_planetoid_data(str(server.folder), name)
    assert graph.num_nodes == theirs.num_nodes
    assert graph.x is not None
    assert torch.equal(graph.x, theirs.x)
    labeled = graph.y >= 0
    assert torch.equal(graph.y[labeled], theirs.y[labeled])
    assert int((~labeled).sum()) == (name == "citeseer")
    assert torch.equal(graph.edge_index.long(), undirected_edges(theirs.edge_index, graph.num_nodes))
    split = graph.splits[0]
    for ids, mask in ((split.train, theirs.train_mask), (split.valid, theirs.val_mask), (split.test, theirs.test_mask)):
        assert torch.equal(ids, mask.nonzero().squeeze(1))
    assert len(server.requests) == 8
    load_graph(name, root=tmp_path / "root")
    assert len(server.requests) == 8


def hostile_pickles(canary: Path) -> dict[str, bytes]:
    touch = f"import pathlib; pathlib.Path({str(canary)!r}).touch()"
    return {
        "reduce": pickle.dumps(Payload(canary), protocol=2),
        "os.system": f"cos\nsystem\n(S'touch {canary}'\ntR.".encode(),
        "eval": f"c__builtin__\nexec\n(S{touch!r}\ntR.".encode(),
        "getattr": b"c__builtin__\ngetattr\n(c__builtin__\nlist\nS'append'\ntR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
        "numpy attribute": b"cnumpy\nload\n(S'x'\ntR.",
        "object array": pickle.dumps(np.array([Payload(canary)], dtype=object), protocol=2),
        "hidden in state": pickle.dumps({"graph": [Payload(canary)]}, protocol=4),
        "persistent id": b"Pnumpy\n.",
        "reconstructor": b"ccopy_reg\n_reconstructor\n(c__builtin__\nlist\nc__builtin__\nobject\nNtR.",
        "cut": pickle.dumps(list(range(1000)))[:50],
        "empty": b"",
        "noise": bytes(range(256)),
    }


@pytest.mark.parametrize("kind", hostile_pickles(Path("x")))
def test_hostile_pickles_are_refused(kind: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "ind.cora.x"
    path.write_bytes(hostile_pickles(canary)[kind])
    with pytest.raises(DataError, match=r"ind\.cora\.x: not read"):
        read_pickle(path)
    assert not canary.exists()


def test_the_payload_would_work(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.load(io.BytesIO(hostile_pickles(canary)["reduce"]))
    assert canary.exists()


def test_a_hostile_file_stops_the_whole_data_set(tmp_path: Path) -> None:
    write_planetoid(tmp_path / "pubmed", "pubmed")
    canary = tmp_path / "canary"
    (tmp_path / "pubmed" / "ind.pubmed.graph").write_bytes(pickle.dumps(Payload(canary), protocol=2))
    with pytest.raises(DataError, match=r"not read, it asks for .*getattr"):
        load_graph("pubmed", root=tmp_path)
    assert not canary.exists()
    assert not (tmp_path / "pubmed.npz").exists()


def test_planetoid_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_planetoid(tmp_path / "pubmed", "pubmed")
    (tmp_path / "pubmed" / "ind.pubmed.graph").write_bytes(pickle.dumps({0: [10_000]}, protocol=2))
    with pytest.raises(DataError, match="edges lead to nodes that are not there"):
        load_graph("pubmed", root=tmp_path)
    (tmp_path / "pubmed" / "ind.pubmed.test.index").write_text("5\n6\n")
    with pytest.raises(DataError, match="of different sizes"):
        load_graph("pubmed", root=tmp_path)
