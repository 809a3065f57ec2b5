import json
import os
import pickle
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workflows.small import changed
from tests.workflows.test_load import make_bundle
from zoo.errors import BundleError, RecipeError
from zoo.hub.config import read_config
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import GraphShape
from zoo.spec.shipped import list_recipes
from zoo.workflows.load import empty_model, load


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change config.json as an attacker would."""
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def adopt_weights(folder: Path) -> None:
    """Make config.json describe whatever weights file is there."""
    import hashlib

    raw = (folder / "model.safetensors").read_bytes()
    weights = {"sha256": hashlib.sha256(raw).hexdigest(), "num_bytes": len(raw)}
    rewrite(folder, lambda data: data.update(weights=weights))


def test_a_bundle_holds_the_whole_recipe(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    data = json.loads((folder / "config.json").read_text())
    assert set(data) == {"format_version", "recipe", "shape", "results", "provenance", "weights"}
    assert data["recipe"] == read_config(folder).recipe.to_json()
    assert data["recipe"]["model"]["norm"] == "layer"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("path", ["/home/me/graph.npz", "~/graph.npz", "studies/of/mine/graph.npz", "graph.npz"])
def test_of_a_path_only_the_last_part_is_written(path: str, tmp_path: Path) -> None:
    assert read_config(make_bundle(tmp_path, data__path=path)).recipe.data.path == "graph.npz"


def test_the_card_states_the_figures_of_the_config(tmp_path: Path) -> None:
    card = (make_bundle(tmp_path) / "README.md").read_text()
    assert "| test | accuracy | 0.5000 | whole graph |" in card


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown_key": (lambda d: d.update(auto_map="os.system"), "auto_map: unknown key"),
    "unknown_key_in_the_recipe": (lambda d: d["recipe"].update(hook="x"), "recipe.hook: unknown key"),
    "missing_key": (lambda d: d.pop("shape"), "shape: missing"),
    "newer_format": (lambda d: d.update(format_version=2), "format_version 2 is of a newer revgnn-zoo"),
    "format_as_text": (lambda d: d.update(format_version="1"), "format_version"),
    "format_as_bool": (lambda d: d.update(format_version=True), "format_version: expected an integer, got true"),
    "format_as_float": (lambda d: d.update(format_version=1.0), "format_version: expected an integer, got 1.0"),
    "key_of_a_newer_version": (
        lambda d: (d.update(auto_map="x"), d["provenance"].update(zoo_version="99.0.0")),
        "written by revgnn-zoo 99.0.0; upgrade to read it",
    ),
    "data_elsewhere": (lambda d: d["recipe"]["data"].update(path="/etc/passwd"), "expected the name of a file alone"),
    "data_above": (lambda d: d["recipe"]["data"].update(path=".."), "expected the name of a file alone"),
    "data_of_windows": (lambda d: d["recipe"]["data"].update(path="a\\b"), "expected the name of a file alone"),
    "no_digest": (lambda d: d["provenance"].update(converted_from_sha256="<b>"), "provenance.converted_from_sha256"),
    "more_layers": (lambda d: d["recipe"]["model"].update(num_layers=3), "is missing; "),
    "fewer_layers": (lambda d: d["recipe"]["model"].update(num_layers=1), "unknown tensor"),
    "other_conv": (lambda d: d["recipe"]["model"].update(conv={"type": "gcn"}), "unknown tensor"),
    "a_billion_layers": (lambda d: d["recipe"]["model"].update(num_layers=10**9), "num_layers"),
    "100000_layers": (lambda d: d["recipe"]["model"].update(num_layers=10**5), "cannot hold the recipe's"),
    "many_tasks": (lambda d: d["shape"].update(num_tasks=10**6), "cannot hold the recipe's"),
    "negative_width": (lambda d: d["shape"].update(num_edge_features=-1), "shape.num_edge_features"),
    "width_as_text": (lambda d: d["shape"].update(num_tasks="3"), 'expected an integer, got "3"'),
    "result_above_one": (lambda d: d["results"][0].update(value=2.0), "results[0].value"),
    "result_below_zero": (lambda d: d["results"][0].update(value=-0.1), "results[0].value"),
    "nan_result": (lambda d: d["results"][0].update(value=float("nan")), "NaN is not a JSON number"),
    "path_for_a_digest": (lambda d: d["weights"].update(sha256="../../etc/passwd"), "weights.sha256"),
    "other_digest": (lambda d: d["weights"].update(sha256="0" * 64), "its SHA-256 is"),
    "other_size": (lambda d: d["weights"].update(num_bytes=50_000), "bytes, but config.json says 50,000"),
    "small_size": (lambda d: d["weights"].update(num_bytes=5), "cannot hold the recipe's"),
    "no_edges_in_the_shape": (lambda d: d["shape"].update(num_edge_features=0), "edge"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_hostile_configuration_is_refused(case: str, tmp_path: Path) -> None:
    change, expected = CONFIGS[case]
    folder = make_bundle(tmp_path)
    rewrite(folder, change)
    started = time.process_time()
    with pytest.raises((BundleError, RecipeError)) as error:
        load(folder)
    assert expected in str(error.value)
    assert str(error.value).isprintable()
    # Seconds on any machine; what grows with the square of the number of tensors would take minutes.
    assert time.process_time() - started < 15


def test_all_faults_of_a_configuration_come_at_once(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    rewrite(folder, lambda data: (data["shape"].update(num_tasks=0), data["recipe"]["train"].update(seed=-1)))
    with pytest.raises(BundleError) as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 2


def test_of_very_many_faults_the_first_are_shown(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    rewrite(folder, lambda data: data.update({f"key{n}": n for n in range(1000)}))
    with pytest.raises(BundleError, match="and 950 more faults") as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 51


@pytest.mark.parametrize("fault", [{"results": [{}] * 100_000}, {"x" * 900_000: 1}])
def test_faults_without_end_are_told_in_short_and_at_once(fault: dict[str, Any], tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    rewrite(folder, lambda data: data.update(fault))
    started = time.process_time()
    with pytest.raises(BundleError) as error:
        load(folder)
    assert len(str(error.value)) < 2000
    assert time.process_time() - started < 4


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(BundleError, match=r"model.safetensors: a pointer of git LFS .*; fetch it with: git lfs pull"):
        load(folder)


def test_a_folder_that_hides_a_model_of_the_hub_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "me" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"this folder was looked at; for the model on the Hub: me/model@main"):
        load("me/model")


@pytest.mark.parametrize(
    ("model", "least"),
    [
        ({"num_layers": 5000, "hidden_channels": 2}, "20,000"),
        ({"num_layers": 20, "hidden_channels": 4096, "num_groups": 4096, "conv": {"type": "gcn"}}, "163,840"),
    ],
)
def test_no_model_is_built_for_a_file_with_too_few_tensors(
    model: dict[str, Any], least: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_bundle(tmp_path)
    rewrite(folder, lambda data: data["recipe"]["model"].update(model))
    save_file({"t": torch.zeros(1_000_000)}, folder / "model.safetensors")
    adopt_weights(folder)
    monkeypatch.setattr("zoo.workflows.load.empty_model", lambda *_: pytest.fail("built"))
    with pytest.raises(BundleError, match=f"holds 1 tensors; the recipe in config.json needs {least} or more"):
        load(folder)


@pytest.mark.parametrize("name", list_recipes())
def test_no_model_has_fewer_tensors_than_its_spec_says(name: str) -> None:
    spec, shape = read_recipe(name).model, GraphShape(num_node_features=6, num_edge_features=3, num_tasks=3)
    small = {"num_layers": min(spec.num_layers, 4), "num_distinct_layers": None} if spec.type != "deq" else {}
    spec = spec.model_copy(update=small)
    assert getattr(spec, "min_tensors", 1) <= len(empty_model(spec, shape).state_dict())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON"),
        (b"[]", "expected an object"),
        (b"{}", "format_version: missing"),
        (b"\x80\x04\x95", "not UTF-8"),
        (b" " * (1 << 20) + b"{}", "larger than 1,048,576 bytes"),
        (b'{"a":' * 50_000, "nested too deeply"),
    ],
)
def test_a_malformed_configuration_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(BundleError) as error:
        load(folder)
    assert expected in str(error.value)


def save(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


class Payload:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.parent / "canary")) + b"\0" * 20_000)


def zipped(path: Path) -> None:
    torch.save({"a": Payload(path.parent / "canary"), "b": torch.zeros(20_000)}, path)


def many_empty(path: Path) -> None:
    entries = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


WEIGHTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing_tensor": (
        save(lambda t: t.update(extra=t.pop("head.bias"), pad=torch.zeros(4))),
        "'head.bias' is missing",
    ),
    "extra_tensor": (save(lambda t: t.update(extra=torch.zeros(1))), "unknown tensor 'extra'"),
    "name_like_a_path": (save(lambda t: t.update({"../../x\x1b": torch.zeros(1)})), r"unknown tensor '../../x\x1b'"),
    "wrong_shape": (save(lambda t: t.update({"head.bias": torch.zeros(5)})), "has shape [5] instead of [3]"),
    "transposed": (save(lambda t: t.update({"head.weight": torch.zeros(8, 3)})), "has shape [8, 3] instead of [3, 8]"),
    "wrong_dtype": (save(lambda t: t.update({"head.bias": torch.zeros(3, dtype=torch.int64)})), "holds torch.int64"),
    "half": (save(lambda t: t.update({"head.bias": t["head.bias"].half(), "p": torch.zeros(9)})), "torch.float16"),
    "double": (save(lambda t: t.update({n: v.double() for n, v in t.items()})), "holds torch.float64"),
    "pickle": (pickled, "not a whole safetensors file"),
    "torch_zip": (zipped, "not a whole safetensors file"),
    "200000_empty_tensors": (many_empty, "unknown tensor 't0'"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_hostile_weights_are_refused(case: str, tmp_path: Path) -> None:
    change, expected = WEIGHTS[case]
    folder = make_bundle(tmp_path)
    change(folder / "model.safetensors")
    # Even with a configuration that vouches for them.
    adopt_weights(folder)
    started = time.process_time()
    with pytest.raises(BundleError) as error:
        load(folder)
    assert expected in str(error.value)
    assert not (folder / "canary").exists()
    # Seconds on any machine; what grows with the square of the number of tensors would take minutes.
    assert time.process_time() - started < 15


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "loop", "device"])
def test_what_is_no_file_is_refused_at_once(name: str, kind: str, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(BundleError):
        load(folder)


def test_the_cache_of_links_is_read(tmp_path: Path) -> None:
    # A download cache keeps the contents elsewhere and links to them.
    folder = make_bundle(tmp_path)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    assert not load(folder).training


def test_changed_bytes_are_an_error_or_change_nothing(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, model__num_layers=1, model__hidden_channels=4)
    expected = load(folder).state_dict()
    chance = random.Random(0)
    loaded = 0
    for name in ("config.json", "model.safetensors"):
        path = folder / name
        whole = path.read_bytes()
        for _ in range(250):
            position = chance.randrange(len(whole))
            path.write_bytes(
                whole[:position] + bytes([whole[position] ^ (1 << chance.randrange(8))]) + whole[position + 1 :]
            )
            try:
                state = load(folder).state_dict()
            except (BundleError, RecipeError):
                continue
            loaded += 1
            assert all(torch.equal(tensor, state[key]) for key, tensor in expected.items())
        path.write_bytes(whole)
    # Words, such as the summary, may change; weights may not.
    assert 0 < loaded < 300


def test_a_recipe_that_relies_on_defaults_still_loads(tmp_path: Path) -> None:
    # A bundle spells out every default; one that a later version adds a key to must still load.
    folder = make_bundle(tmp_path)
    rewrite(folder, lambda data: data["recipe"]["model"].pop("reversible"))
    assert load(folder).zoo_info.recipe.model.reversible
    assert changed({"a": {"b": 1}}, a__b=2) == {"a": {"b": 2}}
