"""Folders of .npy files: made from gzipped CSV or .npz in chunks, whole or absent, and mapped to open at once."""

from __future__ import annotations

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
from typing import IO, Any, Literal

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
# The shape of a whole array, a position in it as if it were flattened, and the values from there on.
Blocks = Iterator[tuple[tuple[int, ...], int, "np.ndarray[Any, Any]"]]


@contextmanager
def array_writer(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike
) -> Iterator[Callable[[int, np.ndarray[Any, Any]], None]]:
    """Write an array of known shape to a .npy file, some values at a time, which are converted to its type.

    Plain writes, because a full disk then raises an error; writing to mapped memory would kill the process.

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
    """Map the .npy files of a cache folder copy-on-write, by stem; ``build`` them in an empty folder first if need be.

    They are built if the folder is missing, damaged or was made from another ``source``, e.g. other checksums of raw
    files. Two processes may call this at once: one builds, the other waits and finds the result. The parent of the
    folder must exist.

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
    """Map the arrays of a cache folder if it is whole and made from ``source``; None accepts any.

    Returns:
        The arrays by file stem, or None if the folder is missing, damaged, of another format or source.
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
    path: Path, num_rows: int | None, dtype: Literal["int64", "float32"], what: str
) -> Iterator[np.ndarray[Any, Any]]:
    """Read a gzipped CSV file as [n, columns] consecutive rows, with a progress bar on stderr.

    An empty field is NaN and needs float32. ``num_rows`` are expected, if known; ``what`` is their name in messages.

    Raises:
        DataError: if the file is missing, damaged or of another length.
    """
    import pandas as pd

    done = 0
    bar = tqdm(total=num_rows, desc=f"reading {what}", unit=" rows", unit_scale=True, disable=None, leave=False)
    try:
        with bar, pd.read_csv(path, compression="gzip", header=None, dtype=dtype, chunksize=CHUNK_ROWS) as reader:
            for frame in reader:
                done += len(frame)
                if num_rows is not None and done > num_rows:
                    break
                bar.update(len(frame))
                yield frame.to_numpy()
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


def csv_blocks(
    path: Path, num_rows: int, dtype: Literal["int64", "float32"], what: str, *, transposed: bool = False
) -> Blocks:
    """Read a file as the blocks of an array [num_rows, columns], or [columns, num_rows] if it is ``transposed``.

    Raises:
        DataError: as for ``csv_chunks``.
    """
    done = 0
    for rows in csv_chunks(path, num_rows, dtype, what):
        num_columns = rows.shape[1]
        if transposed:
            for column in range(num_columns):
                yield (num_columns, num_rows), column * num_rows + done, rows[:, column]
        else:
            yield (num_rows, num_columns), done * num_columns, rows
        done += len(rows)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape of an array in .npy format, True if it is stored column by column, and its type."""
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return read(file)


def npz_blocks(path: Path, name: str) -> Blocks:
    """Read an array of a .npz file as blocks, with a progress bar on stderr.

    Args:
        path: the .npz file, compressed or not.
        name: of the array. If it is [2, n] and stored column by column, blocks of the two rows come in turn.

    Raises:
        DataError: if the file is missing, damaged, has no such array, or one that cannot be read in this way.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            shape, by_columns, dtype = npy_header(file)
            if dtype.kind not in "iuf" or (by_columns and len(shape) > 1 and shape[0] != 2 and shape[1] != 1):
                raise DataError(f"{path}: {name} must hold numbers, row by row; get the data set again")
            size, done = math.prod(shape), 0
            if not size:
                raise DataError(f"{path}: {name} is empty; get the data set again")
            bar = tqdm(total=size, desc=f"reading {name}", unit=" values", unit_scale=True, disable=None, leave=False)
            with bar:
                while done < size:
                    count = min(CHUNK_ROWS * 16, size - done)
                    values = np.frombuffer(file.read(count * dtype.itemsize), dtype)
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
        raise DataError(f"{path}: not a whole .npz file of {name} ({error}); get the data set again") from error


def read_npz(path: Path, name: str) -> np.ndarray[Any, Any]:
    """Read an array of a .npz file into memory, whatever else the file holds.

    Raises:
        DataError: as for ``npz_blocks``.
    """
    blocks = list(npz_blocks(path, name))
    return np.concatenate([values for _, _, values in blocks]).reshape(blocks[0][0])


def convert(
    blocks: Blocks,
    where: str,
    target: Path,
    shape: tuple[int, int | None],
    dtype: DTypeLike,
    limit: int | None = None,
) -> None:
    """Write the blocks of a 2-D array to a .npy file.

    Args:
        blocks: see ``Blocks``; at least one.
        where: the file they come from and the name of the array, for messages.
        target: the .npy file.
        shape: that the array must have; None: any number of columns.
        dtype: of the copy.
        limit: values must lie in 0 .. limit - 1; None: they must be finite.

    Raises:
        DataError: if the array has another shape or other values, or the disk is too small.
    """
    first = next(blocks)
    found = first[0]
    if len(found) != 2 or found[0] != shape[0] or shape[1] not in (None, found[1]):
        expected = ", ".join("F" if size is None else f"{size:,}" for size in shape)
        raise DataError(f"{where} is {list(found)}, expected [{expected}]; get the data set again")
    check_free_space(target.parent, math.prod(found) * np.dtype(dtype).itemsize, f"the converted {target.stem}")
    with array_writer(target, found, dtype) as write:
        for _, position, values in itertools.chain([first], blocks):
            wrong = ~np.isfinite(values) if limit is None else (values < 0) | (values >= limit)
            if bad := int(wrong.sum()):
                expected = "that are missing, NaN or infinite" if limit is None else f"outside 0 .. {limit - 1:,}"
                raise DataError(f"{where} holds {bad:,} values {expected}; get the data set again")
            write(position, values)
