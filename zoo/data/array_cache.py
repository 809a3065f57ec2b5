"""A folder of .npy files that is either whole or absent, and opens at once because it is mapped, not read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from zoo.errors import DataError
from zoo.files import locked, sha256_of, write_errors, write_json

FORMAT_VERSION = 1
MARKER = "whole.json"
# Digests of files up to this size are compared at every opening; a larger file is checked by its size.
VERIFY_BYTES = 64 << 20

Arrays = dict[str, "np.ndarray[Any, Any]"]


@contextmanager
def array_writer(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike
) -> Iterator[Callable[[int, np.ndarray[Any, Any]], None]]:
    """Write an array of known shape to a .npy file, some values at a time.

    Plain writes, because a full disk then raises an error; writing to mapped memory would kill the process.

    Args:
        path: the .npy file.
        shape: of the whole array.
        dtype: of the whole array; what is written is converted.

    Yields:
        A function that puts values at a position of the flattened array.
    """
    dtype = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()

        def write(position: int, values: np.ndarray[Any, Any]) -> None:
            file.seek(start + position * dtype.itemsize)
            file.write(np.ascontiguousarray(values, dtype=dtype).data.cast("B"))

        yield write
        file.flush()
        os.fsync(file.fileno())


def write_array(path: Path, values: np.ndarray[Any, Any]) -> None:
    """Write one array to a .npy file."""
    with array_writer(path, values.shape, values.dtype) as write:
        write(0, values)


def open_or_build(folder: Path, source: Mapping[str, str], build: Callable[[Path], None]) -> Arrays:
    """Map the arrays of a cache folder; build the folder first if it is missing, damaged or out of date.

    Two processes may call this at once: one builds, the other waits and finds the result.

    Args:
        folder: the cache; its parent must exist and be writable.
        source: what the arrays are made from, e.g. checksums of the raw files; another source means a new build.
        build: fills an empty folder with .npy files.

    Returns:
        The arrays by file stem, mapped copy-on-write.

    Raises:
        DataError: if the cache cannot be written.
    """
    with locked(folder.with_name(f".{folder.name}.lock"), DataError):
        arrays = open_arrays(folder, source)
        if arrays is not None:
            return arrays
        # This process holds the lock, so leftovers of interrupted builds are in use by no other process.
        for leftover in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            with write_errors(folder, DataError):
                build(work)
                _write_marker(work, source)
                if folder.exists():
                    # Set aside in one step, so that no other process sees half a folder.
                    folder.rename(work / "replaced")
                work.chmod(0o755)
                work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(folder / "replaced", ignore_errors=True)
        arrays = open_arrays(folder, source)
        if arrays is None:
            raise DataError(f"{folder}: the cache just written cannot be read back; check the disk")
        return arrays


def open_arrays(folder: Path, source: Mapping[str, str] | None) -> Arrays | None:
    """Map the arrays of a cache folder if it is whole.

    Args:
        folder: the cache.
        source: what the arrays must have been made from; None accepts any.

    Returns:
        The arrays by file stem, or None if the folder is missing, damaged, of another format or another source.
    """
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if marker["format_version"] != FORMAT_VERSION or (source is not None and marker["source"] != dict(source)):
            return None
        arrays = {}
        for name, entry in marker["files"].items():
            path = folder / Path(name).name
            size = path.stat().st_size
            if size != entry["size"] or (size <= VERIFY_BYTES and sha256_of(path) != entry["sha256"]):
                return None
            arrays[path.stem] = np.load(path, mmap_mode="c", allow_pickle=False)
        return arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # A faulty cache is always rebuilt, never repaired.
        return None


def _write_marker(folder: Path, source: Mapping[str, str]) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.glob("*.npy"))
    }
    write_json(folder / MARKER, {"format_version": FORMAT_VERSION, "source": dict(source), "files": files}, DataError)
