"""What tests do with a hub: a sample repository, and short ways to publish, fetch and look."""

from __future__ import annotations

import http.client
import subprocess
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

from tests.hub.server import TestHub

ALICE = "hf_alice_write"
REPO = "alice/model"
CARD = b"---\nlicense: mit\ntags: [graphs]\n---\n# A model\n"
WEIGHTS = bytes(range(256)) * 40
FILES = {"README.md": CARD, "config.json": b'{"a": 1}\n', "model.safetensors": WEIGHTS, "extra/notes.txt": b"notes\n"}


def api(hub: TestHub, token: str = ALICE) -> HfApi:
    """The client as a user; token "" is nobody."""
    return HfApi(endpoint=hub.url, token=token or False)


def hf(env: dict[str, str], *arguments: str) -> str:
    """What the hf command prints."""
    line = [sys.executable, "-m", "huggingface_hub.cli.hf", *arguments]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "folder"


def published(hub: TestHub, revision: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in hub.files(REPO, revision).items() if name != ".gitattributes"}


def content_of(folder: str | Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != ".gitattributes" and ".cache" not in name}


def fetch(hub: TestHub, name: str, token: str = "", **options: Any) -> bytes:
    return Path(hf_hub_download(REPO, name, endpoint=hub.url, token=token or False, **options)).read_bytes()


def raw(
    hub: TestHub, path: str, method: str = "GET", headers: dict[str, str] | None = None, body: Any = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request without the client's help."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response, data
