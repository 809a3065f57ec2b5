"""Whether downloaded files are the ones that were published; what was found is remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from huggingface_hub import cached_assets_path

from zoo.errors import ZooError
from zoo.files import atomic_write, sha256_of
from zoo.hub.client import LIBRARY


def has_sha256(path: Path, sha256: str, num_bytes: int) -> bool:
    """Whether a file has this size and this SHA-256.

    A file that was found whole is not read again until its size, its time or its place on the disk changes.

    Args:
        path: the file; links are followed.
        sha256: 64 hexadecimal digits.
        num_bytes: the size.

    Raises:
        OSError: if the file cannot be read.
    """
    status = path.stat()
    if status.st_size != num_bytes:
        return False
    stamp = [sha256, status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev]
    note = _note_of(path)
    if note is not None and _read(note) == stamp:
        return True
    if sha256_of(path) != sha256:
        return False
    if note is not None:
        # A cache that may only be read serves all the same; the file is then read again the next time.
        with contextlib.suppress(ZooError):
            atomic_write(note, [json.dumps(stamp).encode()], ZooError)
    return True


def git_id(content: bytes) -> str:
    """The id that git, and with it the Hub, gives a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def has_cached_id(path: Path, content: bytes) -> bool:
    """Whether a file in the cache is the one that its commit names.

    The cache keeps a file under the id that the Hub gave it, and a link to it under its name. Where the system knows no
    links there is nothing to compare with.

    Args:
        path: the file in the folder of its commit.
        content: of the file.
    """
    if not path.is_symlink():
        return True
    name = Path(os.readlink(path)).name
    return name == (git_id(content) if len(name) == 40 else hashlib.sha256(content).hexdigest())


def drop(path: Path) -> None:
    """Remove a file from the cache, with all that its name links to."""
    while True:
        target = path.parent / os.readlink(path) if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = target


def _note_of(path: Path) -> Path | None:
    """Where it is noted that a file was found whole; None if no notes can be kept."""
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    try:
        return cached_assets_path(LIBRARY, namespace="verified") / f"{name}.json"
    except OSError:
        return None


def _read(note: Path) -> object:
    try:
        return json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
