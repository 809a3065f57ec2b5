"""Whatever a recipe, a bundle or a graph file holds, it is read rightly or refused in words; nothing else escapes.

``ZOO_FUZZ=16000 pytest tests/test_fuzz.py -k graph_file`` reads as many damaged files as a release is tested with.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo
from tests.data.test_arrays import some_arrays
from tests.workflows.test_load import make_bundle
from zoo.data.arrays import graph_from_arrays
from zoo.errors import BundleError, DataError, RecipeError, ZooError
from zoo.ops.csr import CSR, as_csr, check_csr, edge_index_of
from zoo.spec.recipe import parse_recipe
from zoo.spec.shipped import list_recipes, recipe_path
from zoo.workflows.export import add_probe
from zoo.workflows.recipes import read_recipe_data

NUM_FILES = int(os.environ.get("ZOO_FUZZ", "400"))
# The same examples every time, so that no change is blamed for what another one brought.
FIXED = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ODD = [
    None,
    True,
    -1,
    0,
    1,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "1",
    "../../x",
    "\0\x1b",
    [],
    {},
]
LEAVES = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=8)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Each container of a JSON tree with each of its keys."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    return [(tree, key) for key in keys] + [place for key in keys for place in places(tree[key])]


@FIXED
@given(st.dictionaries(st.sampled_from(["name", "model", "data", "train", "type", "x"]), TREES, max_size=6))
def test_a_recipe_that_is_any_tree_is_refused_in_words(tree: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(tree, where="it")
    assert all(line.isprintable() and line.startswith("it: ") for line in str(error.value).splitlines())


@FIXED
@given(st.sampled_from(list_recipes()), st.lists(st.tuples(st.integers(0, 10**6), TREES), min_size=1, max_size=3))
def test_a_recipe_with_odd_values_is_refused_or_kept_as_it_is(name: str, changes: list[tuple[int, Any]]) -> None:
    data = read_recipe_data(recipe_path(name))
    for number, value in changes:
        found = places(data)
        container, key = found[number % len(found)]
        container[key] = value
    try:
        recipe = parse_recipe(data, where="it")
    except RecipeError:
        return
    again = parse_recipe(json.loads(json.dumps(recipe.to_json())), where="it")
    assert again.to_json() == recipe.to_json()


@FIXED
@given(
    st.sampled_from(["model.num_layers", "train", "a.b", "", ".", "model..x", "[", "train.seed"]), st.text(max_size=30)
)
def test_an_override_is_refused_or_taken(key: str, text: str) -> None:
    data = read_recipe_data(recipe_path("quickstart"))
    try:
        parse_recipe(data, where="it", overrides=[f"{key}={text}"])
    except ZooError as error:
        message = str(error)
    else:
        return
    assert message


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a probe."""
    folder = make_bundle(tmp_path_factory.mktemp("proven"))
    add_probe(folder)
    return folder


