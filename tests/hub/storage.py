"""Contents of the test hub's files: a folder of files named by their sha256, and a store that the xet client fills."""

from __future__ import annotations

import hashlib
import struct
import time
from pathlib import Path

XET_HEADER_BYTES = XET_ROW_BYTES = 48


class Storage:
    """Contents by sha256 under `root`; whatever a client sent in parts or through xet is turned into such a file."""

    def __init__(self, root: Path) -> None:
        self.contents = root / "contents"
        self.parts = root / "parts"
        self.cas = root / "cas"
        for folder in (self.contents, self.parts, self.cas):
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Keep `data` and return its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        (self.contents / sha256).write_bytes(data)
        return sha256

    def has(self, sha256: str) -> bool:
        return (self.contents / sha256).is_file()

    def size(self, sha256: str) -> int:
        return (self.contents / sha256).stat().st_size

    def get(self, sha256: str, size: int, xet_hash: str = "") -> bytes:
        """The content; a file known to xet alone is rebuilt and kept the first time it is asked for.

        Raises:
            ValueError: if what the xet store gives has another sha256.
        """
        if not self.has(sha256):
            rebuilt = rebuild_from_xet(self.cas, xet_hash, size)
            if self.put(rebuilt) != sha256:
                raise ValueError(f"xet store: {xet_hash} should have sha256 {sha256}")
        return (self.contents / sha256).read_bytes()

    def put_part(self, sha256: str, number: int, data: bytes) -> str:
        """Keep one part of an upload and return its ETag."""
        (self.parts / f"{sha256}.{number}").write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def join_parts(self, sha256: str, etags: dict[int, str]) -> bool:
        """Whether the parts 1, 2, ... are there under these ETags and make up the content; if so, it is kept."""
        data = b""
        for number in range(1, len(etags) + 1):
            part = self.parts / f"{sha256}.{number}"
            if not part.is_file() or hashlib.md5(part.read_bytes()).hexdigest() != etags.get(number):
                return False
            data += part.read_bytes()
        return hashlib.sha256(data).hexdigest() == sha256 and self.put(data) == sha256

    def xet_files(self) -> dict[str, tuple[str, int]]:
        """sha256 to (xet hash, size) of every file the xet client has stored."""
        files: dict[str, tuple[str, int]] = {}
        for shard in sorted((self.cas / "xet" / "xorbs" / "shards").glob("*.mdb")):
            files.update(read_shard(shard.read_bytes()))
        return files


def read_shard(data: bytes) -> dict[str, tuple[str, int]]:
    """The files that a shard lists with their sha256.

    After a header, each file has a row (hash, flags, number of segments), its segments, as many rows of verification
    if flag bit 31 is set, and a row with the sha256 if bit 30 is; a hash of 0xFF bytes ends the list.
    """
    files = {}
    at = XET_HEADER_BYTES
    while data[at : at + 32] != b"\xff" * 32:
        flags, num_segments = struct.unpack_from("<II", data, at + 32)
        xet_hash = _hash_text(data, at)
        at += XET_ROW_BYTES
        size = sum(struct.unpack_from("<I", data, at + i * XET_ROW_BYTES + 36)[0] for i in range(num_segments))
        at += num_segments * XET_ROW_BYTES * (2 if flags >> 31 else 1)
        if flags >> 30 & 1:
            files[_hash_text(data, at)] = (xet_hash, size)
            at += XET_ROW_BYTES
    return files


def _hash_text(data: bytes, at: int) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", data, at))


def rebuild_from_xet(cas: Path, xet_hash: str, size: int) -> bytes:
    """The content of a file in the xet store, for clients that do not speak xet."""
    # Not above: when it is imported, hf_xet opens its log under HF_HOME, which the fixtures set.
    import hf_xet

    group = hf_xet.XetSession().new_download_stream_group(
        endpoint=f"local://{cas}", token="-", token_expiry_unix_secs=int(time.time()) + 3600
    )
    data = b"".join(group.download_stream(hf_xet.XetFileInfo(xet_hash, size)))
    group.finish()
    return data
