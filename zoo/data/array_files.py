"""Folders of .npy files: made from gzipped CSV or .npz in chunks, whole or absent, and mapped to open at once."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike
from tqdm import tqdm

from zoo.data.download import check_free_space
from zoo.errors import DataError
from zoo.files import locked, sha256_of, write_errors, write_json

FORMAT_VERSION = 1
MARKER = "whole.json"
# Digests of files up to this size are compared at every opening; a larger file is checked by its size.
VERIFY_BYTES = 64 << 20
CHUNK_ROWS = 1 << 20

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


def csv_chunks(
    path: Path, num_rows: int | None, dtype: Literal["int64", "float32"], what: str, limit: int | None = None
) -> Iterator[np.ndarray[Any, Any]]:
    """Read a file chunk by chunk, with a progress bar on stderr.

    Args:
        path: gzipped CSV file.
        num_rows: expected number of rows; None if unknown.
        dtype: of the values; an empty field is NaN and needs float32.
        what: the rows' name in the progress bar and in messages.
        limit: values must lie in 0 .. limit - 1; None for any value.

    Yields:
        [n, columns] arrays of consecutive rows.

    Raises:
        DataError: if the file is missing, damaged, of another length or holds other values.
    """
    import pandas as pd

    done = 0
    bar = tqdm(total=num_rows, desc=f"reading {what}", unit=" rows", unit_scale=True, disable=None, leave=False)
    try:
        with bar, pd.read_csv(path, compression="gzip", header=None, dtype=dtype, chunksize=CHUNK_ROWS) as reader:
            for frame in reader:
                rows = frame.to_numpy()
                if limit is not None and (bad := int(((rows < 0) | (rows >= limit)).sum())):
                    place = f"rows {done:,} to {done + len(rows) - 1:,}"
                    raise DataError(f"{path}: {place} hold {bad:,} node ids outside 0 .. {limit - 1:,}")
                done += len(rows)
                bar.update(len(rows))
                yield rows
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; remove the folder and get the data set again") from error
    except (OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a whole gzipped CSV file of {what} ({reason}); get the data set again") from error
    if num_rows is not None and done != num_rows:
        raise DataError(f"{path}: holds {done:,} rows, expected {num_rows:,}; get the data set again")


def read_csv(path: Path, num_rows: int | None, dtype: Literal["int64", "float32"], what: str) -> np.ndarray[Any, Any]:
    """Read a whole file into memory: [rows, columns].

    Raises:
        DataError: as for ``csv_chunks``.
    """
    return np.concatenate(list(csv_chunks(path, num_rows, dtype, what)))


def read_count(path: Path, what: str) -> int:
    """Read a file that holds one positive number.

    Raises:
        DataError: if it does not.
    """
    values = read_csv(path, 1, "int64", what)
    if values.shape != (1, 1) or values[0, 0] < 1:
        raise DataError(f"{path}: expected one positive number of {what}")
    return int(values[0, 0])


def count_columns(path: Path) -> int:
    """Number of columns in the first row.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            return file.readline().count(",") + 1
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path}: not a whole gzipped CSV file ({error}); get the data set again") from error


def convert_edges(source: Path, target: Path, num_edges: int, num_nodes: int) -> None:
    """Turn rows of node pairs into a [2, E] int32 .npy file.

    Raises:
        DataError: if the rows are not pairs of node ids.
    """
    done = 0
    with array_writer(target, (2, num_edges), np.int32) as write:
        for rows in csv_chunks(source, num_edges, "int64", "edges", limit=num_nodes):
            if rows.shape[1] != 2 or done + len(rows) > num_edges:
                raise DataError(f"{source}: expected {num_edges:,} rows of two node ids; get the data set again")
            write(done, rows[:, 0])
            write(num_edges + done, rows[:, 1])
            done += len(rows)


