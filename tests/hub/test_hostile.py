"""Repositories and bundles made by an enemy: refused in one line, nothing run, nothing written elsewhere."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import zoo
from tests.hub.bundles import REPO, content, with_weights
from tests.hub.server import TestHub
from tests.hub.wire import Fault
from zoo.cli import main
from zoo.errors import BundleError, NetworkError
from zoo.workflows.pull import copy_bundle, fetch

UseHub = Callable[..., None]
HOSTILE_NAMES = [
    "../escaped",
    "../../../../escaped",
    "/tmp/escaped-by-the-zoo",
    "C:\\escaped",
    "a\\..\\..\\escaped",
    "\\\\host\\escaped",
    "refs/../../escaped",
    "nul\0escaped",
]


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return (open, (str(self.mark), "w"))


def changed(files: dict[str, bytes], **places: Any) -> dict[str, bytes]:
    """The bundle with keys of its configuration replaced; ``recipe__model__num_layers=2``."""
    config = json.loads(files["config.json"])
    for place, value in places.items():
        *keys, last = place.split("__")
        node = config
        for key in keys:
            node = node[key]
        node[last] = value
    return {**files, "config.json": json.dumps(config).encode()}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_neither_fetched_nor_written(
    hub: TestHub, use_hub: UseHub, bundle: Path, tmp_path: Path, name: str
) -> None:
    use_hub(hub)
    hub.put_raw(REPO, {**content(bundle), name: b"escaped"})
    outside = set(tmp_path.parent.iterdir())
    pulled = fetch(REPO, quiet=True)
    copy_bundle(pulled, tmp_path / "copy")
    zoo.load(REPO)
    assert content(pulled.folder) == content(tmp_path / "copy") == content(bundle)
    assert set(tmp_path.parent.iterdir()) == outside
    assert not Path("/tmp/escaped-by-the-zoo").exists()
    assert not hub.requests.select(path="escaped")


HOSTILE_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"recipe__auto_map": "os.system"}, r"recipe\.auto_map: unknown key"),
    "unknown family": ({"recipe__model__type": "os.system"}, "expected one of"),
    "absurd depth": ({"recipe__model__num_layers": 10**9}, "num_layers"),
    "absurd width": ({"recipe__model__hidden_channels": 2**40}, "hidden_channels"),
    "absurd shape": ({"shape__num_tasks": 10**12}, "num_tasks"),
    "terabytes": ({"recipe__model__num_layers": 100_000, "recipe__model__hidden_channels": 60_000}, "parameters"),
    "more than the weights hold": ({"recipe__model__num_layers": 1000}, "cannot hold"),
    "lying size": ({"weights__num_bytes": 10**15}, "says 1,000,000,000,000,000"),
    "wrong digest": ({"weights__sha256": "0" * 64}, "its SHA-256 is .*: not the same bundle"),
    "no digest": ({"weights__sha256": "../../x"}, "sha256"),
    "text for a number": ({"recipe__model__num_layers": "3"}, 'expected an integer, got "3"'),
    "newer format": ({"format_version": 2}, "upgrade to read it"),
    "truth for a number": ({"recipe__model__hidden_channels": True}, "expected an integer, got true"),
}


@pytest.mark.parametrize("case", HOSTILE_CONFIGS)
def test_hostile_configuration_is_refused_at_once(
    hub: TestHub, use_hub: UseHub, bundle: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    use_hub(hub)
    places, words = HOSTILE_CONFIGS[case]
    hub.put_raw(REPO, changed(content(bundle), **places))
    started = time.monotonic()
    with pytest.raises(BundleError, match=words):
        zoo.load(REPO)
    assert time.monotonic() - started < 2
    # The size and the digest of the weights are known before they are downloaded.
    assert not hub.requests.select("GET", "safetensors")
    assert main(["pull", REPO]) == 5


def test_foreign_text_adds_no_line_to_what_info_says(
    hub: TestHub, use_hub: UseHub, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    use_hub(hub)
    hub.put_raw(REPO, changed(content(bundle), recipe__summary="Fine.\ncommit       " + "0" * 40))
    assert main(["info", REPO]) == 0
    assert len([line for line in capfd.readouterr().out.splitlines() if line.startswith("commit")]) == 1


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "nested too deeply"),
        (b'{"format_version": 1, "format_version": 1}', "stands twice"),
        (b'{"format_version": NaN}', "NaN"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "expected an object"),
        (b"", "not JSON"),
        (b'{"architectures": ["BertModel"]}', "unknown key"),
        (b" " * (2 << 20), "2,097,152 bytes; at most 1,048,576 are read"),
    ],
)
def test_configuration_that_is_none_is_refused(
    hub: TestHub, use_hub: UseHub, bundle: Path, raw: bytes, words: str
) -> None:
    use_hub(hub)
    hub.put_raw(REPO, {**content(bundle), "config.json": raw})
    with pytest.raises(BundleError, match=words):
        zoo.load(REPO)
    assert not hub.requests.select("GET", "safetensors")


def test_huge_configuration_is_not_downloaded(hub: TestHub, use_hub: UseHub, bundle: Path) -> None:
    use_hub(hub)
    hub.put_raw(REPO, {**content(bundle), "config.json": b" " * (100 << 20)})
    with pytest.raises(BundleError, match=r"104,857,600 bytes; at most"):
        fetch(REPO, quiet=True)
    assert not hub.requests.select("GET", "/resolve/")


def test_configurations_of_any_shape_only_raise_bundle_errors(bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "copy"))
    raw = (bundle / "config.json").read_bytes()
    good = zoo.load(bundle).state_dict()
    for position in range(0, len(raw), 23):
        for byte in (0x22, 0x30, 0x7D):
            (folder / "config.json").write_bytes(raw[:position] + bytes([byte]) + raw[position + 1 :])
            try:
                state = zoo.load(folder).state_dict()
            except BundleError:
                continue
            assert all(state[name].equal(good[name]) for name in good)


def hostile_weights(files: dict[str, bytes], bundle: Path, tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    state = load_file(bundle / "model.safetensors")

    def saved(**changes: Any) -> bytes:
        save_file({k: v for k, v in {**state, **changes}.items() if v is not None}, tmp_path / "w.safetensors")
        return (tmp_path / "w.safetensors").read_bytes()

    weights, bias = files["model.safetensors"], state["head.bias"]
    padding = b"\0" * 40_000
    return {
        "pickle": (pickle.dumps(Payload(tmp_path / "mark")) + padding, "not a whole safetensors file"),
        "missing tensor": (saved(**{"head.bias": None, "padding": bias}), "'head.bias' is missing"),
        "other shape": (saved(**{"head.bias": bias[:2].clone()}) + b"", "shape"),
        "other type": (saved(**{"head.bias": bias.double()}), "float64"),
        "one more": (saved(extra=bias.clone()), "unknown tensor 'extra'"),
        "trailing bytes": (weights + b"\0", "its header describes .* bytes, the file has"),
        "header beyond the file": (b"\xff" * 7 + b"\x7f" + weights[8:], "header claims"),
    }


@pytest.mark.parametrize(
    "case",
    ["pickle", "missing tensor", "other shape", "other type", "one more", "trailing bytes", "header beyond the file"],
)
def test_hostile_weights_are_refused_though_their_digest_is_right(
    hub: TestHub, use_hub: UseHub, bundle: Path, tmp_path: Path, case: str
) -> None:
    use_hub(hub)
    files = content(bundle)
    weights, words = hostile_weights(files, bundle, tmp_path)[case]
    hub.put_raw(REPO, with_weights(files, weights))
    with pytest.raises(BundleError, match=words):
        zoo.load(REPO)
    assert not (tmp_path / "mark").exists()


def test_repository_of_pickles_gets_a_clear_error(hub: TestHub, use_hub: UseHub, tmp_path: Path, bundle: Path) -> None:
    use_hub(hub)
    poison = pickle.dumps(Payload(tmp_path / "mark"))
    hub.put_raw("alice/pickles", {"pytorch_model.bin": poison, "model.pth": poison})
    with pytest.raises(BundleError, match=r"not a bundle: it has no config.json; it holds 'model.pth', and pickled"):
        zoo.load("alice/pickles")
    hub.put_raw(REPO, {**content(bundle), "model.safetensors": None, "pytorch_model.bin": poison})
    with pytest.raises(BundleError, match=r"has no model.safetensors; it holds 'pytorch_model.bin'"):
        zoo.load(REPO)
    assert not hub.requests.select("GET", "/resolve/.*(bin|pth)")
    assert not (tmp_path / "mark").exists()


def test_endpoint_that_lies_about_ids_writes_nothing_elsewhere(
    hub: TestHub, use_hub: UseHub, bundle: Path, hf_home: Path
) -> None:
    use_hub(hub)
    hub.put_raw(REPO, content(bundle))
    for headers in ({"ETag": '"../../../../escaped"'}, {"X-Linked-ETag": '"../../../../escaped"'}):
        hub.faults[:] = [Fault("HEAD", times=None, headers=dict(headers))]
        with pytest.raises(NetworkError, match="does not answer like a Hub"):
            fetch(REPO, quiet=True)
    hub.faults[:] = [Fault("HEAD", times=None, headers={"X-Repo-Commit": "../../escaped"})]
    with pytest.raises(NetworkError, match="names no commit"):
        fetch(REPO, quiet=True)
    assert not list(hf_home.parent.rglob("*escaped*"))


def test_probe_of_another_digest_or_size_is_refused(hub: TestHub, use_hub: UseHub, bundle: Path) -> None:
    use_hub(hub)
    files = content(bundle)
    for raw in (files["probe.safetensors"][:-1] + b"\x01", b"x"):
        hub.put_raw(REPO, {**files, "probe.safetensors": raw})
        with pytest.raises(BundleError, match=r"probe\.safetensors: .* but config.json says .*: not the same bundle"):
            zoo.load(REPO)
    assert not hub.requests.select("GET", "/resolve/[^/]*/probe")
    hub.put_raw(REPO, {**files, "probe.safetensors": None})
    with pytest.raises(BundleError, match=r"it has no probe\.safetensors"):
        zoo.load(REPO)
