"""How the test hub writes things down: rows of its listings, pages and ranges."""

from __future__ import annotations

import contextlib
import hashlib
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import yaml

from tests.hub.repository import Blob, Commit, Repository
from tests.hub.wire import Answer, Request

if TYPE_CHECKING:
    from tests.hub.server import TestHub


def info_of(hub: TestHub, request: Request, repo: Repository, commit: Commit) -> dict[str, Any]:
    card = {}
    if "README.md" in commit.files:
        with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):
            card = front_matter(hub.content(commit.files["README.md"]).decode())
    card = card if isinstance(card, dict) else {}
    tags = [tag for key in ("tags", "library_name", "pipeline_tag") for tag in as_list(card.get(key))]
    for key, name in (("datasets", "dataset"), ("license", "license"), ("base_model", "base_model")):
        tags += [f"{name}:{value}" for value in as_list(card.get(key))]
    return {
        "_id": hashlib.md5(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.id,
        "lastModified": iso(repo.head.date),
        "createdAt": iso(repo.created),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(dict.fromkeys(map(str, tags))),
        **{key: card[key] for key in ("pipeline_tag", "library_name", "model-index") if key in card},
        "cardData": card,
        "siblings": [sibling_row(path, blob, request.flag("blobs")) for path, blob in commit.files.items()],
        "usedStorage": sum(blob.size for blob in commit.files.values()),
    }


def file_row(hub: TestHub, commit: Commit, path: str, folders: dict[str, str], expand: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "directory", "oid": folders.get(path), "size": 0, "path": path}
    if path in commit.files:
        blob = commit.files[path]
        row |= {"type": "file", "oid": blob.blob_id, "size": blob.size}
        if blob.lfs:
            row["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
        if blob.xet_hash and hub.xet:
            row["xetHash"] = blob.xet_hash
        if expand:
            row["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
    if expand:
        last = commit.last_change(path)
        row["lastCommit"] = {"id": last.id, "title": last.title, "date": iso(last.date)}
    return row


def sibling_row(path: str, blob: Blob, blobs: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"rfilename": path}
    if blobs:
        row |= {"size": blob.size, "blobId": blob.blob_id}
        if blob.lfs:
            row["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    return row


def page_of(hub: TestHub, request: Request, rows: list[Any]) -> Answer:
    """One page of a listing, with a link to the next."""
    start = int(request.option("cursor", "0"))
    end = start + min(hub.page_size, int(request.option("limit", "1000")))
    query = urlencode({**request.query, "cursor": [end]}, doseq=True)
    headers = {"Link": f'<{hub.url}{request.path}?{query}>; rel="next"'} if end < len(rows) else {}
    return Answer.json(rows[start:end], headers=headers)


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    """All of `data`, or the one range of it that the request names."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "bytes=-"))
    first, last = (asked[1], asked[2]) if asked else ("", "")
    if not first and not last:
        return Answer(200, data, headers)
    start = int(first) if first else max(len(data) - int(last), 0)
    end = min(int(last), len(data) - 1) if first and last else len(data) - 1
    if start > end:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})


def expanded(request: Request, info: dict[str, Any]) -> dict[str, Any]:
    """The parts of `info` that the request asks for, all of them if it names none."""
    wanted = request.query.get("expand", [])
    return {key: value for key, value in info.items() if not wanted or key in ("_id", "id", *wanted)}


def iso(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{date.microsecond // 1000:03d}Z"


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def front_matter(text: str) -> Any:
    """The YAML between the first two lines of dashes, or None."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None
