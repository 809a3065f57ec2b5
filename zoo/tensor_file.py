"""Safetensors files: named tensors and a text, checked before they are trusted.

Names, shapes and types of a file are known before any value of it is read; a name that stands twice is refused; the
digest belongs to exactly the bytes that were used. The package ``safetensors``, with which the tests compare, does none
of this, and it refuses headers above 100 MB, which a model of 50,000 layers needs.

A run saves tens of thousands of small tensors again and again. :func:`write_saved` stores them one after another as
one tensor for each type, with their names and a JSON tree in an index, which takes a third of the time.

Source: the format, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import RunError, ZooError
from zoo.files import atomic_write, open_regular, read_errors
from zoo.json_object import parse_json_object

# The entries of a header for each tensor: its shape and its type.
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
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
# Of what a run saves; format 1 had a header of all tensors and is still read.
FORMAT = 2
_INDEX, _DIGEST = "index", "sha256"
_MAX_DIMS = 16
# The index of a state of 100,000 layers has a quarter of this.
_MAX_INDEX_BYTES = 1 << 31
# Of files of format 1, which are small.
_MAX_TREE_BYTES = 1 << 26
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorFile:
    """Tensors and texts of a file by name, the SHA-256 of its bytes, and that of those before its last tensor."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]
    sha256: str
    sha256_before_last: str


class NewerError(RunError):
    """A file of a format that only a later version knows."""


@dataclass(frozen=True)
class Saved:
    """Tensors, the JSON tree that was saved with them, and the SHA-256 over both."""

    tensors: dict[str, Tensor]
    tree: dict[str, Any]
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], error: type[ZooError]) -> str:
    """Write a safetensors file of dense tensors, whole or not at all; the same tensors always give the same bytes.

    Returns:
        The SHA-256 of the file.

    Raises:
        error: if it cannot be stored.
    """
    digest = hashlib.sha256()
    atomic_write(path, _digested(_encode(tensors, metadata), digest), error)
    return digest.hexdigest()


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors and over a text."""
    digest = hashlib.sha256(text.encode())
    for chunk in _encode(tensors, {}):
        digest.update(chunk)
    return digest.hexdigest()


def first_nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity; None if there is none."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if all(bool(torch.isfinite(batch).all()) for batch in _batches(floating.values())):
        return None
    return next(name for name, tensor in floating.items() if not bool(torch.isfinite(tensor).all()))


def write_saved(path: Path, tensors: Mapping[str, Tensor], tree: Mapping[str, Any]) -> str:
    """Write tensors and a JSON tree under one digest, whole or not at all, as one large tensor for each type.

    Returns:
        The SHA-256 of all bytes but the last 32, which are that digest.

    Raises:
        RunError: if it cannot be stored.
        ValueError: if a number of the tree is not finite.
    """
    names = _in_order(tensors)
    groups = {c: list(group) for c, group in itertools.groupby(names, lambda name: _CODES[tensors[name].dtype])}
    listed = {code: [[name, list(tensors[name].shape)] for name in group] for code, group in groups.items()}
    index = json.dumps({"tree": {"format": FORMAT, **tree}, "tensors": listed}, allow_nan=False).encode()
    # Padded, so that the tensors behind it are aligned.
    index += b" " * (-len(index) % 8)
    digest = hashlib.sha256()
    entries = [(_INDEX, torch.uint8, [len(index)])]
    entries += [(c, _DTYPES[c], [sum(tensors[name].numel() for name in group)]) for c, group in groups.items()]
    entries += [(_DIGEST, torch.uint8, [digest.digest_size])]
    body = _bytes_of(tensors[name] for name in names)
    content: Iterator[bytes | memoryview] = itertools.chain(_header(entries, {}), [index], body)
    # The last chunk is made when all others have passed through the digest.
    last = (digest.digest() for _ in range(1))
    atomic_write(path, itertools.chain(_digested(content, digest), last), RunError)
    return digest.hexdigest()


def read_saved(path: Path) -> Saved:
    """Tensors and a tree that were saved by :func:`write_saved`, also that of earlier versions.

    Raises:
        RunError: if the file is missing or damaged.
        NewerError: if a later version wrote it.
    """
    file = read_tensors(path, RunError)
    saved = _unpack(path, file) if _INDEX in file.tensors else _of_format_1(path, file)
    if saved.tree.pop("format") > FORMAT:
        raise NewerError(f"{path}: written by a newer version of revgnn-zoo; continue the run with that one")
    return saved


def _unpack(path: Path, file: TensorFile) -> Saved:
    groups, where = dict(file.tensors), f"{path}: damaged"
    try:
        if groups.pop(_DIGEST).numpy().tobytes().hex() != file.sha256_before_last:
            raise RunError(f"{where}: its content does not match its SHA-256")
        raw = groups.pop(_INDEX).numpy().tobytes()
        index = parse_json_object(raw, where=f"{where}: index", error=RunError, max_bytes=_MAX_INDEX_BYTES)
        tensors: dict[str, Tensor] = {}
        for code, listed in index["tensors"].items():
            parts = torch.split(groups[code], [math.prod(shape) for _, shape in listed])
            # Copies, since parameters that are views of one tensor would keep all of it alive.
            tensors |= {name: part.clone().view(shape) for (name, shape), part in zip(listed, parts, strict=True)}
        return Saved(tensors, dict(index["tree"]), file.sha256_before_last)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as cause:
        raise RunError(f"{where}: its index does not fit its tensors") from cause


def _of_format_1(path: Path, file: TensorFile) -> Saved:
    """A file with a tensor for each name, and the tree and the digest in its metadata."""
    where = f"{path}: damaged: metadata"
    raw = file.metadata.get("zoo", "").encode()
    envelope = parse_json_object(raw, where=where, error=RunError, max_bytes=_MAX_TREE_BYTES)
    text, digest = envelope.get("tree"), envelope.get("sha256")
    if not isinstance(text, str) or digest_of(file.tensors, text) != digest:
        raise RunError(f"{path}: damaged: its content does not match its SHA-256")
    tree = parse_json_object(text.encode(), where=where, error=RunError, max_bytes=_MAX_TREE_BYTES)
    return Saved(file.tensors, tree, str(digest))


def read_tensors(
    path: Path,
    error: type[ZooError],
    *,
    max_header_bytes: int = 1 << 26,
    check: Callable[[Shapes], None] = lambda shapes: None,
) -> TensorFile:
    """Read a safetensors file, whose header has at most ``max_header_bytes``.

    ``check`` sees the header before any tensor is read, and raises if it is not what is expected.

    Raises:
        error: if the file cannot be read or is not a whole safetensors file.
    """
    where = f"{path}: damaged, not a whole safetensors file"
    digest, before = hashlib.sha256(), ""
    with read_errors(path, error), open_regular(path) as file:
        shapes, metadata = _read_header(file, where, error, max_header_bytes, digest.update)
        check(shapes)
        tensors = {}
        for name, (shape, dtype) in shapes.items():
            tensors[name] = torch.empty(shape, dtype=dtype)
            before = digest.hexdigest() if len(tensors) == len(shapes) else before
            for view in _bytes_of([tensors[name]]):
                if file.readinto(view) != len(view):
                    raise error(f"{path}: changed while it was read")
                digest.update(view)
    return TensorFile(tensors, metadata, digest.hexdigest(), before)


def _encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    names = _in_order(tensors)
    yield from _header([(name, tensors[name].dtype, list(tensors[name].shape)) for name in names], metadata)
    yield from _bytes_of(tensors[name] for name in names)


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names in the order of a file: wide types first, which keeps every tensor aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), _CODES[tensors[name].dtype], name))


def _header(entries: list[tuple[str, torch.dtype, list[int]]], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes before the tensors: the length of the header, little end first, and the header."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    start = 0
    for name, dtype, shape in entries:
        stop = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text


def _bytes_of(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """The memory of tensors one after another; a large contiguous one on the CPU is not copied."""
    for batch in _batches(tensors):
        array: Any = batch.cpu().view(torch.uint8).numpy()
        yield memoryview(array)


def _batches(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Flat tensors of the same values, many small ones joined: every copy and every write to a file has its cost."""
    batch: list[Tensor] = []
    num_bytes = 0
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        if batch and (num_bytes > _BATCH_BYTES or (flat.dtype, flat.device) != (batch[0].dtype, batch[0].device)):
            yield torch.cat(batch) if len(batch) > 1 else batch[0]
            batch, num_bytes = [], 0
        batch += [flat] if len(flat) else []
        num_bytes += flat.nbytes
    if batch:
        yield torch.cat(batch) if len(batch) > 1 else batch[0]


