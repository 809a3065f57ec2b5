"""The Hub's own client as the zoo uses it: which host, which token, and errors in one line with an exit code.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean to ``huggingface_hub``, which
reads them. A token goes to the host that the user has set, and over plain HTTP to this machine alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import progress_bar_states

import zoo
from zoo.errors import AccessError, NetworkError, NotFoundError, ZooError, ZooWarning
from zoo.files import sha256_of
from zoo.hub.reference import is_commit

LIBRARY = "revgnn-zoo"
# The base of all errors of the HTTP library, whose name depends on the version of the client.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"
_TRY_LATER = (408, 416, 429)
# Between attempts; a host that asks for more in Retry-After gets it, up to the longest.
_PAUSES_S = (1.0, 2.0, 4.0)
_LONGEST_PAUSE_S = 60.0
# A connection that broke. A host that is away or silent is not asked again: it seldom comes back within seconds.
_BROKEN = ("RemoteProtocolError", "ReadError", "WriteError")

T = TypeVar("T")


@dataclass(frozen=True)
class Hub:
    """A host and the options of requests to it.

    Attributes:
        api: the client, which holds the token.
        endpoint: the host as it is shown, without the password that HF_ENDPOINT may hold.
        cache: where the client keeps what it downloads.
        is_offline: only the cache may be asked.
        quiet: the client shows no progress.
    """

    api: HfApi
    endpoint: str
    cache: Path
    is_offline: bool
    quiet: bool = False


def connect(
    *,
    offline: bool = False,
    quiet: bool = False,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Hub:
    """The Hub that the environment names; nothing is sent yet.

    Args:
        offline: ask the cache alone, as with ``HF_HUB_OFFLINE=1``.
        quiet: show no progress.
        token: to use instead of the user's; None: that of ``hf auth login`` or HF_TOKEN; False: none.
        cache_dir: to use instead of the one in HF_HOME.

    Raises:
        ZooError: if HF_ENDPOINT is no address.
        AccessError: if the host would be reached over plain HTTP, where anyone on the way can change what arrives.
    """
    try:
        url = urlsplit(constants.ENDPOINT)
    except ValueError as error:
        raise ZooError(f"HF_ENDPOINT={redact(constants.ENDPOINT)}: not an address: {error}") from error
    shown = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    if not (url.scheme == "https" or (url.scheme == "http" and _is_this_machine(url.hostname or ""))):
        if url.scheme != "http" or os.environ.get("ZOO_ALLOW_HTTP") != "1":
            raise AccessError(
                f"HF_ENDPOINT={shown}: only https:// is trusted, or a host on this machine; "
                "ZOO_ALLOW_HTTP=1 reads over http:// all the same, without a token"
            )
        token = False
    api = HfApi(endpoint=constants.ENDPOINT, token=token, library_name=LIBRARY, library_version=zoo.__version__)
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    return Hub(api, shown, cache, offline or bool(constants.HF_HUB_OFFLINE), quiet)


def checked_commit(hub: Hub, what: str, commit: object) -> str:
    """The commit that a host names, for every later request; a NetworkError if it is none."""
    if not isinstance(commit, str) or not is_commit(commit):
        raise NetworkError(f"{what}: {hub.endpoint} does not answer like a Hub: it names no commit")
    return commit


def warn(text: str) -> None:
    """Warn the user, without secrets."""
    warnings.warn(redact(text), ZooWarning, stacklevel=3)


def redact(text: str) -> str:
    """The text without access tokens and without the passwords in addresses."""
    token = known_token()
    text = _PASSWORD.sub("***", text.replace(token, "hf_***") if token else text)
    return _TOKEN.sub("hf_***", text)


def known_token() -> str | None:
    """The user's token; None if there is none, or it cannot be read."""
    try:
        return get_token()
    except OSError:
        return None


@contextlib.contextmanager
def plain_errors(hub: Hub, what: str) -> Iterator[None]:
    """Turn errors of the client into errors of the zoo, which name the repository or the file that is asked for.

    Raises:
        NotFoundError: what is asked for does not exist.
        AccessError: the user may not read or write it.
        NetworkError: the host could not be reached, or cannot answer at the moment.
        ZooError: this machine cannot store what arrives.
    """
    try:
        with _own_output(hub):
            yield
    except ZooError:
        raise
    except Exception as error:
        # Of an answer in another shape than it expects, the client raises KeyError, TypeError and others.
        _scrub(error)
        raise translate(hub, what, error) from error


@contextlib.contextmanager
def _own_output(hub: Hub) -> Iterator[None]:
    """Keep the client's log and, if the hub is quiet, its bars from showing; both belong to other libraries too."""
    level, bars = hub_logging.get_verbosity(), dict(progress_bar_states)
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # HF_HUB_DISABLE_PROGRESS_BARS has the last word, and the client warns of attempts to change that.
    if hub.quiet and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        progress_bar_states.clear()
        progress_bar_states.update(bars)


