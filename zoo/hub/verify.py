"""Checks that files in the cache are the ones that were published."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def git_id(content: bytes) -> str:
    """The id that git, and with it the Hub, gives a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def has_cached_id(path: Path, content: bytes) -> bool:
    """Compare a file in the cache with the id under which the Hub published it.

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
