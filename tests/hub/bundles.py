"""A small trained model, as tests publish and load it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.hub.server import TestHub

REPO = "alice/small"
MEMBERS = ("README.md", "config.json", "model.safetensors", "probe.safetensors")


def content(folder: Path) -> dict[str, bytes]:
    """The files of a bundle by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def changed_config(folder: Path, **changes: Any) -> bytes:
    """``config.json`` with keys replaced at its top."""
    return json.dumps({**json.loads((folder / "config.json").read_bytes()), **changes}).encode()


def with_weights(files: dict[str, bytes], weights: bytes) -> dict[str, bytes]:
    """A bundle whose ``config.json`` truly states the size and the digest of other weights."""
    config = json.loads(files["config.json"])
    config["weights"] = {"sha256": hashlib.sha256(weights).hexdigest(), "num_bytes": len(weights)}
    return {**files, "config.json": json.dumps(config).encode(), "model.safetensors": weights}


def outputs(model: torch.nn.Module) -> Tensor:
    """[N, T] of the small model on a fixed graph."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 6, generator=generator)
    edge_index = torch.randint(20, (2, 60), generator=generator)
    with torch.no_grad():
        result: Tensor = model(x, edge_index, torch.rand(60, 3, generator=generator))
    return result


def command(env: dict[str, str], *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real ``revgnn-zoo`` in a process of its own."""
    # The client's own PUT of an LFS file draws the second warning from its HTTP library.
    warnings = ["-W", "error", "-W", "ignore:Use 'content=<:DeprecationWarning"]
    line = [sys.executable, *warnings, "-m", "zoo", *arguments]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=100, **options)


def downloads(hub: TestHub, name: str = "model.safetensors") -> int:
    """How often the content of a file was asked for."""
    return len(hub.requests.select("GET", f"/resolve/[^/]*/{name}|/lfs/"))
