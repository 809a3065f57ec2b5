"""Under torchrun a run survives a killed process and a killed launcher; no process stays behind.

The script for Slurm and the manifest for Kubernetes are those of ``docs/scale_out.md``.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, parse_args

from benchmarks import killed_rank
from tests.distributed import hurt
from tests.distributed.jobs import command, free_port, launch, said, start_launcher
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


def documented(language: str) -> str:
    """The only block of code in a language in the page about many processes."""
    page = (Path(__file__).parents[2] / "docs" / "scale_out.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"```{language}\n(#!.*?|apiVersion.*?)```", page, re.DOTALL)
    return str(block)


def command_line(whole: Path, folder: Path) -> list[str]:
    return ["train", str(whole / "small.json"), "--out", str(folder / "run"), "--device", "cpu", "-q"]


def wait_for_steps(folder: Path, is_running: Callable[[], bool]) -> dict[int, int]:
    """Wait until both processes have trained some steps; their numbers by rank."""
    deadline = time.monotonic() + LIMIT_S
    while len(running := {int(path.name.removeprefix("running-")) for path in folder.glob("running-*")}) < 2:
        assert is_running()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return {rank: pid for rank, pid in started(folder) if pid in running}


def started(folder: Path) -> list[tuple[int, int]]:
    """Rank and number of each process that a launcher has started."""
    names = [path.name.split("-") for path in folder.glob("[0-9]-*")]
    return [(int(rank), int(pid)) for rank, pid in names]


def one_place() -> dict[str, Any]:
    """Where the launchers of a test meet."""
    return {"rdzv_backend": "c10d", "rdzv_endpoint": f"localhost:{free_port()}", "local_addr": "localhost"}


def left_behind(folder: Path) -> list[int]:
    """The processes that still live, after some time to end."""
    deadline = time.monotonic() + LIMIT_S
    while (left := [pid for _, pid in started(folder) if killed_rank.is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def assert_saved(whole: Path, folder: Path, errors: str) -> None:
    """The processes have said once that they stopped, none is left, and one process ends the run."""
    lines = [line for line in errors.splitlines() if line.startswith("Stopped: SIGTERM at epoch")]
    assert len(lines) == 1, errors
    assert left_behind(folder) == []
    run = RunDir(folder / "run")
    assert run.results() is None
    assert run.states()
    arguments = ("train", "--resume", str(run.path), "--device", "cpu", "-q")
    assert launch(1, command, *arguments, folder=folder) == [0]
    assert outcome(run.path) == outcome(whole / "run")


def test_a_signal_of_slurm_saves_the_run_and_another_number_continues_it(whole: Path, tmp_path: Path) -> None:
    command = " ".join(map(str, [Path(__file__).with_name("hurt.py"), tmp_path, *command_line(whole, tmp_path)]))
    script = documented("bash")
    for pattern, text in (
        (r"torchrun", f"{sys.executable} -m torch.distributed.run"),
        (r"--nproc-per-node 8", "--nproc-per-node 2"),
        (r":29500", f":{free_port()}"),
        (r"-m zoo (.|\n)* --resume", f"{command} --resume"),
    ):
        script, number = re.subn(pattern, text, script)
        assert number == 1
    # srun, which starts a launcher on each machine, and to whose processes Slurm sends the signal.
    commands = {"srun": f'echo $$ > {tmp_path}/launcher; exec "$@"', "scontrol": "echo localhost; echo other"}
    for name, text in {**commands, "job": script}.items():
        (tmp_path / name).write_text(text if name == "job" else f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [tmp_path / "job"],
        env={**os.environ, **slurm, **path},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for_steps(tmp_path, lambda: process.poll() is None)
        os.kill(int((tmp_path / "launcher").read_text()), signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert_saved(whole, tmp_path, errors)


def test_the_processes_of_a_killed_launcher_save_the_run_and_end(whole: Path, tmp_path: Path) -> None:
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="one", **one_place())
    launcher = start_launcher(tmp_path, "a", config, hurt.run, tmp_path, command_line(whole, tmp_path))
    try:
        wait_for_steps(tmp_path, launcher.is_alive)
    finally:
        launcher.kill()
    launcher.join()
    assert left_behind(tmp_path) == []
    assert_saved(whole, tmp_path, said(tmp_path, "a"))


def test_two_pods_survive_a_killed_process_and_end_as_if_unhurt(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = yaml.safe_load(documented("yaml"))["spec"]
    pod = job["pytorchReplicaSpecs"]["Worker"]
    _, *command = pod["template"]["spec"]["containers"][0]["command"]
    assert command[-1] == "--resume"
    policy = job["elasticPolicy"]
    assert policy["minReplicas"] == policy["maxReplicas"] == pod["replicas"]
    # What the operator sets in each pod, of two with a process each instead of four with eight.
    place, restarts = {"RDZV_ENDPOINT": f"localhost:{free_port()}", "NNODES": "2:2"}, str(policy["maxRestarts"])
    for key, value in {**place, "RDZV_BACKEND": policy["rdzvBackend"], "MAX_RESTARTS": restarts}.items():
        monkeypatch.setenv(f"PET_{key}", value)
    config = replace(config_from_args(parse_args(command))[0], nproc_per_node=1, local_addr="localhost")
    arguments = [*command_line(whole, tmp_path), "--resume"]
    launchers = [start_launcher(tmp_path, name, config, hurt.run, tmp_path, arguments) for name in ("a", "b")]
    try:
        pids = wait_for_steps(tmp_path, lambda: all(launcher.is_alive() for launcher in launchers))
        # At any of the five steps that are left.
        time.sleep(random.uniform(0, 0.5))
        os.kill(pids[random.randrange(2)], signal.SIGKILL)
        for launcher in launchers:
            launcher.join(LIMIT_S)
        errors = [said(tmp_path, name) for name in ("a", "b")]
        assert [launcher.exitcode for launcher in launchers] == [0, 0], errors
    finally:
        for launcher in launchers:
            launcher.kill()
    assert len(started(tmp_path)) == 4
    assert left_behind(tmp_path) == []
    assert outcome(tmp_path / "run") == outcome(whole / "run")
    results = RunDir(tmp_path / "run").results()
    assert results is not None
    assert results.rank_memory_bytes is not None
    assert results.rank_busy_s is not None
    assert len(results.rank_memory_bytes) == len(results.rank_busy_s) == 2
