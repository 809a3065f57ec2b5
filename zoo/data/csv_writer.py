"""Numbers as gzipped CSV, quickly and with the same bytes for the same numbers."""

from __future__ import annotations

import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CHUNK_ROWS = 1 << 18
# No name and no time in the header: the bytes depend on the content alone.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_MILLI = np.frombuffer(b"".join(b"%.3f," % (value / 1000) for value in range(1001)), np.uint8).reshape(1001, 6)


class GzipWriter:
    """A gzip file whose bytes depend only on what is written; compresses in a thread of its own.

    Args:
        path: the file.
        level: of the compression, 1 .. 9.
    """

    def __init__(self, path: Path, level: int) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._file.write(_GZIP_HEADER)
        self._compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
        self._crc = self._size = 0
        # zlib works without the interpreter lock, so the next rows are made while these are compressed.
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def write(self, data: bytes) -> None:
        """Append data; an error of the previous write is raised here."""
        self._wait()
        self._pending = self._pool.submit(self._append, data)

    def _append(self, data: bytes) -> None:
        self._crc, self._size = zlib.crc32(data, self._crc), self._size + len(data)
        self._file.write(self._compressor.compress(data))

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def __enter__(self) -> GzipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait()
            self._file.write(self._compressor.flush())
            self._file.write(self._crc.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little"))
        finally:
            self._pool.shutdown()
            self._file.close()


def csv_ints(values: Array) -> bytes:
    """Format whole numbers.

    Args:
        values: [rows, columns], none negative.

    Returns:
        One line per row, without a header.
    """
    values = np.ascontiguousarray(values, dtype=np.int64)
    width = len(str(max(int(values.max(initial=0)), 1)))
    text = np.empty((*values.shape, width + 1), np.uint8)
    keep = np.ones(text.shape, bool)
    rest = values
    for i in range(width - 1, -1, -1):
        rest, digit = np.divmod(rest, 10)
        text[..., i] = digit + ord("0")
        # Leading zeros go, the last digit stays.
        keep[..., i] = True if i == width - 1 else values >= 10 ** (width - 1 - i)
    text[..., width] = ord(",")
    text[:, -1, width] = ord("\n")
    return text[keep].tobytes()


def csv_milli(values: Array) -> bytes:
    """Format thousandths with three decimals.

    Args:
        values: [rows, columns] whole numbers in 0 .. 1000.

    Returns:
        One line per row, "0.001,...", without a header.
    """
    text = _MILLI[values].reshape(len(values), -1)
    text[:, -1] = ord("\n")
    return text.tobytes()


def write_ints(path: Path, values: Array, level: int = 9) -> None:
    """Write whole numbers, one row per line; a vector becomes one column."""
    values = values.reshape(len(values), -1)
    with GzipWriter(path, level) as writer:
        for start in range(0, len(values), CHUNK_ROWS):
            writer.write(csv_ints(values[start : start + CHUNK_ROWS]))


def write_floats(path: Path, values: Array, level: int = 6) -> None:
    """Write numbers with six decimals, one row per line."""
    with GzipWriter(path, level) as writer:
        for start in range(0, len(values), CHUNK_ROWS):
            lines = (",".join(f"{value:.6f}" for value in row) for row in values[start : start + CHUNK_ROWS].tolist())
            writer.write(("\n".join(lines) + "\n").encode("ascii"))
