"""Files that are either whole or absent, and that are regular files before anything is read from them."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path


def atomic_write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file so that a reader, and a crash at any moment, finds the old content or the new, never a mixture.

    The temporary file stands in the same folder: a rename never crosses file systems.

    Args:
        path: the file; its folder exists.
        chunks: its content.

    Raises:
        OSError: if the content cannot be stored; the old file is then untouched.
    """
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with open(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut.

    Raises:
        OSError: if the folder cannot be opened or written.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; a pipe or a device is refused without waiting for it.

    Raises:
        OSError: if it cannot be opened or is something else; ``strerror`` says which.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "not a regular file", str(path))
    return open(descriptor, "rb")


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """The first ``max_bytes`` + 1 bytes of a regular file, so that the caller can tell what is too large.

    Raises:
        OSError: as :func:`open_regular`.
    """
    with open_regular(path) as file:
        return file.read(max_bytes + 1)
