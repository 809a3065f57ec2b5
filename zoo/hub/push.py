"""From the files of a bundle to one commit on the Hub.

Everything that can be refused is refused before anything is sent: the token, the right to write, the tag. What the
repository holds already is not sent again, and if it holds all of it, nothing is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from zoo.errors import AccessError, NetworkError, NotFoundError, ZooError
from zoo.hub.card import BENCHMARK_FILE
from zoo.hub.client import Hub, checked_commit, has_id, known_token, may_be_done, patiently, plain_errors, warn
from zoo.hub.config import CARD_FILE
from zoo.hub.pull import OPTIONAL_FILES
from zoo.hub.reference import DEFAULT_REVISION

# The content to send: the bytes of a small file, or the path of a large one.
Content = bytes | Path


@dataclass(frozen=True)
class Options:
    """Options of a push, as the arguments of :func:`zoo.push`."""

    private: bool = False
    tag: str = ""
    branch: str = DEFAULT_REVISION
    message: str = ""
    create_pr: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Target:
    """A repository as it was found.

    Attributes:
        head: the latest commit of the branch, or of the main one if it is new; None: there is no such repository yet.
        ids: the ids of the files that a bundle may hold, by name: SHA-256 of large ones, git's id of the others.
        tags: commits by tag.
        card, benchmark: the texts of README.md and of its file for a leaderboard; empty: it has none.
    """

    repo_id: str
    head: str | None = None
    ids: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    branches: tuple[str, ...] = ()
    card: str = ""
    benchmark: str = ""


@dataclass(frozen=True)
class Published:
    """The result of a push, or of a dry run.

    Attributes:
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


def inspect(hub: Hub, repo_id: str, names: tuple[str, ...], options: Options) -> Target:
    """Look at a repository and make sure that the user may publish to it; a pull request needs no right to write.

    Raises:
        AccessError: if there is no token, or it may not write here, or a private model would be published.
        NotFoundError: if a pull request is asked for and there is no such repository.
        NetworkError: if the Hub cannot be reached.
    """
    if hub.is_offline:
        raise NetworkError(f"{repo_id}: cannot publish offline; unset HF_HUB_OFFLINE")
    if hub.api.token is False or not (hub.api.token or known_token()):
        raise AccessError(f"{repo_id}: publishing needs a token; log in with 'hf auth login' or set HF_TOKEN")
    with plain_errors(hub, repo_id):
        return patiently(lambda: _inspect(hub, repo_id, names, options))


def _inspect(hub: Hub, repo_id: str, names: tuple[str, ...], options: Options) -> Target:
    try:
        info = hub.api.model_info(repo_id)
    except RepositoryNotFoundError as error:
        if options.create_pr:
            raise NotFoundError(f"{repo_id}: no such repository to open a pull request on") from error
        _check_namespace(hub, repo_id)
        return Target(repo_id)
    if options.private and not info.private:
        raise AccessError(
            f"{repo_id}: is public, and --private does not change that; make it private at "
            f"{hub.endpoint}/{repo_id}/settings, or leave --private out"
        )
    if not options.create_pr:
        hub.api.auth_check(repo_id, write=True)
    refs = hub.api.list_repo_refs(repo_id)
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    head = branches.get(options.branch, checked_commit(hub, repo_id, info.sha))
    ids = _remote_ids(hub, repo_id, names, head)
    texts = {CARD_FILE: "", BENCHMARK_FILE: ""}
    for name in texts.keys() & ids.keys():
        path = hub.api.hf_hub_download(repo_id, name, revision=head, cache_dir=hub.cache)
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            texts[name] = file.read(OPTIONAL_FILES[CARD_FILE])
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    return Target(repo_id, head, ids, tags, tuple(branches), *texts.values())


