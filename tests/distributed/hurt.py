"""The command line, started by torchrun, in a run that waits before each step and saves after it.

usage: hurt.py FOLDER ARGUMENTS ...

Each process leaves ``RANK-PID`` in the folder, and at its third step ``running-PID``.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from zoo.cli import main
from zoo.ops.dispatch import use_backend
from zoo.workflows import state
from zoo.workflows import train as module


def run(folder: Path, arguments: list[str]) -> None:
    (folder / f"{os.environ['RANK']}-{os.getpid()}").touch()
    original, calls = module.training_step, iter(range(1, 1000))

    def patched(*given: Any) -> Any:
        time.sleep(0.1)
        if next(calls) == 3:
            (folder / f"running-{os.getpid()}").touch()
        return original(*given)

    setattr(module, "training_step", patched)  # noqa: B010
    setattr(module, "plot", lambda run: None)  # noqa: B010
    state._MAX_SHARE, state._PERIOD_S = 1e9, 0.0
    torch.set_num_threads(1)
    with use_backend("chunked"):
        code = main(arguments)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