def _digested(chunks: Iterable[bytes | memoryview], digest: hashlib._Hash) -> Iterator[bytes | memoryview]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _read_header(
    file: io.BufferedReader,
    where: str,
    error: type[ZooError],
    max_header_bytes: int,
    update: Callable[[bytes], None],
) -> tuple[Shapes, Mapping[str, str]]:
    """Shapes in the order of the data, and the metadata; every byte behind the header belongs to one tensor."""
    num_bytes = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if length > max_header_bytes:
        raise error(f"{where}: its header claims {length:,} bytes; at most {max_header_bytes:,} are expected")
    raw = file.read(length)
    if len(prefix) + len(raw) < 8 + length or not length:
        raise error(f"{where}: it ends within its header")
    update(prefix + raw)
    entries = parse_json_object(raw, where=f"{where}: header", error=error, max_bytes=max_header_bytes)
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise error(f"{where}: header: {_METADATA}: expected a string for each key")
    places = sorted((_place(name, entry, where, error), name) for name, entry in entries.items())
    position = 0
    for (start, stop, _, _), name in places:
        if start != position:
            raise error(f"{where}: header: invalid offset for tensor {name!r}: it overlaps another or leaves a gap")
        position = stop
    if 8 + length + position != num_bytes:
        raise error(f"{where}: its header describes {8 + length + position:,} bytes, the file has {num_bytes:,}")
    return {name: (shape, _DTYPES[code]) for (_, _, shape, code), name in places}, metadata


def _place(name: str, entry: Any, where: str, error: type[ZooError]) -> tuple[int, int, tuple[int, ...], str]:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [start, stop], **rest}:
            is_known = not rest and code in _DTYPES and len(shape) <= _MAX_DIMS
            is_plain = all(type(size) is int and 0 <= size < 1 << 63 for size in (*shape, start, stop))
            # The product of Python's integers is exact and cannot wrap around to a harmless size.
            if is_known and is_plain and stop - start == math.prod(shape) * _DTYPES[code].itemsize:
                return start, stop, tuple(shape), code
    raise error(f"{where}: header: the entry of tensor {name!r} is malformed")
