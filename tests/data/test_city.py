"""City-Networks: read as PyG reads them, without unpickling; what is damaged or hostile is refused in one line."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import pickle
import random
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.city_files import MASKS, ROADS, X, Y, city_tensors, saved, write_city
from tests.data.conftest import Server
from tests.data.test_arrays import Payload
from zoo.data import datasets, published
from zoo.data.datasets import load_graph
from zoo.data.download import CHECKSUMS
from zoo.data.graph import Graph, directed_edges
from zoo.errors import DataError
from zoo.spec.shape import CityName

TENSORS = city_tensors()


def load(root: Path, tensors: dict[str, Any], *others: tarfile.TarInfo) -> Graph:
    """Read an archive that somebody has put where a download goes."""
    write_city(root / "paris", "paris", tensors, *others)
    return load_graph("paris", root=root)


def theirs(server: Server, root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The network as PyG downloads and reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        city = importlib.import_module("torch_geometric.datasets").CityNetwork
        monkeypatch.setattr(city, "url", server.url(""))
        return city(str(root), name)[0]


@pytest.mark.parametrize("name", get_args(CityName))
def test_a_city_is_downloaded_once_and_equals_pytorch_geometrics(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_city(server.folder, name, TENSORS)
    data = theirs(server, tmp_path / "pyg", name, monkeypatch)
    monkeypatch.setattr(datasets, "CITY_URL", server.url("")[:-1])
    for module, function in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, function, lambda *_: pytest.fail("something was unpickled"))
    server.requests.clear()
    for _ in range(2):
        graph = load_graph(name, root=tmp_path / "root")
    assert server.requests == [f"/{name}.tar.gz"]
    assert list(json.loads((tmp_path / "root" / name / CHECKSUMS).read_text())) == [server.url(f"{name}.tar.gz")]
    assert (graph.name, graph.undirected, graph.task, graph.num_tasks) == (name, True, "multiclass", 10)
    assert graph.x is not None
    assert torch.equal(graph.x, data.x)
    assert torch.equal(graph.y, data.y)
    split = graph.splits[0]
    for nodes, mask in ((split.train, data.train_mask), (split.valid, data.val_mask), (split.test, data.test_mask)):
        assert torch.equal(nodes, mask.nonzero().squeeze(1))
    edges, roads = directed_edges(graph)
    order = torch.argsort(edges[0].long() * graph.num_nodes + edges[1])
    assert torch.equal(edges[:, order].long(), data.edge_index)
    assert roads is not None
    assert torch.equal(roads[order], TENSORS["edge_features"])


def test_roads_may_have_no_features(tmp_path: Path) -> None:
    graph = load(tmp_path, {key: value for key, value in TENSORS.items() if key != "edge_features"})
    assert graph.edge_attr is None
    assert 2 * graph.num_edges == TENSORS[ROADS].shape[1]


def test_sets_may_be_listed_by_their_nodes_and_views_of_tensors_are_read(tmp_path: Path) -> None:
    order = torch.cat([TENSORS[key].nonzero().squeeze(1) for key in MASKS])
    sizes = [int(TENSORS[key].sum()) for key in MASKS]
    changes = dict(zip(MASKS, order.split(sizes), strict=True)) | {ROADS: TENSORS[ROADS].T.contiguous().T}
    changed, plain = load(tmp_path / "a", {**TENSORS, **changes}), load(tmp_path / "b", TENSORS)
    assert changed.splits[0].test.tolist() == plain.splits[0].test.tolist()
    assert torch.equal(changed.edge_index, plain.edge_index)


def test_directions_that_differ_by_rounding_are_one_road(tmp_path: Path) -> None:
    roads = TENSORS["edge_features"].clone()
    roads[::3] *= 1 + 1e-7
    graph = load(tmp_path, {**TENSORS, "edge_features": roads})
    assert graph.undirected
    assert graph.edge_attr is not None
    assert len(graph.edge_attr) == len(roads) // 2


def rezipped(content: bytes, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> bytes:
    """A zip archive with the members that end so changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.rpartition("/")[2], old.read(name)))
    return buffer.getvalue()


