"""Checks that files are the ones that were published: the Hub gives each an id, by which the cache keeps it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from zoo.files import sha256_of


def git_id(content: bytes) -> str:
    """The id that git, and with it the Hub, gives a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def has_id(content: bytes | Path, id_: str) -> bool:
    """Compare the content of a file, or a file, with its id: git's of a small file, the SHA-256 of a large one."""
    if len(id_) == 40:
        return id_ == git_id(content.read_bytes() if isinstance(content, Path) else content)
    return id_ == (sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest())


def cached_id(path: Path) -> str:
    """The id of a file in the cache, to which its name links; empty where the system knows no links."""
    return Path(os.readlink(path)).name if path.is_symlink() else ""


def drop(path: Path) -> None:
    """Remove a file from the cache, with all that its name links to."""
    while True:
        target = path.parent / os.readlink(path) if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = target
