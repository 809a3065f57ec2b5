"""The variables by which ``torchrun`` tells a process of others; imports nothing that takes time."""

import os


def is_shared() -> bool:
    """True for one of several processes that share a run."""
    return "MASTER_ADDR" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
