"""Safetensors files: named tensors and a text, checked before they are trusted.

The package ``safetensors`` packs and unpacks the bytes. It says nothing about a name that stands twice, accepts any
header below 100 MB and has no digest; this module adds these checks, and lets the caller see the names, shapes and
types of a file before any value of it is read.

Source: the format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from zoo.errors import ZooError
from zoo.files import atomic_write, open_regular, read_errors
from zoo.json_object import parse_json_object

# What a header says of each tensor: its shape and its type.
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_METADATA = "__metadata__"
_MAX_DIMS = 16


@dataclass(frozen=True)
class TensorFile:
    """The content of a file: its tensors, its metadata, and the SHA-256 of the whole file."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], error: type[ZooError]) -> str:
    """Write a safetensors file, whole or not at all; the same tensors always give the same bytes.

    Args:
        path: the file; its folder exists.
        tensors: by name; dense, on any device.
        metadata: text by key; several keys would be stored in any order.
        error: class of the error to raise.

    Returns:
        The SHA-256 of the file.

    Raises:
        error: if it cannot be stored.
    """
    data = _pack(tensors, metadata)
    atomic_write(path, [data], error)
    return hashlib.sha256(data).hexdigest()


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors and over a text."""
    digest = hashlib.sha256(text.encode())
    digest.update(_pack(tensors, {}))
    return digest.hexdigest()


def read_tensors(
    path: Path,
    error: type[ZooError],
    *,
    max_header_bytes: int = 1 << 26,
    check: Callable[[Shapes], None] = lambda shapes: None,
) -> TensorFile:
    """Read a safetensors file.

    Args:
        path: the file.
        error: class of the error to raise.
        max_header_bytes: a longer header is refused.
        check: sees the header before any tensor is read, and raises if it is not what is expected.

    Raises:
        error: if the file cannot be read or is not a whole safetensors file.
    """
    where = f"{path}: damaged, not a whole safetensors file"
    with read_errors(path, error), open_regular(path) as file:
        # The first eight bytes are the length of the header, little end first.
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if length > max_header_bytes:
            raise error(f"{where}: its header claims {length:,} bytes; at most {max_header_bytes:,} are expected")
        header = file.read(length)
        if len(prefix) + len(header) < 8 + length:
            raise error(f"{where}: it ends within its header")
        entries = parse_json_object(header, where=f"{where}: header", error=error, max_bytes=max_header_bytes)
        metadata = entries.pop(_METADATA, {})
        check({name: _shape_and_dtype(name, entry, where, error) for name, entry in entries.items()})
        file.seek(0)
        data = file.read()
    if not data.startswith(prefix + header):
        raise error(f"{path}: changed while it was read")
    try:
        tensors = load(data)
    except SafetensorError as cause:
        # Foreign names stand in the message, so control characters are escaped.
        raise error(f"{where}: {ascii(str(cause))[1:-1]}") from cause
    return TensorFile(tensors, metadata, hashlib.sha256(data).hexdigest())


def _pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    packed, storages = {}, set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        # The package refuses tensors that share memory, so the second one to use a storage is copied.
        storage = plain.untyped_storage().data_ptr()
        packed[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    return save(packed, dict(metadata) or None)


def _shape_and_dtype(name: str, entry: Any, where: str, error: type[ZooError]) -> tuple[tuple[int, ...], torch.dtype]:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [_, _], **rest}:
            is_plain = all(type(size) is int and size >= 0 for size in shape)
            if not rest and code in _DTYPES and is_plain and len(shape) <= _MAX_DIMS:
                return tuple(shape), _DTYPES[code]
    raise error(f"{where}: header: the entry of tensor {name!r} is malformed")
