"""Tasks in processes of their own, so that time and memory are those of one model alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any

from typing_extensions import Self

from zoo.errors import RunError
from zoo.workflows.session import StopRequest

_POLL_S = 0.05


@dataclass(frozen=True)
class Task:
    """Something for ``zoo.workflows.compare.worker`` to do.

    Attributes:
        label: what it is, in words; begins its error.
        request: as the worker reads it.
    """

    label: str
    request: dict[str, Any]


def run_tasks(
    tasks: Iterable[Task],
    *,
    num_jobs: int,
    stop: StopRequest,
    on_start: Callable[[Task], None],
    on_done: Callable[[Task, dict[str, Any], list[str]], None],
) -> bool:
    """Run tasks in order, some at a time.

    When a stop is asked for, the signal is passed on to the processes that run, which save their state; no further
    task is started.

    Args:
        tasks: what to do.
        num_jobs: how many at a time.
        stop: whether a signal came.
        on_start: called with a task that begins.
        on_done: called with a finished task, its result and its warnings.

    Returns:
        Whether all tasks were done; else a stop was asked for.

    Raises:
        RunError: if a task fails; the others that run are stopped and have saved their state.
    """
    waiting, running = deque(tasks), list[_Process]()
    told = False
    try:
        while running or (waiting and not stop):
            while waiting and len(running) < num_jobs and not stop:
                on_start(waiting[0])
                running.append(_Process.start(waiting.popleft()))
            if stop and not told:
                told = True
                for process in running:
                    process.popen.send_signal(stop.signum)
            for process in [process for process in running if process.popen.poll() is not None]:
                running.remove(process)
                with process.out, process.err:
                    if process.popen.returncode == 0:
                        on_done(process.task, *process.result())
                    elif not stop:
                        raise process.error()
            time.sleep(_POLL_S)
        return not waiting and not stop
    except BaseException as error:
        for process in running:
            # A second Ctrl-C does not wait for a state to be saved; the one before is whole.
            process.popen.send_signal(signal.SIGKILL if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
        for process in running:
            with process.out, process.err:
                process.popen.wait()
        raise


@dataclass(frozen=True)
class _Process:
    """A task that runs. Files take what it prints, since a pipe that nobody reads would fill up."""

    task: Task
    popen: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]

    @classmethod
    def start(cls, task: Task) -> Self:
        # Unnamed files: they are gone when nobody holds them any more.
        out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        with tempfile.TemporaryFile() as request:
            request.write(json.dumps(task.request).encode())
            request.seek(0)
            command = [sys.executable, "-m", "zoo.workflows.compare.worker"]
            # A session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on once.
            popen = subprocess.Popen(command, stdin=request, stdout=out, stderr=err, start_new_session=True)
        return cls(task, popen, out, err)

    def result(self) -> tuple[dict[str, Any], list[str]]:
        self.out.seek(0)
        result: dict[str, Any] = json.load(self.out)
        return result, [line for line in self._lines() if line.startswith("Warning")]

    def error(self) -> RunError:
        code = self.popen.returncode
        if code < 0:
            return RunError(f"{self.task.label}: stopped by {signal.Signals(-code).name}, out of memory?")
        return RunError(f"{self.task.label}: {(self._lines() or [f'exit code {code}'])[-1]}")

    def _lines(self) -> list[str]:
        self.err.seek(0)
        return [line for line in self.err.read().decode(errors="replace").splitlines() if line.strip()]