def convert_features(source: Path, target: Path, num_rows: int, what: str) -> None:
    """Turn rows of numbers into a [rows, columns] float32 .npy file.

    Raises:
        DataError: if a value is missing or not finite.
    """
    num_columns, done = count_columns(source), 0
    with array_writer(target, (num_rows, num_columns), np.float32) as write:
        for rows in csv_chunks(source, num_rows, "float32", what):
            if bad := int((~np.isfinite(rows)).sum()):
                raise DataError(f"{source}: holds {bad:,} {what} that are missing, NaN or infinite; get the data again")
            write(done * num_columns, rows)
            done += len(rows)


def npz_chunks(path: Path, name: str, what: str) -> Iterator[tuple[tuple[int, ...], int, np.ndarray[Any, Any]]]:
    """Read an array of a .npz file chunk by chunk, with a progress bar on stderr.

    Args:
        path: the .npz file, compressed or not.
        name: of the array.
        what: the values' name in the progress bar and in messages.

    Yields:
        The shape of the whole array, a position in it as if it were flattened, and the values from there on. An array
        [2, n] that is stored column by column comes as two rows in turn.

    Raises:
        DataError: if the file is missing, damaged, has no such array, or one that cannot be read in this way.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            major, _ = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(file)
            if dtype.kind not in "iuf" or (by_columns and len(shape) > 1 and shape[0] != 2 and shape[1] != 1):
                raise DataError(f"{path}: {name} must hold numbers, row by row; get the data set again")
            size, done = math.prod(shape), 0
            if not size:
                raise DataError(f"{path}: {name} is empty; get the data set again")
            bar = tqdm(total=size, desc=f"reading {what}", unit=" values", unit_scale=True, disable=None, leave=False)
            with bar:
                while done < size:
                    count = min(CHUNK_ROWS * 16, size - done)
                    buffer = file.read(count * dtype.itemsize)
                    values = np.frombuffer(buffer, dtype)
                    if len(values) != count:
                        raise EOFError(f"{name} ends early")
                    if by_columns and len(shape) > 1 and shape[0] == 2:
                        yield shape, done // 2, values[0::2]
                        yield shape, size // 2 + done // 2, values[1::2]
                    else:
                        yield shape, done, values
                    done += count
                    bar.update(count)
    except KeyError as error:
        raise DataError(f"{path}: the array {name!r} is missing; get the data set again") from error
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, ValueError) as error:
        raise DataError(f"{path}: not a whole .npz file of {what} ({error}); get the data set again") from error


def read_npz(path: Path, name: str) -> np.ndarray[Any, Any]:
    """Read an array of a .npz file into memory, whatever else the file holds.

    Raises:
        DataError: as for ``npz_chunks``.
    """
    chunks = list(npz_chunks(path, name, name))
    return np.concatenate([values for _, _, values in chunks]).reshape(chunks[0][0])


def convert_npz(
    source: Path, name: str, target: Path, shape: tuple[int, int | None], dtype: DTypeLike, limit: int | None = None
) -> None:
    """Copy a 2-D array of a .npz file into a .npy file.

    Args:
        source: the .npz file.
        name: of the array.
        target: the .npy file.
        shape: that the array must have; None: any number of columns.
        dtype: of the copy.
        limit: values must lie in 0 .. limit - 1; None: they must be finite.

    Raises:
        DataError: if the array has another shape or other values.
    """
    chunks = npz_chunks(source, name, name)
    first = next(chunks)
    found = first[0]
    if len(found) != 2 or found[0] != shape[0] or shape[1] not in (None, found[1]):
        expected = ", ".join("F" if size is None else f"{size:,}" for size in shape)
        raise DataError(f"{source}: {name} is {list(found)}, expected [{expected}]; get the data set again")
    check_free_space(target.parent, math.prod(found) * np.dtype(dtype).itemsize, f"the converted {name}")
    with array_writer(target, found, dtype) as write:
        for _, position, values in itertools.chain([first], chunks):
            wrong = ~np.isfinite(values) if limit is None else (values < 0) | (values >= limit)
            if bad := int(wrong.sum()):
                expected = "that are NaN or infinite" if limit is None else f"outside 0 .. {limit - 1:,}"
                raise DataError(f"{source}: {name} holds {bad:,} values {expected}; get the data set again")
            write(position, values)
