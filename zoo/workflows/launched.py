"""The variables by which ``torchrun`` tells a process of others; imports nothing that takes time."""

import os
import signal
import sys


def is_shared() -> bool:
    """True for one of several processes that share a run."""
    return "MASTER_ADDR" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_with_launcher() -> None:
    """Let this process get a SIGTERM if its launcher is killed, which can then not end it itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        import ctypes

        # PR_SET_PDEATHSIG of prctl(2).
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
