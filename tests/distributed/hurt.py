"""The command line, started by torchrun, in a run that saves after every step and that something happens to.

usage: hurt.py (killed | slow) FOLDER ARGUMENTS ...

Each process leaves its number in the folder. In a run that is killed, rank 1 dies at its third step, once.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from zoo.cli import main
from zoo.ops.dispatch import use_backend
from zoo.workflows import state
from zoo.workflows import train as module


def run(kind: str, folder: Path, arguments: list[str]) -> int:
    (folder / f"pid-{os.getpid()}").touch()
    original, calls = module.training_step, iter(range(1, 1000))

    def patched(*given: Any) -> Any:
        number = next(calls)
        if kind == "slow":
            time.sleep(0.2)
            if number == 3:
                (folder / "running").touch()
        elif number == 3 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given)

    setattr(module, "training_step", patched)  # noqa: B010
    setattr(module, "plot", lambda run: None)  # noqa: B010
    state._MAX_SHARE, state._PERIOD_S = 1e9, 0.0
    torch.set_num_threads(1)
    with use_backend("chunked"):
        return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