def wrong(**changes: Any) -> dict[str, Any]:
    names = {"x": X, "roads": ROADS, "y": Y, "train": "train_mask", "valid": "valid_mask", "attr": "edge_features"}
    return {names[key]: value for key, value in changes.items()}


EDGES: Tensor = TENSORS[ROADS]
DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "a row of x too few": (wrong(x=TENSORS[X][1:]), "x must be [N, F] with N = 100, not [99, 37]"),
    "labels without whole numbers": (wrong(y=TENSORS[Y] + 0.5), "labels, edges and sets must be whole numbers"),
    "labels as a table": (wrong(y=TENSORS[Y].repeat(2, 1).T.contiguous()), "multiclass task does not go with y"),
    "edges in rows": (wrong(roads=EDGES.T.contiguous()), "not the network of paris ("),
    "a node that is not there": (wrong(roads=EDGES + 1), "edges lead to nodes that are not there"),
    "one direction": (wrong(roads=EDGES[:, EDGES[0] < EDGES[1]], attr=torch.rand(125, 25)), "in both directions"),
    "a road without features": (wrong(attr=TENSORS["edge_features"][1:]), "with a row of edge_features each"),
    "a short mask": (wrong(train=TENSORS["train_mask"][1:]), "not the network of paris (boolean index"),
    "negative nodes": (wrong(train=torch.tensor([-1])), "sets must be whole numbers from 0"),
    "common nodes": (wrong(train=TENSORS["valid_mask"]), "are in both train and valid"),
    "infinite features": (wrong(x=TENSORS[X] / 0), "NaN or infinite"),
    "a dictionary": (wrong(y={"y": TENSORS[Y]}), f"paris/{Y}.pt: not one dense tensor"),
    "a parameter": (wrong(x=torch.nn.Parameter(TENSORS[X])), f"paris/{X}.pt: not one dense tensor"),
    "a sparse tensor": (wrong(x=TENSORS[X].to_sparse()), f"paris/{X}.pt: not one dense tensor"),
    "doubles": (wrong(x=TENSORS[X].double()), f"paris/{X}.pt: not one dense tensor"),
    "a huge view of one value": (wrong(x=torch.zeros(1).expand(100, 10**12)), "declares other values than it has"),
    "values cut off": (wrong(y=rezipped(saved(TENSORS[Y]), **{"0": b"\0" * 80})), "declares other values than it has"),
    "compressed values": (wrong(y=rezipped(saved(TENSORS[Y]), zipfile.ZIP_DEFLATED)), "compressed"),
    "no values": (wrong(y=rezipped(saved(torch.zeros(0)))), "not the network of paris"),
    "no zip archive": (wrong(y=b"nothing"), f"paris/{Y}.pt: File is not a zip file"),
    "pickle of another kind": (wrong(y=rezipped(saved(TENSORS[Y]), **{"data.pkl": b"\x80\x02N."})), "not the network"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors_are_refused_in_one_line_and_nothing_is_stored(damage: str, tmp_path: Path) -> None:
    changes, message = DAMAGES[damage]
    with pytest.raises(DataError) as caught:
        load(tmp_path, {**TENSORS, **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "paris") in str(caught.value)
    assert not (tmp_path / "paris.npz").exists()


@pytest.mark.parametrize("missing", [X, Y, ROADS, *MASKS])
def test_a_missing_tensor_is_named(missing: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"paris\.tar\.gz: .*no paris/{missing}\.pt in it.*remove the file"):
        load(tmp_path, {key: value for key, value in TENSORS.items() if key != missing})


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **headers: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, headers
    return info


HUGE = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0"}


@pytest.mark.parametrize(
    "hostile",
    [
        member("../paris/evil.pt"),
        member("paris/../../evil.pt"),
        member("/evil.pt"),
        member(f"paris/{Y}.pt", tarfile.SYMTYPE, "/etc/passwd"),
        member(f"paris/{Y}.pt", tarfile.LNKTYPE, "paris/map.jpg"),
        member("paris/pipe", tarfile.FIFOTYPE),
        member("paris/device", tarfile.CHRTYPE),
        member(f"paris/{Y}.pt", **HUGE),
    ],
    ids=lambda info: f"{info.name} {info.type!r}",
)
def test_an_unsafe_member_is_refused(hostile: tarfile.TarInfo, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds the unsafe member"):
        load(tmp_path / "root", TENSORS, hostile)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".lock", "paris.tar.gz"]


def test_an_archive_of_too_many_members_or_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="holds the unsafe member"):
        load(tmp_path, TENSORS, *(member(f"paris/{i}") for i in range(1000)))
    monkeypatch.setattr(published, "_MAX_CITY_BYTES", 50_000)
    with pytest.raises(DataError, match=r"unpacks to more than 50,000 bytes"):
        load(tmp_path, TENSORS)


def test_a_member_that_declares_more_than_there_is_is_refused(tmp_path: Path) -> None:
    info = member(f"paris/{Y}.pt")
    info.size = 1 << 40
    (tmp_path / "paris").mkdir()
    (tmp_path / "paris" / "paris.tar.gz").write_bytes(gzip.compress(info.tobuf() + b"\0" * 2000))
    with pytest.raises(DataError, match=r"paris\.tar\.gz: not the network of paris"):
        load_graph("paris", root=tmp_path)


def test_what_a_pickle_would_call_is_not_called(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payload = Payload(canary)
    pickled = pickle.dumps(payload, protocol=2)
    system = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    for content in (
        saved(payload),
        pickled,
        *(rezipped(saved(TENSORS[Y]), **{"data.pkl": p}) for p in (pickled, system)),
    ):
        with pytest.raises(DataError, match=f"paris/{Y}.pt: "):
            load(tmp_path, {**TENSORS, Y: content})
    # Behind the arguments of a tensor as well.
    hidden = rezipped(saved(TENSORS[Y]))
    with zipfile.ZipFile(io.BytesIO(hidden)) as archive:
        [index] = [name for name in archive.namelist() if name.endswith("data.pkl")]
        both = archive.read(index)[:-1] + b"0" + system
    with pytest.raises(DataError, match="not the network of paris"):
        load(tmp_path, {**TENSORS, Y: rezipped(hidden, **{"data.pkl": both})})
    assert not canary.exists()
    pickle.loads(pickled)
    assert canary.exists()


@pytest.mark.parametrize("content", [b"", b"<html></html>", gzip.compress(b""), gzip.compress(b"x" * 5000)])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "paris").mkdir()
    (tmp_path / "paris" / "paris.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"paris\.tar\.gz: not the network of paris \(.*remove the file"):
        load_graph("paris", root=tmp_path)


def test_random_damage_is_read_or_refused_in_words(tmp_path: Path) -> None:
    plain = gzip.decompress(write_city(tmp_path, "paris", TENSORS).read_bytes())
    path, rng, refused = tmp_path / "damaged.tar.gz", random.Random(0), 0
    for _ in range(200):
        content = bytearray(plain)
        for _ in range(rng.choice((1, 3, 20))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.2:
            content = content[: rng.randrange(len(content))]
        path.write_bytes(gzip.compress(bytes(content), 1))
        try:
            published.city_arrays(path, "paris")
        except DataError:
            refused += 1
    assert 0 < refused < 200


def test_a_truth_value_other_than_0_and_1_is_true(tmp_path: Path) -> None:
    values = TENSORS["train_mask"].numpy()
    odd = rezipped(saved(TENSORS["train_mask"]), **{"0": (values * np.uint8(7)).tobytes()})
    graph = load(tmp_path, {**TENSORS, "train_mask": odd})
    assert torch.equal(graph.splits[0].train, TENSORS["train_mask"].nonzero().squeeze(1))
