"""Where data lies, and how several processes share a folder of it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import DataError


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the data sets.

    Args:
        root: wins if given; else the environment variable ZOO_DATA; else ``revgnn-zoo/data`` in the user's cache
            folder (XDG_CACHE_HOME, by default ``~/.cache``).

    Returns:
        An absolute path that need not exist yet.
    """
    if root is None:
        root = os.environ.get("ZOO_DATA") or None
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "revgnn-zoo" / "data"
    return Path(root).expanduser().absolute()


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        DataError: if the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot create this folder ({error.strerror}); choose another root") from error


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that one process at a time can have; others wait.

    Args:
        path: an empty file that stays behind; its folder must exist and be writable.

    Raises:
        DataError: if the lock file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DataError(f"{path}: cannot open the lock file ({error.strerror}); is the folder writable?") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Closing the descriptor gives the lock back, as does the end of the process, however it comes.
        os.close(descriptor)


def check_free_space(folder: Path, required_bytes: int, purpose: str) -> None:
    """Refuse to start a large write that cannot end well.

    Args:
        folder: existing folder on the disk to be written to.
        required_bytes: what will be written.
        purpose: completes "... is needed for".

    Raises:
        DataError: if the disk has less than that and a reserve of 64 MiB.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < required_bytes + (64 << 20):
        needed, free = f"{required_bytes / 2**30:.2f} GiB", f"{free_bytes / 2**30:.2f} GiB"
        raise DataError(f"{folder}: {needed} of disk space is needed for {purpose}, only {free} is free")


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
