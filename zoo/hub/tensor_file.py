"""The safetensors format, read as if an enemy had written it, and written one tensor at a time.

A file is eight bytes of header length, a JSON header, and the bytes of the tensors without gaps. Reading it here, in
one pass over one open file, allows what a library call does not: names, types and shapes are compared with what is
expected before a byte of a tensor is read, a name that stands twice is refused, and the digest belongs to exactly the
bytes that were used.

Source: the format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.files import atomic_write, open_regular
from zoo.json_object import parse_json_object

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_METADATA = "__metadata__"
_MAX_DIMS = 16


class TensorFileError(Exception):
    """A file that is not a whole safetensors file; the message says why."""


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor: its type, its shape and its place among the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """The header of a file, in the order of the data."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class TensorFile:
    """What was read: the tensors, the metadata, and the SHA-256 of the file."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], error: type[ZooError]) -> str:
    """Write a safetensors file, whole or not at all; the same tensors always give the same bytes.

    Args:
        path: the file; its folder exists.
        tensors: by name; dense, on any device.
        metadata: free text by key.
        error: class of the error to raise.

    Returns:
        The SHA-256 of the file.

    Raises:
        error: if it cannot be stored.
    """
    digest = hashlib.sha256()

    def chunks() -> Iterator[bytes | memoryview]:
        for chunk in _encode(tensors, metadata):
            digest.update(chunk)
            yield chunk

    atomic_write(path, chunks(), error)
    return digest.hexdigest()


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors and over a text."""
    digest = hashlib.sha256(text.encode())
    for chunk in _encode(tensors, {}):
        digest.update(chunk)
    return digest.hexdigest()


def read_tensors(
    path: Path, *, max_header_bytes: int = 1 << 26, check: Callable[[Header], None] = lambda header: None
) -> TensorFile:
    """Read a safetensors file.

    Args:
        path: the file.
        max_header_bytes: a longer header is refused.
        check: sees the header before any tensor is read, and raises if it is not what is expected.

    Raises:
        TensorFileError: if the file is not a whole safetensors file.
        OSError: if it cannot be read or is not a regular file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        header = _read_header(file, max_header_bytes, digest.update)
        check(header)
        tensors = {}
        for name, info in header.tensors.items():
            data = torch.empty(info.stop - info.start, dtype=torch.uint8)
            view = _bytes_of(data)
            if file.readinto(view) != len(view):
                raise TensorFileError("the file became shorter while it was read")
            digest.update(view)
            tensors[name] = (data.view(info.dtype) if len(view) else data.to(info.dtype)).reshape(info.shape)
    return TensorFile(tensors, header.metadata, digest.hexdigest())


def _encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    # Wide types first keeps every tensor aligned; the name decides the rest of the order.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        code, shape = _CODES[tensor.dtype], list(tensor.shape)
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little")
    yield header
    for name in names:
        if tensors[name].numel():
            yield _bytes_of(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8))


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a [n] uint8 tensor, without a copy."""
    array: Any = tensor.numpy()
    return memoryview(array)


def _read_header(file: io.BufferedReader, max_header_bytes: int, update: Callable[[bytes], None]) -> Header:
    file_bytes = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > file_bytes - 8:
        raise TensorFileError(f"cut short, or something else: {file_bytes:,} bytes cannot hold the header")
    if length > max_header_bytes:
        raise TensorFileError(f"its header has {length:,} bytes; at most {max_header_bytes:,} are expected")
    raw = file.read(length)
    update(prefix)
    update(raw)
    entries = parse_json_object(raw, where="header", error=TensorFileError, max_bytes=max_header_bytes)
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TensorFileError(f"header: {_METADATA} must hold text only")
    tensors = [(name, _entry(name, entry)) for name, entry in entries.items()]
    tensors.sort(key=lambda item: (item[1].start, item[1].stop))
    position = 0
    for name, info in tensors:
        if info.start != position:
            raise TensorFileError(f"header: the bytes of tensor {name!r} overlap others or leave a gap")
        position = info.stop
    if 8 + length + position != file_bytes:
        raise TensorFileError(f"its header describes {8 + length + position:,} bytes, the file has {file_bytes:,}")
    return Header(dict(tensors), metadata)


def _entry(name: str, entry: Any) -> TensorInfo:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [start, stop], **rest}:
            sizes = [*shape, start, stop]
            whole = all(type(size) is int and 0 <= size < 2**63 for size in sizes)
            if not rest and whole and code in _DTYPES and len(shape) <= _MAX_DIMS:
                dtype = _DTYPES[code]
                # math.prod is exact: no product can wrap around to a harmless size.
                if stop - start == math.prod(shape) * dtype.itemsize:
                    return TensorInfo(dtype, tuple(shape), start, stop)
    raise TensorFileError(f"header: the entry of tensor {name!r} is malformed")
