"""The client's errors in the words of the zoo, its secrets kept, and its settings left to others."""

from __future__ import annotations

import contextlib
import json
import struct
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging

import zoo
from tests.hub.bundles import REPO, content, with_weights
from tests.hub.client import ALICE
from tests.hub.server import TestHub
from tests.hub.wire import Fault
from zoo.cli import main
from zoo.errors import ZooError
from zoo.hub.client import connect
from zoo.workflows.pull import fetch

UseHub = Callable[..., None]
# What a proxy, another service or an older hub may answer.
ODD_BODIES = [
    b"{}",
    b"[]",
    b"null",
    b"3",
    b'"x"',
    b'[{"a": 1}]',
    b"<html>Log in</html>",
    b"",
    b"\xff\xfe",
    b'{"id": []}',
]


@pytest.fixture
def full_hub(hub: TestHub, use_hub: UseHub, bundle: Path) -> TestHub:
    hub.put_raw(REPO, content(bundle))
    use_hub(hub, ALICE)
    return hub


def told(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    (line,) = capfd.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("body", ODD_BODIES)
def test_answers_of_another_shape_are_an_error_of_the_zoo(full_hub: TestHub, bundle: Path, body: bytes) -> None:
    full_hub.faults.append(Fault("", "/api/", status=200, body=body, times=None))
    with pytest.raises(ZooError):
        zoo.push(bundle, REPO, tag="v1", license="mit")
    with pytest.raises(ZooError):
        zoo.push(bundle, "alice/new", private=True, license="mit")
    assert main(["list", "--remote"]) in (0, 6)
    assert main(["pull", REPO, "--dry-run"]) == 6


@pytest.mark.parametrize("path", ["/repos/create", "/refs", "/paths-info/", "/preupload/", "/batch", "/commit/"])
@pytest.mark.parametrize("body", [b"{}", b"[]", b"null"])
def test_one_odd_answer_within_a_push_is_an_error_of_the_zoo_or_none(
    full_hub: TestHub, bundle: Path, path: str, body: bytes
) -> None:
    full_hub.faults.append(Fault("", path, status=200, body=body))
    with contextlib.suppress(ZooError):
        zoo.push(bundle, REPO if path in ("/refs", "/paths-info/") else "alice/new", tag="v1", license="mit")


@pytest.mark.parametrize("location", ["\x1b]0;..://x/y", "http://[", "ftp://127.0.0.1/x", "//", "x", "/"])
@pytest.mark.parametrize("status", [302, 307])
def test_redirect_to_nowhere_is_an_error_of_the_zoo(
    full_hub: TestHub, location: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    full_hub.faults.append(Fault("", REPO, status=status, headers={"Location": location}, times=None))
    for arguments in (["info", REPO], ["pull", REPO], ["pull", REPO, "--dry-run"]):
        assert main(arguments) in (1, 3, 6)
        assert told(capfd).isprintable()


HEADERS: list[Any] = [
    [],
    None,
    3,
    "x",
    {"a": None},
    {"a": 3},
    {"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}},
    {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [None], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1]}},
    {"a": {"shape": [1], "data_offsets": [0, 4]}},
    {"__metadata__": 3, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "x"]}},
]


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_info_of_hostile_weights_is_one_line(
    full_hub: TestHub, bundle: Path, header: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(header).encode()
    weights = struct.pack("<Q", len(text)) + text + b"\0" * 40_000
    full_hub.put_raw(REPO, with_weights(content(bundle), weights))
    code = main(["info", REPO])
    assert code in (0, 5)
    if code:
        assert "model.safetensors: not a whole safetensors file" in told(capfd)


def test_login_page_of_a_network_is_named(full_hub: TestHub, capfd: pytest.CaptureFixture[str]) -> None:
    full_hub.faults.append(Fault("GET", "/api/", status=200, body=b"<html>Log in</html>"))
    assert main(["list", "--remote"]) == 6
    assert "does not answer like a Hub" in (line := told(capfd))
    assert "perhaps a login page of this network" in line


def test_home_or_cache_that_is_a_file_is_one_line(
    full_hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(file))
    for arguments in (["list", "--cached"], ["pull", REPO]):
        assert main(arguments) == 1
        told(capfd)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(file / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(file / "hub"))
    for arguments in (["pull", REPO], ["list", "--remote"], ["info", REPO]):
        assert main(arguments) == 1
        told(capfd)


def test_endpoint_that_is_no_address_is_one_line(
    hf_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://[")
    assert main(["pull", REPO]) == 1
    assert "HF_ENDPOINT=http://[: not an address" in told(capfd)


def test_password_of_the_endpoint_is_never_told(
    full_hub: TestHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", full_hub.url.replace("://", "://user:s3cretpw@"))
    assert connect().endpoint == full_hub.url
    full_hub.stop()
    assert main(["pull", REPO]) == 6
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:s3cretpw@hub.example")
    assert main(["pull", REPO]) == 4
    said = capfd.readouterr()
    assert "s3cretpw" not in said.out + said.err


def test_traceback_under_debug_holds_no_token(full_hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "Canary" * 6
    monkeypatch.setenv("HF_TOKEN", canary)
    full_hub.tokens[canary] = ("alice", "write")
    full_hub.faults.append(Fault("HEAD", status=400, headers={"X-Error-Message": f"bad token {canary}"}, times=None))
    with pytest.raises(ZooError) as caught:
        main(["pull", REPO, "--debug"])
    printed = "".join(traceback.format_exception(caught.value))
    assert printed.count("bad token hf_***") >= 2
    assert canary not in printed


@pytest.mark.parametrize("is_quiet", [True, False])
def test_bars_and_log_of_the_client_are_as_they_were(full_hub: TestHub, bundle: Path, is_quiet: bool) -> None:
    disable_progress_bars("some.group")
    before = are_progress_bars_disabled(), are_progress_bars_disabled("some.group"), hub_logging.get_verbosity()
    try:
        zoo.load(REPO)
        fetch(REPO, quiet=is_quiet)
        zoo.push(bundle, "alice/new", license="mit", quiet=is_quiet)
        after = are_progress_bars_disabled(), are_progress_bars_disabled("some.group"), hub_logging.get_verbosity()
    finally:
        enable_progress_bars()
    assert after == before == (False, True, 30)


def test_bars_forced_by_the_environment_draw_no_warning(full_hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch(REPO, quiet=True)
