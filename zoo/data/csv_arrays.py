"""Gzipped CSV without a header, read in chunks straight into .npy files."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from zoo.data.array_cache import array_writer
from zoo.errors import DataError

CHUNK_ROWS = 1 << 20

Rows = np.ndarray[Any, Any]


def csv_chunks(
    path: Path, num_rows: int | None, dtype: Literal["int64", "float32"], what: str, limit: int | None = None
) -> Iterator[Rows]:
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


def read_csv(path: Path, num_rows: int | None, dtype: Literal["int64", "float32"], what: str) -> Rows:
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
    chunks = csv_chunks(source, num_rows, "float32", what)
    first = next(chunks)
    num_columns, done = first.shape[1], 0
    with array_writer(target, (num_rows, num_columns), np.float32) as write:
        for rows in itertools.chain([first], chunks):
            if bad := int((~np.isfinite(rows)).sum()):
                raise DataError(f"{source}: holds {bad:,} {what} that are missing, NaN or infinite; get the data again")
            write(done * num_columns, rows)
            done += len(rows)