def push(hub: Hub, target: Target, files: Mapping[str, Content], options: Options) -> Published:
    """Publish files in one commit on top of what was found; other files that a bundle may hold are removed.

    Raises:
        AccessError: the user may not write here.
        NetworkError: the Hub cannot be reached; whether the commit was made has been looked up.
        ZooError: the repository was changed meanwhile, or the tag stands elsewhere.
    """
    changes = _changes(target, files)
    _check_refs(target, options, is_changed=bool(changes))
    url = f"{hub.endpoint}/{target.repo_id}"
    if options.branch != DEFAULT_REVISION:
        url += f"/tree/{options.branch}"
    is_new = target.head is None
    result = Published(target.repo_id, target.head, tuple(changes), url, options.tag, is_new)
    if options.dry_run:
        return result
    commit = target.head
    if commit is None:
        with plain_errors(hub, target.repo_id):
            patiently(lambda: hub.api.create_repo(target.repo_id, private=options.private))
            info = patiently(lambda: hub.api.model_info(target.repo_id))
            commit = checked_commit(hub, target.repo_id, info.sha)
    if options.branch not in (DEFAULT_REVISION, *target.branches) and not options.create_pr:
        with plain_errors(hub, f"{target.repo_id}: branch {options.branch}"):
            patiently(lambda: hub.api.create_branch(target.repo_id, branch=options.branch, revision=commit))
    if changes:
        sent = _commit(hub, target.repo_id, commit, files, changes, options)
        if options.create_pr:
            return replace(result, commit=None, url=sent, tag="")
        commit = sent
    if options.tag and target.tags.get(options.tag) != commit:
        _tag(hub, target.repo_id, commit, options.tag)
    return replace(result, commit=commit)


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
    changed = [name for name, content in files.items() if not has_id(content, target.ids.get(name, ""))]
    return changed + [name for name in target.ids if name not in files]


def _check_refs(target: Target, options: Options, *, is_changed: bool) -> None:
    """Refuse a tag or a branch whose name means something else already."""
    if options.branch in target.tags:
        raise ZooError(f"{target.repo_id}: {options.branch} is a tag there; choose another branch")
    if not options.tag:
        return
    if options.create_pr:
        raise ZooError(f"--tag {options.tag}: a pull request is not tagged; tag it when it is merged")
    if options.tag in (*target.branches, options.branch):
        raise ZooError(f"{target.repo_id}: {options.tag} is a branch there; choose another tag")
    stands_at = target.tags.get(options.tag)
    if stands_at is not None and (is_changed or stands_at != target.head):
        raise ZooError(
            f"{target.repo_id}: the tag {options.tag} exists at {stands_at[:12]} and is never moved; choose another"
        )


def _commit(
    hub: Hub,
    repo_id: str,
    head: str,
    files: Mapping[str, Content],
    changes: list[str],
    options: Options,
) -> str:
    """Send what changed; the commit, or the address of the pull request."""
    additions = [CommitOperationAdd(name, files[name]) for name in changes if name in files]
    deletions = [CommitOperationDelete(name) for name in changes if name not in files]

    def send() -> str:
        try:
            info = hub.api.create_commit(
                repo_id,
                [*additions, *deletions],
                commit_message=options.message or "Publish with revgnn-zoo",
                revision=None if options.create_pr else options.branch,
                parent_commit=head,
                create_pr=options.create_pr,
            )
        except Exception as error:
            # The commit may have been made and only its answer been lost.
            if options.create_pr or not may_be_done(error):
                raise
            commit = patiently(lambda: _find_commit(hub, repo_id, head, files, options.branch))
            if commit is None:
                raise
            warn(f"{repo_id}: the answer was lost, but the commit is there")
            return commit
        return info.pr_url or info.oid if options.create_pr else info.oid

    with plain_errors(hub, repo_id):
        # Sent twice, a pull request might be opened twice.
        return send() if options.create_pr else patiently(send)


def _find_commit(hub: Hub, repo_id: str, before: str, files: Mapping[str, Content], branch: str) -> str | None:
    """The head of the branch if it moved on and holds exactly these files."""
    head = hub.api.model_info(repo_id, revision=branch).sha
    if head is None or head == before:
        return None
    ids = _remote_ids(hub, repo_id, (*files, *OPTIONAL_FILES, BENCHMARK_FILE), head)
    return None if _changes(Target(repo_id, head, ids), files) else head


def _tag(hub: Hub, repo_id: str, commit: str, tag: str) -> None:
    """Set a tag; it may stand there already if the answer to a first attempt was lost."""

    def send() -> None:
        try:
            hub.api.create_tag(repo_id, tag=tag, revision=commit)
        except HfHubHTTPError:
            refs = hub.api.list_repo_refs(repo_id)
            if all((ref.name, ref.target_commit) != (tag, commit) for ref in refs.tags):
                raise

    with plain_errors(hub, f"{repo_id}: published at {commit}, but not tagged {tag}"):
        patiently(send)
