"""Repositories of the test hub: the objects and references of git, kept in memory, with the ids that git would give."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timezone

GITATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in ("bin", "ckpt", "h5", "npy", "npz", "onnx", "parquet", "pickle", "pkl", "pt", "pth", "safetensors")
)


def git_id(kind: str, data: bytes) -> str:
    """The id git gives an object: the sha1 of its kind, size and content."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file: what git stores (the text itself, or the pointer of an LFS file) and what a download gives."""

    sha256: str
    size: int
    blob_id: str
    pointer_size: int = 0
    xet_hash: str = ""

    @property
    def lfs(self) -> bool:
        return self.pointer_size > 0

    @classmethod
    def regular(cls, data: bytes) -> Blob:
        return cls(hashlib.sha256(data).hexdigest(), len(data), git_id("blob", data))

    @classmethod
    def large(cls, sha256: str, size: int, xet_hash: str = "") -> Blob:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(sha256, size, git_id("blob", pointer), len(pointer), xet_hash)


Files = dict[str, Blob]


@dataclass(frozen=True)
class Commit:
    id: str
    parent: Commit | None
    files: Files
    title: str
    message: str
    author: str
    date: datetime

    def history(self) -> list[Commit]:
        """This commit and its ancestors, newest first."""
        commits = [self]
        while commits[-1].parent is not None:
            commits.append(commits[-1].parent)
        return commits

    def last_change(self, path: str) -> Commit:
        """The commit that gave `path` (a file or a folder) its present content."""

        def content(commit: Commit) -> Files:
            return {p: b for p, b in commit.files.items() if p == path or p.startswith(f"{path}/")}

        return next(c for c in self.history() if c.parent is None or content(c.parent) != content(self))


def tree_ids(files: Files) -> dict[str, str]:
    """The git tree id of every folder; the root is ""."""
    folders: dict[str, list[tuple[bytes, bytes]]] = {"": []}
    for path, blob in files.items():
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(
            (name.encode(), b"100644 " + name.encode() + b"\0" + bytes.fromhex(blob.blob_id))
        )
        while folder and folder.rpartition("/")[0] not in folders:
            folder = folder.rpartition("/")[0]
            folders[folder] = []
    ids = {}
    for folder in sorted(folders, key=lambda f: (f != "", f.count("/")), reverse=True):
        # Git sorts the name of a folder as if it ended in a slash.
        ids[folder] = git_id("tree", b"".join(row for _, row in sorted(folders[folder])))
        if folder:
            parent, _, name = folder.rpartition("/")
            row = b"40000 " + name.encode() + b"\0" + bytes.fromhex(ids[folder])
            folders[parent].append((name.encode() + b"/", row))
    return ids


@dataclass
class Pull:
    """A pull request; its commits are on refs/pr/NUM."""

    num: int
    title: str
    description: str
    author: str
    date: datetime
    base: Commit
    status: str

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


class Repository:
    """Commits and references of one repository, and who may see it."""

    def __init__(self, id: str, private: bool) -> None:
        self.id = id
        self.private = private
        self.gated: str | bool = False
        # Users let through the gate.
        self.granted: set[str] = set()
        self.created = datetime.now(timezone.utc)
        self.commits: dict[str, Commit] = {}
        # Full names (refs/heads/main, refs/tags/v1, refs/pr/1) to commits.
        self.refs: dict[str, Commit] = {}
        self.pulls: dict[int, Pull] = {}

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.refs["refs/heads/main"]

    def find(self, revision: str) -> Commit | None:
        """The commit a branch, tag, full reference or commit id stands for."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.refs[name]
        return self.commits.get(revision)

    def writable_ref(self, revision: str) -> str | None:
        """The full name of an existing branch or pull request, or None."""
        names = (f"refs/heads/{revision}", revision)
        return next((n for n in names if n in self.refs and not n.startswith("refs/tags/")), None)

    def commit(
        self,
        ref: str,
        files: Files,
        title: str,
        message: str = "",
        author: str = "system",
        date: datetime | None = None,
    ) -> Commit:
        """Put a commit that holds exactly `files` on top of `ref`; `date` is now if None."""
        parent = self.refs.get(ref)
        date = date or datetime.now(timezone.utc)
        who = f"{author} <{author}@users.invalid> {int(date.timestamp())} +0000"
        lines = [f"tree {tree_ids(files)['']}", *([f"parent {parent.id}"] if parent else [])]
        lines += [f"author {who}", f"committer {who}", "", title, *(["", message] if message else [])]
        id = git_id("commit", ("\n".join(lines) + "\n").encode())
        commit = Commit(id, parent, dict(sorted(files.items())), title, message, author, date)
        self.commits[id] = self.refs[ref] = commit
        return commit

    def open_pull(self, title: str, description: str, author: str, status: str) -> Pull:
        num = len(self.pulls) + 1
        pull = Pull(num, title, description, author, datetime.now(timezone.utc), self.head, status)
        self.pulls[num] = pull
        self.refs[pull.ref] = self.head
        return pull


def is_clean_path(path: str) -> bool:
    """Whether the hub accepts the name of a file."""
    parts = path.split("/")
    return not re.search(r"[\\\0-\x1f]|^[A-Za-z]:", path) and not {"", ".", "..", ".git"} & set(parts)
