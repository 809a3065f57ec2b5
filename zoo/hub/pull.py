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

from huggingface_hub import HfFileMetadata, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from zoo.errors import BundleError, NetworkError, NotFoundError, ZooError
from zoo.files import atomic_write, make_folder, read_regular, sha256_of
from zoo.hub.client import Hub, cached_id, checked_commit, drop, has_id, patiently, plain_errors, warn
from zoo.hub.config import (
    CARD_FILE,
    CONFIG_FILE,
    CURVES_FILE,
    FILES,
    SIGNATURE_FILE,
    WEIGHTS_FILE,
    BundleConfig,
    Stored,
    parse_config,
)
from zoo.hub.reference import Reference, is_commit
from zoo.json_object import MAX_JSON_BYTES

# What a bundle may hold beside what it must hold, and how large that may be.
OPTIONAL_FILES = {CARD_FILE: 1 << 20, CURVES_FILE: 16 << 20, SIGNATURE_FILE: 1 << 20}
_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".joblib", ".h5")


@dataclass(frozen=True)
class Pulled:
    """A verified bundle in the cache.

    Attributes:
        reference: what was asked for.
        commit: what it means, 40 hexadecimal digits.
        is_stale: the Hub could not be asked; the commit is the one it named last time.
    """

    reference: Reference
    commit: str
    folder: Path
    config: BundleConfig
    is_stale: bool = False


def pull(hub: Hub, reference: Reference, *, optional: bool = True) -> Pulled:
    """Fetch a bundle into the cache and verify it; with ``optional`` also the card, the picture and the signature.

    A commit that is in the cache, and anything at all offline, is answered without a request.

    Raises:
        BundleError: the repository holds no bundle, or its files do not belong together.
        NotFoundError: no such repository or revision.
        AccessError: the user may not read it.
        NetworkError: the Hub cannot be reached and the cache does not hold it.
        ZooError: the files cannot be stored.
    """

    def fetch(source: _Source) -> Pulled:
        pulled = source.fetch_config()
        for name, stored in pulled.config.files.items():
            source.fetch(name, stored=stored)
        for name in OPTIONAL_FILES if optional else ():
            source.fetch_optional(name)
        return pulled

    return _serve(hub, reference, fetch, is_whole=True)


def pull_config(hub: Hub, reference: Reference) -> Pulled:
    """Fetch the configuration of a bundle alone, no weights; errors as of :func:`pull`."""
    return _serve(hub, reference, lambda source: source.fetch_config(), is_whole=False)


def pull_sizes(hub: Hub, reference: Reference) -> tuple[str, dict[str, int]]:
    """Commit and, by name, bytes of the files that :func:`pull` would download; errors as of that."""
    if hub.is_offline:
        raise NetworkError(f"{reference}: offline the Hub is not asked")
    with plain_errors(hub, str(reference)):
        info = patiently(
            lambda: hub.api.model_info(reference.repo_id, revision=reference.revision, files_metadata=True)
        )
        commit = checked_commit(hub, str(reference), info.sha)
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or () if file.rfilename in FILES}
    if missing := {CONFIG_FILE, WEIGHTS_FILE} - set(sizes):
        raise _no_bundle(hub, reference, commit, min(missing))
    source = _Source(hub, reference, commit)
    return commit, {name: sizes[name] for name in FILES if name in sizes and not isinstance(source.cached(name), str)}


def _serve(hub: Hub, reference: Reference, fetch: Callable[[_Source], Pulled], *, is_whole: bool) -> Pulled:
    """Find the commit, and fall back to the one that was whole last time if the Hub cannot be reached.

    ``fetch`` takes the files of a commit from the cache or the Hub. A whole bundle is what the name means offline from
    now on.
    """
    if is_commit(reference.revision):
        return fetch(_Source(hub, reference, reference.revision))
    known = _cached_commit(hub, reference)
    if hub.is_offline:
        if known is None:
            raise NetworkError(f"{reference}: not in the cache {hub.cache}, and offline the Hub is not asked")
        return fetch(_Source(hub, reference, known))
    try:
        # With a copy at hand there is no need to wait for a busy host.
        commit = _resolve(hub, reference, is_patient=known is None)
        pulled = fetch(_Source(hub, reference, commit))
    except NetworkError as error:
        if known is None:
            raise
        try:
            cached = fetch(_Source(replace(hub, is_offline=True), reference, known))
        except NetworkError:
            raise error from None
        warn(f"{error}; using the cached commit {known}")
        return replace(cached, is_stale=True)
    if is_whole and known != commit:
        # The client writes this note when its first file arrives. Here it waits until all of them are verified, so that
        # offline the name never means a commit that is half there. A cache that may only be read serves all the same.
        with contextlib.suppress(ZooError):
            note = _repository_folder(hub, reference) / "refs" / reference.revision
            make_folder(note.parent, ZooError)
            atomic_write(note, [commit.encode()], ZooError)
    return pulled


def _repository_folder(hub: Hub, reference: Reference) -> Path:
    return hub.cache / repo_folder_name(repo_id=reference.repo_id, repo_type="model")


def _cached_commit(hub: Hub, reference: Reference) -> str | None:
    """The commit that a revision meant the last time that all of it was there."""
    try:
        commit = read_regular(_repository_folder(hub, reference) / "refs" / reference.revision, max_bytes=40)
    except OSError:
        return None
    text = commit.decode("ascii", "replace")
    return text if is_commit(text) else None


def _resolve(hub: Hub, reference: Reference, *, is_patient: bool) -> str:
    def ask() -> str | None:
        return _head(hub, reference.repo_id, reference.revision, CONFIG_FILE).commit_hash

    with plain_errors(hub, str(reference)):
        try:
            commit = patiently(ask) if is_patient else ask()
        except RemoteEntryNotFoundError as error:
            commit = error.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
            raise _no_bundle(hub, reference, commit or reference.revision, CONFIG_FILE) from error
    return checked_commit(hub, str(reference), commit)