def patiently(request: Callable[[], T]) -> T:
    """Make a request that may be carried out twice; again after a pause if the host is busy or the connection broke."""
    for pause_s in _PAUSES_S:
        try:
            return request()
        except HTTPError as error:
            if not _may_pass(error):
                raise
            time.sleep(max(pause_s, _asked_pause_s(error)))
    return request()


def _may_pass(error: Exception) -> bool:
    """Tell if the same request may succeed soon."""
    if isinstance(error, HfHubHTTPError):
        return _is_busy(error) and _asked_pause_s(error) <= _LONGEST_PAUSE_S
    return any(cls.__name__ in _BROKEN for cls in type(error).__mro__)


def _is_busy(error: HfHubHTTPError) -> bool:
    return error.response.status_code in (408, 429, 500, 502, 503, 504)


def _asked_pause_s(error: Exception) -> float:
    """The seconds in Retry-After; 0 if there are none."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(asked) if asked.isascii() and asked.isdigit() else 0.0


def translate(hub: Hub, what: str, error: BaseException) -> ZooError:
    """The error of the zoo that stands for an error of the client."""
    if isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        # The client wraps what went wrong; the status of a refused upload is in the cause alone.
        return translate(hub, what, error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return _of_status(hub, what, error)
    reason = _first_line(error)
    if isinstance(error, HTTPError | ConnectionError | TimeoutError | FileMetadataError | LocalEntryNotFoundError):
        hint = "; if it has no xet storage, set HF_HUB_DISABLE_XET=1" if "xet" in reason else ""
        return NetworkError(f"{what}: {hub.endpoint} cannot be reached: {reason}{hint}")
    if isinstance(error, OSError) and error.errno is not None:
        return ZooError(f"{what}: cannot be kept in {hub.cache}: {error.strerror}")
    if isinstance(error, OSError | RuntimeError) or type(error) is ValueError:
        return NetworkError(f"{what}: {hub.endpoint}: {reason}")
    hint = "; perhaps a login page of this network answers" if isinstance(error, json.JSONDecodeError) else ""
    return NetworkError(f"{what}: {hub.endpoint} does not answer like a Hub ({type(error).__name__}: {reason}){hint}")


def may_be_done(error: Exception) -> bool:
    """Tell if a request that failed may have been carried out: its answer was lost, or the host gave none in time."""
    if isinstance(error, HfHubHTTPError):
        return _is_busy(error)
    return isinstance(error, HTTPError)


def _scrub(error: BaseException | None) -> None:
    """Remove secrets from an error and its causes, which a traceback would show."""
    while error is not None:
        error.args = tuple(redact(part) if isinstance(part, str) else part for part in error.args)
        error = error.__cause__ or error.__context__


def _of_status(hub: Hub, what: str, error: HfHubHTTPError) -> ZooError:
    status, asker = error.response.status_code, hub.api.token or known_token()
    log_in = "" if asker else f"; {_LOG_IN}"
    if isinstance(error, GatedRepoError):
        return AccessError(f"{what}: gated; ask for access at {hub.endpoint}/{what.partition('@')[0]}{log_in}")
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(f"{what}: no such repository at {hub.endpoint}, or it is private{log_in}")
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(f"{what}: the repository has no such branch, tag or commit")
    if isinstance(error, RemoteEntryNotFoundError):
        return NotFoundError(f"{what}: no such file in the repository")
    said = _first_line(error.server_message or error)
    if status == 401:
        return AccessError(f"{what}: {hub.endpoint} does not accept the token ({said}); {_LOG_IN}")
    if status == 403:
        return AccessError(f"{what}: no access ({said}){log_in or '; use a token with the right to do this'}")
    if status in (409, 412):
        return ZooError(f"{what}: changed by somebody else meanwhile (status {status}); look at it and try again")
    if status >= 500 or status in _TRY_LATER:
        asked_s = _asked_pause_s(error)
        again = f"again in {asked_s:,.0f} s" if asked_s else "again later"
        return NetworkError(f"{what}: {hub.endpoint} cannot answer at the moment (status {status}); try {again}")
    return ZooError(f"{what}: {hub.endpoint} refused (status {status}): {said}")


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return redact(lines[0]) if lines else type(error).__name__


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def git_id(content: bytes) -> str:
    """The id that git, and with it the Hub, gives a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def has_id(content: bytes | Path, id_: str) -> bool:
    """Compare the content of a file, or a file, with its id: git's of a small file, the SHA-256 of a large one."""
    if len(id_) == 40:
        return id_ == git_id(content.read_bytes() if isinstance(content, Path) else content)
    return id_ == (sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest())


def cached_id(path: Path) -> str:
    """The id of a file in the cache, to which its name links; empty where the system knows no links."""
    return Path(os.readlink(path)).name if path.is_symlink() else ""


def drop(path: Path) -> None:
    """Remove a file from the cache, with all that its name links to."""
    while True:
        target = path.parent / os.readlink(path) if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = target
