"""Under torchrun a run survives a killed process and a killed launcher; no process stays behind."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import killed_rank
from tests.distributed.jobs import command, free_port, launch
from tests.distributed.test_equal import SHARED
from tests.workflows.small import write_recipe
from tests.workflows.test_resume import outcome
from zoo.workflows.run_dir import RunDir

LIMIT_S = 120


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of eight steps, and its run by one process."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_recipe(folder, **{**SHARED, "train__num_epochs": 4})
    arguments = ("train", str(recipe), "--out", str(folder / "run"), "--device", "cpu", "-q")
    assert launch(1, command, *arguments, folder=folder) == [0]
    return folder


@contextmanager
def torchrun(whole: Path, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose processes train ``folder / run``; it is gone afterwards."""
    script = [str(Path(__file__).with_name("hurt.py")), str(folder)]
    arguments = ["train", str(whole / "small.json"), "--out", str(folder / "run"), "--device", "cpu", "-q"]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *script, *arguments],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_steps(folder: Path, *launchers: subprocess.Popen[str]) -> dict[int, int]:
    """Wait until both processes have trained some steps; their numbers by rank."""
    deadline = time.monotonic() + LIMIT_S
    while len(running := {int(path.name.removeprefix("running-")) for path in folder.glob("running-*")}) < 2:
        assert all(launcher.poll() is None for launcher in launchers)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return {rank: pid for rank, pid in started(folder) if pid in running}


def started(folder: Path) -> list[tuple[int, int]]:
    """Rank and number of each process that a launcher has started."""
    names = [path.name.split("-") for path in folder.glob("[0-9]-*")]
    return [(int(rank), int(pid)) for rank, pid in names]


def left_behind(folder: Path) -> list[int]:
    """The processes that still live, after some time to end."""
    deadline = time.monotonic() + LIMIT_S
    while (left := [pid for _, pid in started(folder) if killed_rank.is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def test_two_machines_survive_a_killed_process_and_end_as_if_unhurt(whole: Path, tmp_path: Path) -> None:
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--local-addr", "localhost"]
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1", *place]
    with torchrun(whole, tmp_path, *options) as first, torchrun(whole, tmp_path, *options) as second:
        pids = wait_for_steps(tmp_path, first, second)
        # At any of the five steps that are left.
        time.sleep(random.uniform(0, 0.5))
        os.kill(pids[random.randrange(2)], signal.SIGKILL)
        errors = [launcher.communicate(timeout=LIMIT_S)[1] for launcher in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), errors
    assert len(started(tmp_path)) == 4
    assert left_behind(tmp_path) == []
    assert outcome(tmp_path / "run") == outcome(whole / "run")
    results = RunDir(tmp_path / "run").results()
    assert results is not None
    assert results.rank_memory_bytes is not None
    assert results.rank_busy_s is not None
    assert len(results.rank_memory_bytes) == len(results.rank_busy_s) == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_launcher_saves_the_run_and_another_number_continues_it(
    signum: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    with torchrun(whole, tmp_path, "--standalone", "--nproc-per-node", "2") as launcher:
        wait_for_steps(tmp_path, launcher)
        launcher.send_signal(signum)
        _, errors = launcher.communicate(timeout=LIMIT_S)
        assert launcher.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("Stopped: SIGTERM at epoch")]
    assert len(lines) == 1, errors
    assert left_behind(tmp_path) == []
    run = RunDir(tmp_path / "run")
    assert run.results() is None
    assert run.states()
    arguments = ("train", "--resume", str(run.path), "--device", "cpu", "-q")
    assert launch(1, command, *arguments, folder=tmp_path) == [0]
    assert outcome(run.path) == outcome(whole / "run")