@dataclass(frozen=True)
class _Source:
    """One commit of a repository: in the cache, and on the Hub unless that is offline."""

    hub: Hub
    reference: Reference
    commit: str

    def fetch_config(self) -> Pulled:
        path = self.fetch(CONFIG_FILE, max_bytes=MAX_JSON_BYTES)
        where = f"{self.reference.at(self.commit)}: {CONFIG_FILE}"
        config = parse_config(read_regular(path, max_bytes=MAX_JSON_BYTES), where=where)
        return Pulled(self.reference, self.commit, path.parent, config)

    def fetch_optional(self, name: str) -> None:
        found = self.cached(name)
        if not isinstance(found, str) and (found is not None or self.hub.is_offline):
            return
        with contextlib.suppress(NotFoundError):
            self.fetch(name, max_bytes=OPTIONAL_FILES[name])

    def fetch(self, name: str, *, max_bytes: int = 0, stored: Stored | None = None) -> Path:
        """Take a file from the cache or, if it is not there or damaged, from the Hub."""
        where = f"{self.reference.at(self.commit)}: {name}"
        with plain_errors(self.hub, where):
            found = self.cached(name)
            if isinstance(found, str):
                if not (fault := _fault(Path(found), max_bytes, stored)):
                    return Path(found)
                if self.hub.is_offline:
                    raise BundleError(f"{where}: damaged in the cache: {fault}; offline it is not fetched again")
                drop(Path(found))
            if self.hub.is_offline:
                raise NetworkError(f"{where}: not in the cache {self.hub.cache}, and offline the Hub is not asked")
            id_ = self._check_before_download(name, where, max_bytes, stored)
            path = self._download(name, where)
            if fault := _fault(path, max_bytes, stored, id_):
                drop(path)
                raise BundleError(f"{where}: damaged: {fault}; try again")
            return path

    def cached(self, name: str) -> str | object | None:
        """The path of a file in the cache; None: nothing is known of it; else the commit is known to lack it."""
        return try_to_load_from_cache(self.reference.repo_id, name, cache_dir=self.hub.cache, revision=self.commit)

    def _check_before_download(self, name: str, where: str, max_bytes: int, stored: Stored | None) -> str:
        """Refuse a file that cannot be the right one; returns its id."""
        try:
            metadata = patiently(lambda: _head(self.hub, self.reference.repo_id, self.commit, name))
        except RemoteEntryNotFoundError as error:
            if name not in OPTIONAL_FILES:
                raise _no_bundle(self.hub, self.reference, self.commit, name) from error
            # The client asks once more, notes that the commit has no such file, and says so again.
            self._download(name, where)
            raise
        id_ = metadata.etag or ""
        if metadata.commit_hash != self.commit or not _ID.fullmatch(id_):
            raise NetworkError(f"{where}: {self.hub.endpoint} does not answer like a Hub: wrong commit or odd file id")
        if stored is None and (metadata.size is None or metadata.size > max_bytes):
            raise BundleError(f"{where}: {metadata.size or 0:,} bytes; at most {max_bytes:,} are read")
        if stored is not None and metadata.size not in (None, stored.num_bytes):
            raise BundleError(
                f"{where}: {metadata.size:,} bytes, but {CONFIG_FILE} says {stored.num_bytes:,}: not the same bundle"
            )
        # The id of a large file is its SHA-256.
        if stored is not None and len(id_) == 64 and id_ != stored.sha256:
            raise BundleError(
                f"{where}: its SHA-256 is {id_}, but {CONFIG_FILE} says {stored.sha256}: not the same bundle"
            )
        return id_

    def _download(self, name: str, where: str) -> Path:
        try:
            repo_id = self.reference.repo_id
            return Path(self.hub.api.hf_hub_download(repo_id, name, revision=self.commit, cache_dir=self.hub.cache))
        except OSError as error:
            if type(error) is OSError and error.errno is None:
                # The client says so of a body that is shorter than announced.
                raise BundleError(f"{where}: damaged: its size is not the one announced; try again") from error
            raise


def _fault(path: Path, max_bytes: int, stored: Stored | None, id_: str = "") -> str:
    """The fault of a file in the cache; empty if it is whole. The cache knows its id only where there are links."""
    if stored is None:
        id_ = id_ or cached_id(path)
        is_whole = not id_ or has_id(read_regular(path, max_bytes=max_bytes), id_)
        return "" if is_whole else "its content does not match its id"
    is_whole = path.stat().st_size == stored.num_bytes and sha256_of(path) == stored.sha256
    return "" if is_whole else f"its size or its SHA-256 is not the one that {CONFIG_FILE} states"


def _head(hub: Hub, repo_id: str, revision: str, name: str) -> HfFileMetadata:
    url = hf_hub_url(repo_id, name, revision=revision, endpoint=hub.api.endpoint)
    return hub.api.get_hf_file_metadata(url=url, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _no_bundle(hub: Hub, reference: Reference, revision: str, missing: str) -> BundleError:
    """The error for a repository that lacks a file; it names pickled weights if there are any."""
    where = reference.at(revision) if is_commit(revision) else str(reference)
    try:
        with plain_errors(hub, where):
            names = hub.api.list_repo_files(reference.repo_id, revision=revision)
    except ZooError:
        names = []
    pickles = sorted(name for name in names if name.lower().endswith(_PICKLES))
    hint = f"; it holds {pickles[0]!r}, and pickled weights are never read" if pickles else ""
    return BundleError(f"{where}: not a bundle: it has no {missing}{hint}")
