"""What a comparison has found out so far, so that an interrupted one need not find it out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo.errors import RunError
from zoo.hub.files import atomic_write
from zoo.json_object import read_json_object


class Memo:
    """Values by key in a JSON file, written at every change.

    Args:
        path: the file; it need not be there.

    Raises:
        RunError: if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._values = read_json_object(path, error=RunError, max_bytes=1 << 26) if path.exists() else {}
        except RunError as error:
            raise RunError(f"{error}; remove the file") from error

    def get(self, key: str) -> Any:
        """The value; None if there is none."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value.

        Raises:
            RunError: if it cannot be stored.
        """
        self._values[key] = value
        write_file(self._path, json.dumps(self._values, indent=2, allow_nan=False).encode() + b"\n")


def write_file(path: Path, content: bytes) -> None:
    """Write a file, and its folder if need be.

    Raises:
        RunError: if it cannot be stored.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, [content])
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
