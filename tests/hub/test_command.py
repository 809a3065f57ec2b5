"""The test hub against the real hf command, and as a program of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi

from tests.hub.client import ALICE, FILES, REPO, content_of, folder_of, published
from tests.hub.server import TestHub

HF = [sys.executable, "-m", "huggingface_hub.cli.hf"]


def run(env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run([*HF, *arguments], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hf_command_publishes_and_fetches(hub: TestHub, hub_env: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    env, folder = hub_env(hub, ALICE), folder_of(tmp_path, FILES)
    assert "alice" in run(env, "auth", "whoami")
    run(env, "repos", "create", REPO)
    run(env, "upload", REPO, str(folder))
    assert published(hub) == FILES
    run(env, "repos", "tag", "create", REPO, "v1")
    (folder / "new.txt").write_bytes(b"new\n")
    run(env, "upload", REPO, str(folder), "--create-pr")
    assert published(hub, "refs/pr/1") == {**FILES, "new.txt": b"new\n"}
    assert json.loads(run(env, "models", "ls", "--author", "alice", "--format", "json"))[0]["id"] == REPO
    nobody = hub_env(hub)
    folder_in_cache = run(nobody, "download", REPO, "--revision", "v1", "--format", "quiet").strip()
    assert Path(folder_in_cache).name == hub.repo(REPO).head.id
    run(nobody, "cache", "verify", REPO, "--revision", "v1")
    # Fetched once, the tag is there when the hub may not be asked.
    hub.requests.clear()
    offline = hub_env(hub, HF_HUB_OFFLINE="1")
    assert run(offline, "download", REPO, "--revision", "v1", "--format", "quiet").strip() == folder_in_cache
    assert content_of(folder_in_cache) == FILES
    assert hub.requests == []


def test_hf_command_speaks_xet_with_the_hub(
    xet_hub: TestHub, hub_env: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    xet_hub.put_raw(REPO, {})
    run(hub_env(xet_hub, ALICE), "upload", REPO, str(folder_of(tmp_path, FILES)))
    assert xet_hub.repo(REPO).head.files["model.safetensors"].xet_hash
    run(hub_env(xet_hub), "download", REPO, "--local-dir", str(tmp_path / "xet"))
    assert content_of(tmp_path / "xet") == FILES
    assert xet_hub.requests.select(path="/xet-read-token/")
    run(hub_env(xet_hub, HF_HUB_DISABLE_XET="1"), "download", REPO, "--local-dir", str(tmp_path / "plain"))
    assert content_of(tmp_path / "plain") == FILES


def test_hub_runs_by_hand() -> None:
    command = [sys.executable, "-m", "tests.hub", "--user", "carol"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assigned = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
        client = HfApi(endpoint=assigned["HF_ENDPOINT"], token=assigned["HF_TOKEN"])
        assert client.whoami()["name"] == "carol"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(20) == 0
