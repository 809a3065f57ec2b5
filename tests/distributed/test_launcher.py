"""Under torchrun a run survives a killed process, and a SIGTERM to the launcher saves it; no process stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.jobs import command, launch
from tests.distributed.test_equal import SHARED
from tests.workflows.small import write_recipe
from tests.workflows.test_resume import outcome
from zoo.workflows.run_dir import RunDir

LIMIT_S = 300


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of eight steps, and its run by one process."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_recipe(folder, **{**SHARED, "train__num_epochs": 4})
    arguments = ("train", str(recipe), "--out", str(folder / "run"), "--device", "cpu", "-q")
    assert launch(1, command, *arguments, folder=folder) == [0]
    return folder


def torchrun(kind: str, whole: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    script = [str(Path(__file__).with_name("hurt.py")), kind, str(folder)]
    arguments = ["train", str(whole / "small.json"), "--out", str(folder / "run"), "--device", "cpu", "-q"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, *script, *arguments], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def left_behind(folder: Path) -> list[int]:
    pids = [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]
    assert len(pids) >= 2
    return [pid for pid in pids if is_alive(pid)]


def test_a_killed_process_is_started_again_and_the_run_ends_as_if_unhurt(whole: Path, tmp_path: Path) -> None:
    process = torchrun("killed", whole, tmp_path, "--max-restarts", "1")
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert len(list(tmp_path.glob("pid-*"))) == 4
    assert outcome(tmp_path / "run") == outcome(whole / "run")
    assert left_behind(tmp_path) == []


def test_a_signal_to_the_launcher_saves_the_run_and_another_number_continues_it(whole: Path, tmp_path: Path) -> None:
    process = torchrun("slow", whole, tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while not (tmp_path / "running").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("Stopped: SIGTERM at epoch")]
    assert len(lines) == 1, errors
    assert left_behind(tmp_path) == []
    run = RunDir(tmp_path / "run")
    assert run.results() is None
    assert run.states()
    arguments = ("train", "--resume", str(run.path), "--device", "cpu", "-q")
    assert launch(1, command, *arguments, folder=tmp_path) == [0]
    assert outcome(run.path) == outcome(whole / "run")