@FIXED
@given(
    name=st.sampled_from(["config.json", "model.safetensors", "probe.safetensors"]),
    start=st.floats(0, 1, exclude_max=True),
    removed=st.integers(0, 64),
    inserted=st.binary(max_size=16),
)
def test_a_damaged_bundle_is_refused_or_gives_the_same_weights(
    proven: Path, tmp_path: Path, name: str, start: float, removed: int, inserted: bytes
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(proven, folder, dirs_exist_ok=True)
    raw = (proven / name).read_bytes()
    # Headers, where most of the decisions fall, are as likely to be hit as all that follows them.
    position = int(start * 2 * min(len(raw), 1000)) if start < 0.5 else int((2 * start - 1) * len(raw))
    (folder / name).write_bytes(raw[:position] + inserted + raw[position + removed :])
    try:
        state = zoo.load(folder).state_dict()
    except BundleError as error:
        message = str(error)
    else:
        assert all(tensor.equal(state[key]) for key, tensor in zoo.load(proven).state_dict().items())
        return
    assert str(folder) in message


def damaged(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def saved(path: Path, rng: random.Random, save: Callable[..., None]) -> Path:
    """A .npz file with damage anywhere."""
    save(path / "own.npz", **some_arrays())
    (path / "own.npz").write_bytes(damaged((path / "own.npz").read_bytes(), rng))
    return path / "own.npz"


def with_header(path: Path, rng: random.Random) -> Path:
    """A whole .npz file, one array of which has a damaged header."""
    arrays = {name: npy(np.asarray(array)) for name, array in some_arrays().items()}
    name = rng.choice(sorted(arrays))
    arrays[name] = damaged(arrays[name][:128], rng) + arrays[name][128:]
    with zipfile.ZipFile(path / "own.npz", "w") as archive:
        for key, raw in arrays.items():
            archive.writestr(f"{key}.npy", raw)
    return path / "own.npz"


def folder_of(path: Path, rng: random.Random) -> Path:
    """A folder of .npy files, one of which is damaged in its header or anywhere."""
    (path / "own").mkdir(exist_ok=True)
    arrays = {name: npy(np.asarray(array)) for name, array in some_arrays().items()}
    name = rng.choice(sorted(arrays))
    arrays[name] = damaged(arrays[name][:128], rng) + arrays[name][128:]
    for key, raw in arrays.items():
        (path / "own" / f"{key}.npy").write_bytes(raw)
    return path / "own"


KINDS: dict[str, Callable[[Path, random.Random], Path]] = {
    "stored": lambda path, rng: saved(path, rng, np.savez),
    "compressed": lambda path, rng: saved(path, rng, np.savez_compressed),
    "headers": with_header,
    "folder": folder_of,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_graph_file_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    messages: list[str] = []
    # NumPy warns of what it makes of odd headers; that is no error for a user.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(NUM_FILES // len(KINDS)):
            path = KINDS[kind](tmp_path, rng)
            try:
                graph = zoo.load_graph("file", path=path)
            except ZooError as error:
                messages.append(str(error))
            else:
                assert graph.edge_index.shape[0] == 2
    assert len(messages) > 0.3 * (NUM_FILES // len(KINDS))
    assert all(str(tmp_path) in message for message in messages)


SHAPES = st.lists(st.integers(0, 6), max_size=3)
DTYPES = st.sampled_from(["?", "i1", "u1", "i8", "u8", "f2", "f4", "f8", "c8", "U3", "S2", "M8[s]", "O"])


@FIXED
@given(
    st.dictionaries(
        st.sampled_from([*some_arrays(), "edge_weight", "categories", "undirected", "task", "val_mask", "odd"]),
        st.tuples(DTYPES, SHAPES, st.sampled_from([0, 1, 2, -1, 5, 10**9])),
        max_size=4,
    )
)
def test_arrays_of_any_type_and_shape_make_a_graph_or_are_refused(
    changes: dict[str, tuple[str, list[int], int]],
) -> None:
    arrays = some_arrays()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (dtype, shape, value) in changes.items():
            arrays[name] = np.full(shape, value).astype(dtype)
        try:
            graph = graph_from_arrays("own", arrays, "it")
        except DataError as error:
            message = str(error)
        else:
            assert graph.num_edges == 0 or int(graph.edge_index.max()) < graph.num_nodes
            return
    assert message.startswith("it: ")


EDGES = st.integers(1, 8).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(-1, n), st.integers(-1, n)), max_size=30))
)


@FIXED
@given(EDGES, st.sampled_from([torch.int32, torch.int64]))
def test_rows_hold_the_edges_in_their_order_or_say_which_node_is_not_there(
    case: tuple[int, list[tuple[int, int]]], dtype: torch.dtype
) -> None:
    num_nodes, pairs = case
    edges = torch.tensor(pairs, dtype=dtype).reshape(-1, 2).T
    if any(not 0 <= node < num_nodes for pair in pairs for node in pair):
        with pytest.raises(ValueError, match="node ids must be in"):
            as_csr(edges, num_nodes)
        return
    csr, perm = as_csr(edges, num_nodes)
    assert perm is not None
    check_csr(csr)
    assert edge_index_of(csr).tolist() == edges[:, perm].tolist()
    rows = [[pair[0] for pair in pairs if pair[1] == target] for target in range(num_nodes)]
    assert [row.tolist() for row in torch.tensor_split(csr.col, csr.rowptr[1:-1])] == rows
    assert sorted(perm.tolist()) == list(range(len(pairs)))


@FIXED
@given(st.lists(st.integers(-2, 8), min_size=1, max_size=6), st.lists(st.integers(-2, 6), max_size=6))
def test_rows_that_leave_their_memory_are_refused(rowptr: list[int], col: list[int]) -> None:
    csr = CSR(torch.tensor(rowptr), torch.tensor(col, dtype=torch.int64))
    is_whole = rowptr[0] == 0 and rowptr[-1] == len(col) and rowptr == sorted(rowptr)
    if is_whole and all(0 <= node < len(rowptr) - 1 for node in col):
        check_csr(csr)
        return
    with pytest.raises(DataError):
        check_csr(csr)


LOAD = """
import resource, sys, time
import zoo, zoo.data.datasets
from zoo.errors import DataError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = peak(), time.process_time()
try:
    zoo.load_graph("file", path=sys.argv[1])
except DataError as error:
    print(time.process_time() - started, peak() - before, error)
"""


def test_a_small_file_that_unpacks_to_gigabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "zeros.npz"
    arrays = {name: npy(np.asarray(array)) for name, array in some_arrays().items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in arrays.items():
            archive.writestr(f"{name}.npy", raw)
        with archive.open("edge_weight.npy", "w", force_zip64=True) as file:
            file.write(npy(np.zeros(0, np.float32)))
            for _ in range(1440):
                file.write(bytes(1 << 20))
    assert 1.3e6 < path.stat().st_size < 1.5e6
    done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    cpu_s, more_mib, message = done.stdout.split(maxsplit=2)
    assert float(cpu_s) < 1
    assert float(more_mib) < 50
    assert "unpacks to 1,509," in message
