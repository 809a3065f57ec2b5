"""Measurements of a comparison, kept so that an interrupted one need not repeat them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.errors import RunError
from zoo.files import make_folder, write_json
from zoo.json_object import read_json_object


class Cache:
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
        # The whole file each time: it is small, and a process may be killed after any measurement.
        self._values[key] = value
        make_folder(self._path.parent, RunError)
        write_json(self._path, self._values, RunError)
