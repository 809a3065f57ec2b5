"""Fixtures around the test hub: hubs that clean up after themselves and a client that knows nothing of this machine."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _detect_agent, _xet, close_session

from tests.hub.server import TestHub
from tests.workflows.small import small_recipe
from zoo.workflows.publish import prepare_bundle
from zoo.workflows.train import train

# Nothing listens here: code that forgets to pass its endpoint on fails instead of calling the public hub.
NOWHERE = "http://127.0.0.1:9"

HubMaker = Callable[..., TestHub]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The client's own PUT of an LFS file draws this warning from its HTTP library.
    ignore = pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")
    for item in items:
        if "make_hub" in getattr(item, "fixturenames", ()):
            item.add_marker(ignore)


@pytest.fixture
def hf_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Fresh home and cache of the client in this process, no token and no endpoint."""
    home = tmp_path / "hf_home"
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    # hf_xet looks at the environment, the Python client has read it when it was imported.
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / "agents.json"),
        "ENDPOINT": NOWHERE,
        "HUGGINGFACE_CO_URL_TEMPLATE": NOWHERE + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(_detect_agent, "_registry", _detect_agent._EMPTY_REGISTRY)
    # Another hub may have had the same port.
    _xet.XET_CONNECTION_INFO_CACHE.clear()
    yield home
    close_session()


@pytest.fixture
def make_hub(hf_home: Path) -> Iterator[HubMaker]:
    """Starts a hub with the options of TestHub and the user alice; fails the test if the hub itself is at fault."""
    hubs: list[TestHub] = []

    def make(**options: Any) -> TestHub:
        hub = TestHub(**options)
        hubs.append(hub)
        hub.start()
        hub.add_user("alice")
        return hub

    yield make
    for hub in hubs:
        hub.close()
    assert [error for hub in hubs for error in hub.errors] == []


@pytest.fixture
def lfs_client(hf_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client in this process sends large files by LFS, as with HF_HUB_DISABLE_XET=1."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub(make_hub: HubMaker, lfs_client: None) -> TestHub:
    """A hub without xet, and a client that does not ask for it."""
    return make_hub()


@pytest.fixture
def xet_hub(make_hub: HubMaker) -> TestHub:
    """A hub with xet, and a client that uses it."""
    return make_hub(xet=True)


@pytest.fixture
def hub_env(hf_home: Path) -> Callable[..., dict[str, str]]:
    """Makes the environment of a subprocess: `hub_env(hub, token)`, or `hub_env(hub, HF_HUB_OFFLINE="1")`."""

    def make(hub: TestHub, token: str = "", **more: str) -> dict[str, str]:
        # One process at a time may open the xet store, and an error caught in this one may still hold on to it.
        gc.collect()
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "0" if hub.xet else "1",
            "NO_COLOR": "1",
        }
        return {**env, **({"HF_TOKEN": token} if token else {}), **more}

    return make


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts the client's pauses between attempts, which would add up to half a minute."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda duration_s: sleep(min(duration_s, 0.01)))


@pytest.fixture
def use_hub(hf_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Points the zoo in this process to a hub, as a user or as nobody: `use_hub(hub, token)`."""

    def use(hub: TestHub, token: str = "") -> None:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)

    return use


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small recipe; tests that change it make a copy."""
    folder = tmp_path_factory.mktemp("finished")
    train(small_recipe(folder, model__num_layers=3), folder / "run", device="cpu", quiet=True)
    return folder / "run"


@pytest.fixture(scope="session")
def bundle(run: Path) -> Path:
    """The bundle of that run; tests that change it make a copy."""
    return prepare_bundle(run)
