"""Workers of the package, forked from a process that has imported what they need.

Imports take a worker seconds, and many tests start some. Tests that ask for ``real_workers`` start real ones, as do
commands that tests run in processes.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import runpy
import subprocess
import sys
from multiprocessing import reduction
from typing import IO, Any

from zoo.ops import dispatch

# Read when torch is loaded; on a machine with a launcher only rank 0 sees warnings of lost connections.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])
MODULES = ("zoo.workflows.worker", "benchmarks.worker")
real_popen = subprocess.Popen


def popen(arguments: Any, **options: Any) -> Any:
    """As ``subprocess.Popen``; a worker is forked."""
    if list(arguments[:2]) == [sys.executable, "-m"] and arguments[2] in MODULES:
        return ForkedWorker(arguments[2], options["stdout"], options["stderr"])
    return real_popen(arguments, **options)


class ForkedWorker:
    """What the package asks of a ``subprocess.Popen`` of a worker."""

    def __init__(self, module: str, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        read, write = os.pipe()
        self.stdin = os.fdopen(write, "wb")
        files = [_Shared(read), _Shared(stdout.fileno()), _Shared(stderr.fileno())]
        self._process = CONTEXT.Process(target=_work, args=(module, files, dict(os.environ), os.getcwd()))
        self._process.start()
        os.close(read)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int | None:
        self._process.join()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)


class _Shared:
    """A file that a forked process gets as its own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shared._detached, (reduction.DupFd(self.number),)

    @staticmethod
    def _detached(file: Any) -> _Shared:
        return _Shared(file.detach())


def _work(module: str, files: list[_Shared], environment: dict[str, str], folder: str) -> None:
    """Become ``python -m MODULE``."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file.number, number)
        os.close(file.number)
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    dispatch._named = environment.get(dispatch.ENVIRONMENT_VARIABLE) or None
    sys.argv = [module]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
