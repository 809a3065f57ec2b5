"""Tensors and the JSON tree that goes with them, saved in one file under one digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.errors import RunError
from zoo.json_object import parse_json_object
from zoo.tensor_file import TensorFile, digest_of, is_packed, read_tensors, unpacked, write_packed

FORMAT = 2
# Of files of format 1, which are small; those of format 2 have a header of a few lines.
_MAX_TREE_BYTES = 1 << 26


class NewerError(RunError):
    """A file of a format that only a later version knows."""


@dataclass(frozen=True)
class Saved:
    """Tensors, the JSON tree that was saved with them, and the SHA-256 over both."""

    tensors: dict[str, Tensor]
    tree: dict[str, Any]
    sha256: str


def write_saved(path: Path, tensors: Mapping[str, Tensor], tree: Mapping[str, Any]) -> str:
    """Save tensors and a tree, whole or not at all.

    Returns:
        The SHA-256 over both.

    Raises:
        RunError: if they cannot be stored.
    """
    return write_packed(path, tensors, {"format": FORMAT, **tree}, RunError)


def read_saved(path: Path) -> Saved:
    """Tensors and a tree that were saved, also by earlier versions.

    Raises:
        RunError: if the file is missing or damaged.
        NewerError: if a later version wrote it.
    """
    file = read_tensors(path, RunError)
    if is_packed(file):
        tensors, tree = unpacked(file, str(path), RunError)
        saved = Saved(tensors, tree, file.sha256_before_last)
    else:
        saved = _read_format_1(path, file)
    if saved.tree.pop("format") > FORMAT:
        raise NewerError(f"{path}: written by a newer version of revgnn-zoo; continue the run with that one")
    return saved


def _read_format_1(path: Path, file: TensorFile) -> Saved:
    """A file with a tensor for each name, and the tree and the digest in its metadata."""
    where = f"{path}: damaged: metadata"
    envelope = parse_json_object(
        file.metadata.get("zoo", "").encode(), where=where, error=RunError, max_bytes=_MAX_TREE_BYTES
    )
    text, digest = envelope.get("tree"), envelope.get("sha256")
    if not isinstance(text, str) or digest_of(file.tensors, text) != digest:
        raise RunError(f"{path}: damaged: its content does not match its SHA-256")
    tree = parse_json_object(text.encode(), where=where, error=RunError, max_bytes=_MAX_TREE_BYTES)
    return Saved(file.tensors, tree, str(digest))
