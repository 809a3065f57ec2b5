"""Names on the Hub: ``owner/name``, perhaps with ``@revision``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zoo.errors import ZooError

DEFAULT_REVISION = "main"
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ReferenceFormatError(ZooError):
    """A text that cannot be a name on the Hub, whatever the Hub holds."""

    exit_code = 2


@dataclass(frozen=True)
class Reference:
    """A repository, ``owner/name``, and a branch, a tag, ``refs/pr/N`` or a commit of 40 hexadecimal digits."""

    repo_id: str
    revision: str = DEFAULT_REVISION

    def at(self, commit: str) -> str:
        """A commit of this repository as text."""
        return f"{self.repo_id}@{commit[:12]}"

    def __str__(self) -> str:
        return self.repo_id if self.revision == DEFAULT_REVISION else f"{self.repo_id}@{self.revision}"


def parse_reference(text: str, revision: str | None = None) -> Reference:
    """Read ``owner/name`` or ``owner/name@revision``; a ReferenceFormatError if it is neither."""
    if revision is not None:
        if not isinstance(revision, str) or "@" in text:
            raise ZooError(f"revision={revision!r}: expected a text, and {text!r} without one of its own")
        text = f"{text}@{revision}"
    repo_id, at, revision = text.partition("@")
    check_repo_id(repo_id)
    if not at:
        return Reference(repo_id)
    check_revision(revision)
    return Reference(repo_id, revision)


def check_repo_id(text: str) -> None:
    """Raise a ReferenceFormatError if a text cannot be the name of a repository."""
    parts = text.split("/")
    odd = "--" in text or ".." in text or text.endswith(".git")
    if len(parts) != 2 or odd or not all(_PART.fullmatch(part) for part in parts):
        raise ReferenceFormatError(f"{text!r}: expected owner/name, such as org/revgnn-deep, perhaps with @revision")


def check_revision(text: str) -> None:
    """Raise a ReferenceFormatError if a text, which becomes part of a path in the cache, can be no revision."""
    if not _REVISION.fullmatch(text) or ".." in text or "//" in text or text.endswith(("/", ".lock")):
        raise ReferenceFormatError(f"{text!r}: not a revision; expected a branch, a tag or a commit, such as v1")


def check_new_ref(text: str, kind: str) -> None:
    """Raise a ReferenceFormatError if a text cannot be a new tag or branch, or is a name of something there is."""
    check_revision(text)
    if text.startswith("refs/") or is_commit(text) or (kind == "tag" and text == DEFAULT_REVISION):
        raise ReferenceFormatError(f"{text!r}: no name for a {kind}: it means something else already; such as v1")


def is_commit(text: str) -> bool:
    """Tell if a text is a whole commit id, which never changes its meaning."""
    return _COMMIT.fullmatch(text) is not None
