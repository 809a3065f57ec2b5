"""From the files of a bundle to one commit on the Hub.

Everything that can be refused is refused before anything is sent: the token, the right to write, the tag. What the
repository holds already is not sent again, and if it holds all of it, nothing is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from zoo.errors import AccessError, NetworkError, NotFoundError, ZooError
from zoo.files import sha256_of
from zoo.hub.client import Hub, is_unreachable, plain_errors, translate, warn
from zoo.hub.config import CARD_FILE
from zoo.hub.pull import OPTIONAL_FILES
from zoo.hub.reference import DEFAULT_REVISION
from zoo.hub.verify import git_id

# The content to send: the bytes of a small file, or the path of a large one.
Content = bytes | Path


@dataclass(frozen=True)
class Options:
    """Options of a push.

    Attributes:
        private: a repository that has to be created is private.
        tag: gets this tag; none if empty. A tag that exists elsewhere is never moved.
        message: title of the commit.
        create_pr: open a pull request instead of committing to the main branch.
        dry_run: stop before anything is sent.
    """

    private: bool = False
    tag: str = ""
    message: str = ""
    create_pr: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Target:
    """A repository as it was found.

    Attributes:
        repo_id: its name.
        head: the latest commit of the main branch; None: there is no such repository yet.
        ids: the ids of the files that a bundle may hold, by name: SHA-256 of large ones, git's id of the others.
        tags: commits by tag.
        card: its README.md; None: it has none.
    """

    repo_id: str
    head: str | None = None
    ids: Mapping[str, str] | None = None
    tags: Mapping[str, str] | None = None
    card: str | None = None


@dataclass(frozen=True)
class Published:
    """The result of a push, or of a dry run.

    Attributes:
        repo_id: the repository.
        commit: that holds the bundle now; None: nothing was sent, or the pull request has one of its own.
        changed: names of the files that were sent or removed; empty: the repository held all of it.
        url: where it is to be seen.
        tag: that was made, or stood there already.
        is_new: the repository did not exist before.
    """

    repo_id: str
    commit: str | None
    changed: tuple[str, ...]
    url: str
    tag: str
    is_new: bool


def inspect(hub: Hub, repo_id: str, names: tuple[str, ...], *, create_pr: bool) -> Target:
    """Look at a repository and make sure that the user may publish to it.

    Args:
        hub: the host.
        repo_id: where to publish.
        names: the files that a bundle may hold.
        create_pr: a pull request needs no right to write.

    Raises:
        AccessError: if there is no token, or it may not write here.
        NotFoundError: if a pull request is asked for and there is no such repository.
        NetworkError: if the Hub cannot be reached.
    """
    if hub.is_offline:
        raise NetworkError(f"{repo_id}: cannot publish offline; unset HF_HUB_OFFLINE")
    if hub.api.token is False or not (hub.api.token or get_token()):
        raise AccessError(f"{repo_id}: publishing needs a token; log in with 'hf auth login' or set HF_TOKEN")
    with plain_errors(hub, repo_id):
        try:
            info = hub.api.model_info(repo_id)
        except RepositoryNotFoundError as error:
            if create_pr:
                raise NotFoundError(f"{repo_id}: no such repository to open a pull request on") from error
            _check_namespace(hub, repo_id)
            return Target(repo_id)
        if not create_pr:
            hub.api.auth_check(repo_id, write=True)
        head = info.sha
        if head is None:
            raise NetworkError(f"{repo_id}: {hub.endpoint} does not answer like a Hub: it names no commit")
        refs = hub.api.list_repo_refs(repo_id)
        ids = _remote_ids(hub, repo_id, names, head)
        card = None
        if CARD_FILE in ids:
            path = hub.api.hf_hub_download(repo_id, CARD_FILE, revision=head, cache_dir=hub.cache)
            with open(path, encoding="utf-8", errors="replace", newline="") as file:
                card = file.read(OPTIONAL_FILES[CARD_FILE])
        return Target(repo_id, head, ids, {ref.name: ref.target_commit for ref in refs.tags}, card)


def push(hub: Hub, target: Target, files: Mapping[str, Content], options: Options) -> Published:
    """Publish files in one commit on top of what was found.

    Args:
        hub: the host.
        target: the repository as :func:`inspect` found it.
        files: content by name; the other files that a bundle may hold are removed.
        options: how.

    Raises:
        AccessError: the user may not write here.
        NetworkError: the Hub cannot be reached; whether the commit was made has been looked up.
        ZooError: the repository was changed meanwhile, or the tag stands elsewhere.
    """
    changes = _changes(target, files)
    _check_tag(target, options, is_changed=bool(changes))
    url = f"{hub.endpoint}/{target.repo_id}"
    is_new = target.head is None
    result = Published(target.repo_id, target.head, tuple(changes), url, options.tag, is_new)
    if options.dry_run:
        return result
    commit = target.head
    if changes:
        head = target.head or _create(hub, target.repo_id, private=options.private)
        info = _commit(hub, target.repo_id, head, files, changes, options)
        if options.create_pr:
            return Published(target.repo_id, None, tuple(changes), info, "", is_new)
        commit = info
    if options.tag and (target.tags or {}).get(options.tag) != commit:
        with plain_errors(hub, f"{target.repo_id}: tag {options.tag}"):
            hub.api.create_tag(target.repo_id, tag=options.tag, revision=commit)
    return Published(target.repo_id, commit, tuple(changes), url, options.tag, is_new)


def _check_namespace(hub: Hub, repo_id: str) -> None:
    """Make sure that the user may create a repository under this owner."""
    owner, me = repo_id.split("/")[0], hub.api.whoami()
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise AccessError(f"{repo_id}: this token may only read; use one with the right to write")
    if owner != me["name"] and all(org["name"] != owner for org in me.get("orgs", ())):
        raise AccessError(f"{repo_id}: does not exist, and {me['name']!r} may not create repositories under {owner!r}")


def _remote_ids(hub: Hub, repo_id: str, names: tuple[str, ...], commit: str) -> dict[str, str]:
    rows = hub.api.get_paths_info(repo_id, list(names), revision=commit)
    return {row.path: row.lfs.sha256 if row.lfs else row.blob_id for row in rows if isinstance(row, RepoFile)}


def _changes(target: Target, files: Mapping[str, Content]) -> list[str]:
    """Names of files that differ, and of those that have to go."""
    ids = target.ids or {}
    changed = [name for name, content in files.items() if not _has_id(content, ids.get(name, ""))]
    return changed + [name for name in ids if name not in files]


def _has_id(content: Content, id_: str) -> bool:
    if len(id_) == 40:
        return id_ == git_id(content.read_bytes() if isinstance(content, Path) else content)
    return id_ == (sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest())


def _check_tag(target: Target, options: Options, *, is_changed: bool) -> None:
    if not options.tag:
        return
    if options.create_pr:
        raise ZooError(f"--tag {options.tag}: a pull request is not tagged; tag it when it is merged")
    stands_at = (target.tags or {}).get(options.tag)
    if stands_at is not None and (is_changed or stands_at != target.head):
        raise ZooError(
            f"{target.repo_id}: the tag {options.tag} exists at {stands_at[:12]} and is never moved; choose another"
        )


def _create(hub: Hub, repo_id: str, *, private: bool) -> str:
    with plain_errors(hub, repo_id):
        hub.api.create_repo(repo_id, private=private)
        head = hub.api.model_info(repo_id).sha
    if head is None:
        raise NetworkError(f"{repo_id}: {hub.endpoint} does not answer like a Hub: it names no commit")
    return head


def _commit(
    hub: Hub,
    repo_id: str,
    head: str,
    files: Mapping[str, Content],
    changes: list[str],
    options: Options,
) -> str:
    """Send what changed.

    Returns:
        The commit, or the address of the pull request.
    """
    additions = [CommitOperationAdd(name, files[name]) for name in changes if name in files]
    deletions = [CommitOperationDelete(name) for name in changes if name not in files]

    with plain_errors(hub, repo_id):
        try:
            info = hub.api.create_commit(
                repo_id,
                [*additions, *deletions],
                commit_message=options.message or "Publish with revgnn-zoo",
                parent_commit=head,
                create_pr=options.create_pr,
            )
        except Exception as error:
            if options.create_pr or not is_unreachable(error):
                raise
            # The commit may have been made and only its answer been lost.
            commit = _find_commit(hub, repo_id, head, files)
            if commit is None:
                raise translate(hub, repo_id, error) from error
            warn(f"{repo_id}: the answer was lost, but the commit is there")
            return commit
    return info.pr_url or info.oid if options.create_pr else info.oid


def _find_commit(hub: Hub, repo_id: str, before: str, files: Mapping[str, Content]) -> str | None:
    """The head of the main branch if it moved on and holds exactly these files."""
    head = hub.api.model_info(repo_id, revision=DEFAULT_REVISION).sha
    if head is None or head == before:
        return None
    ids = _remote_ids(hub, repo_id, (*files, *OPTIONAL_FILES), head)
    return None if _changes(Target(repo_id, head, ids), files) else head
