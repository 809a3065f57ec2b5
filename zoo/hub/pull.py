"""From a name on the Hub to a folder with a verified bundle.

The name is resolved to a commit once, and every file is taken from that commit. The configuration is read before the
weights are asked for; the weights must have the size and the SHA-256 that it states. Only then does the cache note that
the name means this commit, so that what is used without a network is always a whole bundle.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    HfFileMetadata,
    constants,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import RemoteEntryNotFoundError

from zoo.errors import BundleError, NetworkError, ZooError
from zoo.files import atomic_write, make_folder, read_regular
from zoo.hub.client import Hub, plain_errors, tell, without_xet
from zoo.hub.config import CARD_FILE, CONFIG_FILE, CURVES_FILE, WEIGHTS_FILE, BundleConfig, parse_config
from zoo.hub.reference import Reference, is_commit
from zoo.hub.verify import drop, has_cached_id, has_sha256
from zoo.json_object import MAX_JSON_BYTES

# What a bundle may hold beside what it must hold, and how large that may be.
OPTIONAL_FILES = {CARD_FILE: 1 << 20, CURVES_FILE: 16 << 20}
_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".joblib", ".h5")


@dataclass(frozen=True)
class Pulled:
    """A verified bundle in the cache.

    Attributes:
        reference: what was asked for.
        commit: what it means, 40 hexadecimal digits.
        folder: holds the files under their names.
        config: of the bundle.
        is_stale: the Hub could not be asked; the commit is the one it named last time.
    """

    reference: Reference
    commit: str
    folder: Path
    config: BundleConfig
    is_stale: bool = False


class _DamagedError(Exception):
    """What arrived is not what was published."""


class _AbsentError(Exception):
    """A file that a bundle may do without is not there."""


Say = Callable[[str], None]
_Fetch = Callable[[Hub, str], Pulled]


def pull(hub: Hub, reference: Reference, *, optional: bool = True, say: Say = tell) -> Pulled:
    """Fetch a bundle into the cache and verify it.

    A commit that is in the cache, and anything at all offline, is answered without a request.

    Args:
        hub: the host.
        reference: what to fetch.
        optional: fetch the card and the picture too.
        say: takes remarks of one line.

    Raises:
        BundleError: the repository holds no bundle, or its files do not belong together even when fetched again.
        NotFoundError: no such repository or revision.
        AccessError: the user may not read it.
        NetworkError: the Hub cannot be reached and the cache does not hold it.
        ZooError: the files cannot be stored.
    """

    def fetch(hub: Hub, commit: str) -> Pulled:
        path, config = _fetch_config(hub, reference, commit, say)
        _fetch_weights(hub, reference, commit, config, say)
        for name in OPTIONAL_FILES if optional else ():
            _fetch_optional(hub, reference, commit, name, say)
        return Pulled(reference, commit, path.parent, config)

    return _serve(hub, reference, fetch, say)


def pull_config(hub: Hub, reference: Reference, *, say: Say = tell) -> Pulled:
    """Fetch the configuration of a bundle alone; no weights are downloaded.

    Args:
        hub: the host.
        reference: what to fetch.
        say: takes remarks of one line.

    Raises:
        ZooError: as :func:`pull`.
    """

    def fetch(hub: Hub, commit: str) -> Pulled:
        path, config = _fetch_config(hub, reference, commit, say)
        return Pulled(reference, commit, path.parent, config)

    return _serve(hub, reference, fetch, say)


def _serve(hub: Hub, reference: Reference, fetch: _Fetch, say: Say) -> Pulled:
    """Find the commit, and fall back to the one that was whole last time if the Hub cannot be reached."""
    if reference.is_commit:
        return fetch(hub, reference.revision)
    note = _note_of(hub, reference)
    known = _read_note(note)
    if hub.is_offline:
        if known is None:
            raise NetworkError(f"{reference}: not in the cache {hub.cache}, and offline the Hub is not asked")
        return fetch(hub, known)
    try:
        commit = _resolve(hub, reference)
        pulled = fetch(hub, commit)
    except NetworkError as error:
        if known is None:
            raise
        try:
            cached = fetch(replace(hub, is_offline=True), known)
        except NetworkError:
            raise error from None
        say(f"{error}; using the cached commit {known}")
        return replace(cached, is_stale=True)
    if known != commit:
        # A cache that may only be read serves all the same.
        with contextlib.suppress(ZooError):
            make_folder(note.parent, ZooError)
            atomic_write(note, [commit.encode()], ZooError)
    return pulled


def _note_of(hub: Hub, reference: Reference) -> Path:
    """The file in which every tool that uses this cache notes which commit a revision means."""
    return hub.cache / f"models--{reference.repo_id.replace('/', '--')}" / "refs" / reference.revision


def _read_note(note: Path) -> str | None:
    try:
        commit = read_regular(note, max_bytes=40).decode("ascii", "replace")
    except OSError:
        return None
    return commit if is_commit(commit) else None


def _resolve(hub: Hub, reference: Reference) -> str:
    with plain_errors(hub, str(reference)):
        try:
            commit = _head(hub, reference.repo_id, reference.revision, CONFIG_FILE).commit_hash
        except RemoteEntryNotFoundError as error:
            commit = error.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
            raise _no_bundle(hub, reference, commit or reference.revision, CONFIG_FILE) from error
    if commit is None or not is_commit(commit):
        raise NetworkError(f"{reference}: {hub.endpoint} does not answer like a Hub: it names no commit")
    return commit


def _fetch_config(hub: Hub, reference: Reference, commit: str, say: Say) -> tuple[Path, BundleConfig]:
    def check(path: Path) -> bytes:
        content = read_regular(path, max_bytes=MAX_JSON_BYTES)
        if not has_cached_id(path, content):
            raise _DamagedError("its content does not match its id")
        return content

    path, content = _fetch(hub, reference, commit, CONFIG_FILE, check, say, max_bytes=MAX_JSON_BYTES)
    return path, parse_config(content, where=f"{reference.at(commit)}: {CONFIG_FILE}")


def _fetch_weights(hub: Hub, reference: Reference, commit: str, config: BundleConfig, say: Say) -> None:
    weights = config.weights

    def check(path: Path) -> None:
        if not has_sha256(path, weights.sha256, weights.num_bytes):
            raise _DamagedError(f"its size or its SHA-256 is not the one that {CONFIG_FILE} states")

    _fetch(hub, reference, commit, WEIGHTS_FILE, check, say, num_bytes=weights.num_bytes)


def _fetch_optional(hub: Hub, reference: Reference, commit: str, name: str, say: Say) -> None:
    limit = OPTIONAL_FILES[name]

    def check(path: Path) -> None:
        if not has_cached_id(path, read_regular(path, max_bytes=limit)):
            raise _DamagedError("its content does not match its id")

    with contextlib.suppress(_AbsentError):
        _fetch(hub, reference, commit, name, check, say, max_bytes=limit)


Checked = TypeVar("Checked")


def _fetch(
    hub: Hub,
    reference: Reference,
    commit: str,
    name: str,
    check: Callable[[Path], Checked],
    say: Say,
    *,
    max_bytes: int | None = None,
    num_bytes: int | None = None,
) -> tuple[Path, Checked]:
    """Take a file from the cache or the Hub; one that does not pass its check is dropped and fetched once more."""
    where = f"{reference.at(commit)}: {name}"
    for attempt in (1, 2):
        with plain_errors(hub, where):
            try:
                path = _cached_or_downloaded(hub, reference, commit, name, say, max_bytes, num_bytes)
                return path, check(path)
            except _DamagedError as error:
                reason = str(error)
                if hub.is_offline:
                    raise BundleError(
                        f"{where}: damaged in the cache: {reason}; offline it is not fetched again"
                    ) from error
                if (damaged := _cached(hub, reference, commit, name)) is not None:
                    drop(damaged)
        if attempt == 1:
            say(f"{where}: {reason}; fetching it once more")
    raise BundleError(f"{where}: damaged: {reason}, twice in a row")


def _cached(hub: Hub, reference: Reference, commit: str, name: str) -> Path | None:
    found = try_to_load_from_cache(reference.repo_id, name, cache_dir=hub.cache, revision=commit)
    return Path(found) if isinstance(found, str) else None


def _cached_or_downloaded(
    hub: Hub, reference: Reference, commit: str, name: str, say: Say, max_bytes: int | None, num_bytes: int | None
) -> Path:
    found = try_to_load_from_cache(reference.repo_id, name, cache_dir=hub.cache, revision=commit)
    if isinstance(found, str):
        return Path(found)
    is_optional = name in OPTIONAL_FILES
    if is_optional and (found is not None or hub.is_offline):
        raise _AbsentError
    where = f"{reference.at(commit)}: {name}"
    if hub.is_offline:
        raise NetworkError(f"{where}: not in the cache {hub.cache}, and offline the Hub is not asked")
    try:
        metadata = _head(hub, reference.repo_id, commit, name)
    except RemoteEntryNotFoundError as error:
        if is_optional:
            # The client notes in the cache that there is no such file, and says so again.
            with contextlib.suppress(RemoteEntryNotFoundError):
                _download(hub, reference, commit, name, is_xet=False, say=say)
            raise _AbsentError from error
        raise _no_bundle(hub, reference, commit, name) from error
    if metadata.commit_hash != commit or not _ID.fullmatch(metadata.etag or ""):
        raise NetworkError(f"{where}: {hub.endpoint} does not answer like a Hub: wrong commit or odd file id")
    if max_bytes is not None and (metadata.size is None or metadata.size > max_bytes):
        raise BundleError(f"{where}: {metadata.size or 0:,} bytes; at most {max_bytes:,} are read")
    if num_bytes is not None and metadata.size is not None and metadata.size != num_bytes:
        raise BundleError(
            f"{where}: {metadata.size:,} bytes, but {CONFIG_FILE} says {num_bytes:,}: not the same bundle"
        )
    return _download(hub, reference, commit, name, is_xet=metadata.xet_file_data is not None, say=say)


def _head(hub: Hub, repo_id: str, revision: str, name: str) -> HfFileMetadata:
    url = hf_hub_url(repo_id, name, revision=revision, endpoint=hub.endpoint)
    return hub.api.get_hf_file_metadata(url=url, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _download(hub: Hub, reference: Reference, commit: str, name: str, *, is_xet: bool, say: Say) -> Path:
    def once() -> Path:
        try:
            path = hub.api.hf_hub_download(reference.repo_id, name, revision=commit, cache_dir=hub.cache)
        except OSError as error:
            if type(error) is OSError and error.errno is None:
                # The client says so of a body that is shorter than announced.
                raise _DamagedError("what arrived is shorter or longer than announced") from error
            raise
        return Path(path)

    if not is_xet or constants.HF_HUB_DISABLE_XET:
        return once()
    try:
        return once()
    except Exception as error:
        # The xet library has errors of its own for a storage that is not there; whatever it is, LFS will tell.
        say(f"{reference.at(commit)}: {name}: xet storage failed ({type(error).__name__}); fetching by plain LFS")
        with without_xet():
            return once()


def _no_bundle(hub: Hub, reference: Reference, revision: str, missing: str) -> BundleError:
    """What to say of a repository that lacks a file, in view of what it holds instead."""
    where = reference.at(revision) if is_commit(revision) else str(reference)
    try:
        with plain_errors(hub, where):
            names = hub.api.list_repo_files(reference.repo_id, revision=revision)
    except ZooError:
        names = []
    pickles = sorted(name for name in names if name.lower().endswith(_PICKLES))
    hint = f"; it holds {pickles[0]!r}, and pickled weights are never read" if pickles else ""
    return BundleError(f"{where}: not a bundle: it has no {missing}{hint}")
