import csv
import gzip
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from zoo.data import download, ogb
from zoo.data.array_files import MARKER
from zoo.data.download import data_root
from zoo.data.graph import Graph, directed_edges
from zoo.data.ogb import OGB, VERSION, load_ogb, species_to_categories
from zoo.errors import DataError

NAMES = ("ogbn-proteins", "ogbn-arxiv", "ogbn-products", "ogbn-papers100M")


def rows(edge_index: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    """Messages with their features as sorted rows: equal if and only if the multisets are."""
    table = edge_index.T.astype(np.float64)
    if features is not None:
        table = np.concatenate([table, features.astype(np.float64)], axis=1)
    return table[np.lexsort(table.T)]


@pytest.mark.parametrize("name", NAMES)
def test_it_yields_what_the_loader_of_ogb_yields(name: str, ogb_root: Path, nodeproppred: ModuleType) -> None:
    graph = load_ogb(name, root=ogb_root)
    (ogb_root / name.replace("-", "_") / "processed").mkdir(exist_ok=True)
    expected = nodeproppred.NodePropPredDataset(name, root=str(ogb_root))
    theirs, labels = expected[0]

    edge_index, edge_attr = directed_edges(graph)
    edges = None if edge_attr is None else edge_attr.numpy()
    assert np.array_equal(rows(edge_index.numpy(), edges), rows(theirs["edge_index"], theirs["edge_feat"]))
    assert np.array_equal(edge_index.numpy(), theirs["edge_index"])
    assert graph.num_nodes == theirs["num_nodes"]
    if theirs["node_feat"] is None:
        assert graph.x is None
    else:
        assert graph.x is not None
        assert np.array_equal(graph.x.numpy(), theirs["node_feat"])
    # Labels of papers are floats with NaN for unlabeled.
    expected_y = np.nan_to_num(labels, nan=-1) if graph.task == "multiclass" else labels
    assert np.array_equal(graph.y.numpy().reshape(labels.shape), expected_y)
    if name == "ogbn-proteins":
        assert graph.categories is not None
        species = theirs["node_species"][:, 0]
        pairs = set(zip(species.tolist(), graph.categories.tolist(), strict=True))
        assert len(pairs) == len(set(species.tolist())) == 8
    split = expected.get_idx_split()
    for part in ("train", "valid", "test"):
        assert np.array_equal(getattr(graph.splits[0], part).numpy(), split[part])
    assert graph.num_tasks == (expected.num_tasks if graph.task == "multilabel" else expected.num_classes)


@pytest.mark.parametrize("name", NAMES)
def test_every_undirected_edge_is_stored_once(name: str, ogb_root: Path) -> None:
    graph = load_ogb(name, root=ogb_root)
    raw = ogb_root / name.replace("-", "_") / "raw"
    if name == "ogbn-papers100M":
        num_edges = int(np.load(raw / "data.npz")["num_edges_list"][0])
    else:
        num_edges = int(gzip.decompress((raw / "num-edge-list.csv.gz").read_bytes()))
    assert graph.num_edges == num_edges
    assert graph.undirected == (name in ("ogbn-proteins", "ogbn-products"))


def test_species_are_numbered_like_in_the_published_models() -> None:
    species = np.array([3702, 511145, 9606, 511145, 4932])
    assert species_to_categories(species).tolist() == [1, 0, 3, 0, 2]


def test_the_second_opening_reads_no_csv(ogb_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_ogb("ogbn-proteins", root=ogb_root)
    monkeypatch.setattr(ogb, "_convert", lambda *_: pytest.fail("read again"))
    assert_same(first, load_ogb("ogbn-proteins", root=ogb_root))


def assert_same(one: Graph, other: Graph) -> None:
    assert torch.equal(one.edge_index, other.edge_index)
    assert torch.equal(one.y, other.y)
    assert one.edge_attr is not None
    assert other.edge_attr is not None
    assert torch.equal(one.edge_attr, other.edge_attr)


def test_tensors_may_be_changed_without_changing_the_cache(ogb_root: Path) -> None:
    graph = load_ogb("ogbn-proteins", root=ogb_root)
    before = graph.y.clone()
    graph.y.fill_(1)
    assert torch.equal(load_ogb("ogbn-proteins", root=ogb_root).y, before)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no marker", "old format", "bad marker", "missing file"])
def test_a_damaged_cache_is_rebuilt(damage: str, ogb_root: Path) -> None:
    first = load_ogb("ogbn-proteins", root=ogb_root)
    expected = first.edge_index.clone()
    cache = ogb_root / "ogbn_proteins" / "zoo"
    array, marker = cache / "edge_index.npy", cache / MARKER
    content = array.read_bytes()
    if damage == "cut":
        array.write_bytes(content[:-1])
    elif damage == "flipped":
        array.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no marker":
        marker.unlink()
    elif damage == "old format":
        marker.write_text(marker.read_text().replace('"format_version": 1', '"format_version": 0'))
    elif damage == "bad marker":
        marker.write_text("[1, 2")
    else:
        array.unlink()
    assert torch.equal(load_ogb("ogbn-proteins", root=ogb_root).edge_index, expected)
    assert sorted(path.name for path in cache.iterdir()) == sorted([*(p.name for p in cache.glob("*.npy")), MARKER])


def test_other_raw_files_are_read_anew(ogb_root: Path) -> None:
    load_ogb("ogbn-arxiv", root=ogb_root)
    path = ogb_root / "ogbn_arxiv" / "raw" / "node-label.csv.gz"
    path.write_bytes(gzip.compress(b"7\n" * 200))
    assert load_ogb("ogbn-arxiv", root=ogb_root).y.tolist() == [7] * 200


def test_missing_labels_are_unlabeled(ogb_root: Path) -> None:
    path = ogb_root / "ogbn_arxiv" / "raw" / "node-label.csv.gz"
    path.write_bytes(gzip.compress(b"3\n" * 199 + b'""\n'))
    assert load_ogb("ogbn-arxiv", root=ogb_root).y.tolist() == [3] * 199 + [-1]


def test_the_cache_is_enough_once_it_is_whole(ogb_root: Path) -> None:
    expected = load_ogb("ogbn-products", root=ogb_root).y.clone()
    shutil.rmtree(ogb_root / "ogbn_products" / "raw")
    assert torch.equal(load_ogb("ogbn-products", root=ogb_root).y, expected)


def test_the_older_name_of_the_species_file_is_read(ogb_root: Path) -> None:
    raw = ogb_root / "ogbn_proteins" / "raw"
    (raw / "node_species.csv.gz").rename(raw / "species.csv.gz")
    categories = load_ogb("ogbn-proteins", root=ogb_root).categories
    assert categories is not None
    assert len(categories.unique()) == 8


def test_a_read_only_folder_gets_its_cache_elsewhere(
    ogb_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "own"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    one = load_ogb("ogbn-proteins", root=ogb_root)
    assert not (ogb_root / "ogbn_proteins" / "zoo").exists()
    assert len(list((tmp_path / "own" / "converted").glob("ogbn_proteins-*"))) == 1
    monkeypatch.setattr(ogb, "_convert", lambda *_: pytest.fail("read again"))
    assert_same(one, load_ogb("ogbn-proteins", root=ogb_root))


@pytest.mark.filterwarnings("ignore:.*waiting for process")
def test_two_at_once_build_the_cache_once(ogb_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds, results = [], []
    convert = ogb._convert
    monkeypatch.setattr(ogb, "_convert", lambda *args: (builds.append(1), convert(*args)))
    threads = [
        threading.Thread(target=lambda: results.append(load_ogb("ogbn-proteins", root=ogb_root))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(results) == 3
    assert_same(results[0], results[2])


def test_an_interrupted_build_leaves_nothing_that_is_taken_for_a_cache(
    ogb_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ogb_root / "ogbn_proteins"
    leftover = folder / ".zoo-killed"
    leftover.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(ogb, "read_csv", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_ogb("ogbn-proteins", root=ogb_root)
    assert not (folder / "zoo").exists()
    load_ogb("ogbn-proteins", root=ogb_root)
    assert sorted(path.name for path in folder.glob(".zoo*")) == [".zoo.lock"]


def replace_rows(root: Path, name: str, content: bytes) -> None:
    (root / "ogbn_proteins" / "raw" / f"{name}.csv.gz").write_bytes(gzip.compress(content))


def test_bad_raw_files_are_named(ogb_root: Path) -> None:
    raw = ogb_root / "ogbn_proteins" / "raw"
    features = (raw / "edge-feat.csv.gz").read_bytes()
    labels = gzip.decompress((raw / "node-label.csv.gz").read_bytes())

    def fails(message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            load_ogb("ogbn-proteins", root=ogb_root)
        assert "\n" not in str(caught.value)
        assert not (ogb_root / "ogbn_proteins" / "zoo").exists()

    (raw / "edge-feat.csv.gz").write_bytes(features[: len(features) // 2])
    fails("edge-feat.csv.gz: not a whole gzipped CSV file")
    (raw / "edge-feat.csv.gz").write_bytes(b"<html>sign in first</html>")
    fails("edge-feat.csv.gz: not a whole gzipped CSV file")
    (raw / "edge-feat.csv.gz").write_bytes(gzip.compress(gzip.decompress(features).replace(b"0.", b"x.", 1)))
    fails("edge-feat.csv.gz: not a whole gzipped CSV file")
    (raw / "edge-feat.csv.gz").write_bytes(gzip.compress(gzip.decompress(features).replace(b"0.001", b"nan", 2)))
    fails("edge-feat.csv.gz: edge features holds 2 values that are missing, NaN")
    (raw / "edge-feat.csv.gz").write_bytes(gzip.compress(gzip.decompress(features).split(b"\n", 1)[1]))
    fails("edge-feat.csv.gz: holds 2,999 rows, expected 3,000")
    (raw / "edge-feat.csv.gz").write_bytes(features)
    replace_rows(ogb_root, "node-label", labels.replace(b"0", b"2", 5))
    fails("5 labels other than 0, 1 and NaN")
    replace_rows(ogb_root, "node-label", labels)
    edges = gzip.decompress((raw / "edge.csv.gz").read_bytes())
    replace_rows(ogb_root, "edge", b"300,0\n" + edges.split(b"\n", 1)[1])
    fails(r"edge.csv.gz: edges holds 1 values outside 0 \.\. 299")
    replace_rows(ogb_root, "edge", b"-1,0\n" + edges.split(b"\n", 1)[1])
    fails("1 values outside")
    replace_rows(ogb_root, "edge", b"0.5,0\n" + edges.split(b"\n", 1)[1])
    fails("edge.csv.gz: not a whole gzipped CSV file")
    replace_rows(ogb_root, "edge", edges)
    (raw / "node-label.csv.gz").unlink()
    fails("node-label.csv.gz: missing")


def test_bad_npz_files_are_named(ogb_root: Path) -> None:
    raw = ogb_root / "ogbn_papers100M" / "raw"
    data = dict(np.load(raw / "data.npz"))
    edges, features = data["edge_index"], data["node_feat"]
    too_high, infinite = edges.copy(), features.copy()
    too_high[1, 3], infinite[2, 1] = 200, np.inf

    def refused(expected: str, **changes: np.ndarray) -> None:
        np.savez(raw / "data.npz", **{key: value for key, value in (data | changes).items() if value.size})
        with pytest.raises(DataError, match=expected):
            load_ogb("ogbn-papers100M", root=ogb_root)

    refused(r"data.npz: edge_index holds 1 values outside 0 .. 199; get", edge_index=too_high)
    refused(r"data.npz: node_feat holds 1 values that are missing, NaN or infinite; get", node_feat=infinite)
    refused(r"data.npz: node_feat is \[199, 128\], expected \[200, F\]; get", node_feat=features[:-1])
    refused(r"data.npz: edge_index is \[2, 899\], expected \[2, 900\]; get", edge_index=edges[:, 1:])
    refused(r"data.npz: edge_index must hold numbers, row by row", edge_index=edges.astype(str))
    refused(r"data.npz: the array 'node_feat' is missing; get", node_feat=np.empty(0))
    refused(r"data.npz: expected one positive number of nodes", num_nodes_list=np.array([100, 100]))
    # As a transposed list of pairs is stored: column by column.
    np.savez(raw / "data.npz", **{**data, "edge_index": np.asfortranarray(edges)})
    assert np.array_equal(load_ogb("ogbn-papers100M", root=ogb_root).edge_index.numpy(), edges)
    np.savez(raw / "node-label.npz", node_label=np.zeros((199, 1), np.float32))
    with pytest.raises(DataError, match=r"node-label.npz: the labels are \[199, 1\], expected \[200, 1\]"):
        load_ogb("ogbn-papers100M", root=ogb_root)
    (raw / "data.npz").write_bytes((raw / "data.npz").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"data.npz: missing or cut short; remove"):
        load_ogb("ogbn-papers100M", root=ogb_root)


def test_another_version_of_the_data_is_refused(ogb_root: Path) -> None:
    (ogb_root / "ogbn_proteins" / "RELEASE_v1.txt").unlink()
    with pytest.raises(DataError, match=r"no RELEASE_v1.txt .* remove it to get it anew"):
        load_ogb("ogbn-proteins", root=ogb_root)


def test_an_incomplete_folder_is_not_replaced_in_silence(tmp_path: Path) -> None:
    (tmp_path / "ogbn_proteins" / "raw").mkdir(parents=True)
    with pytest.raises(DataError, match="remove the folder"):
        load_ogb("ogbn-proteins", root=tmp_path)


def test_too_little_disk_space_is_found_before_the_work(ogb_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = download.shutil.disk_usage(ogb_root)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="of disk space is needed for the converted ogbn-proteins"):
        load_ogb("ogbn-proteins", root=ogb_root)


def test_without_network_the_error_says_what_to_do_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(DataError) as caught:
        load_ogb("ogbn-proteins", root=tmp_path, url="http://127.0.0.1:9/proteins.zip")
    message = str(caught.value)
    for part in ("127.0.0.1:9", OGB["ogbn-proteins"].url, "unzip", f"{tmp_path}/ogbn_proteins/raw", "ZOO_DATA"):
        assert part in message
    assert "\n" not in message
    assert not (tmp_path / "ogbn_proteins").exists()


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_those_of_ogb(name: str, nodeproppred: ModuleType) -> None:
    with open(Path(nodeproppred.__file__).parent / "master.csv", newline="", encoding="utf-8") as file:
        # One column per data set; the unnamed first column names the rows.
        theirs = {row[""]: row[name] for row in csv.DictReader(file)}
    info = OGB[name]
    assert theirs["download_name"] == info.archive_folder
    assert theirs["url"] == info.url
    assert theirs["version"] == VERSION
    assert theirs["split"] == info.split
    multilabel = theirs["task type"] == "binary classification"
    assert info.task == ("multilabel" if multilabel else "multiclass")
    assert int(theirs["num tasks" if multilabel else "num classes"]) == info.widths.tasks
    flags = (info.undirected, bool(info.widths.node), bool(info.widths.edge))
    assert [theirs[key] for key in ("add_inverse_edge", "has_node_attr", "has_edge_attr")] == [str(f) for f in flags]
    assert ("node_species" in theirs["additional node files"].split(",")) == bool(info.widths.categories)


def test_ogb_is_never_imported(written_ogb: Path) -> None:
    code = (
        "import sys, threading, torch\n"
        "from zoo.data.datasets import load_graph\n"
        "from zoo.data.metrics import evaluate\n"
        "graph = load_graph('ogbn-proteins', root=sys.argv[1])\n"
        "evaluate('rocauc', graph.y, torch.rand(graph.y.shape))\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('ogb', 'outdated')])\n"
        "print([t.name for t in threading.enumerate() if not t.daemon])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(written_ogb)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n['MainThread']\n"


def test_the_root_is_the_argument_then_the_environment_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "env"))
    assert data_root(tmp_path / "given") == tmp_path / "given"
    assert data_root() == tmp_path / "env"
    monkeypatch.delenv("ZOO_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data_root() == tmp_path / "xdg" / "revgnn-zoo" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_root() == tmp_path / "home" / ".cache" / "revgnn-zoo" / "data"
    assert data_root("~/data") == tmp_path / "home" / "data"
