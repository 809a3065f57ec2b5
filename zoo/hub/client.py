"""The Hub's own client as the zoo uses it: which host, which token, and errors in one line with an exit code.

``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean to ``huggingface_hub``, which
reads them. A token goes to the host that the user has set, and over plain HTTP to this machine alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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

import zoo
from zoo.errors import AccessError, NetworkError, NotFoundError, ZooError, ZooWarning

LIBRARY = "revgnn-zoo"
# The base of all errors of the HTTP library, whose name depends on the version of the client.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_LOG_IN = "log in with 'hf auth login' or set HF_TOKEN"
_TRY_LATER = (408, 416, 429)


@dataclass(frozen=True)
class Hub:
    """A host and the options of requests to it.

    Attributes:
        api: the client, which holds the token.
        endpoint: the host.
        cache: where the client keeps what it downloads.
        is_offline: whether only the cache may be asked.
    """

    api: HfApi
    endpoint: str
    cache: Path
    is_offline: bool


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
        AccessError: if the host would be reached over plain HTTP, where anyone on the way can change what arrives.
    """
    endpoint = constants.ENDPOINT
    url = urlsplit(endpoint)
    if not (url.scheme == "https" or (url.scheme == "http" and _is_this_machine(url.hostname or ""))):
        if url.scheme != "http" or os.environ.get("ZOO_ALLOW_HTTP") != "1":
            raise AccessError(
                f"HF_ENDPOINT={endpoint}: only https:// is trusted, or a host on this machine; "
                "ZOO_ALLOW_HTTP=1 reads over http:// all the same, without a token"
            )
        token = False
    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    api = HfApi(endpoint=endpoint, token=token, library_name=LIBRARY, library_version=zoo.__version__)
    return Hub(api, endpoint, Path(cache_dir or constants.HF_HUB_CACHE), offline or bool(constants.HF_HUB_OFFLINE))


def warn(text: str) -> None:
    """Warn the user, without secrets."""
    warnings.warn(redact(text), ZooWarning, stacklevel=3)


def redact(text: str) -> str:
    """The text without access tokens."""
    token = get_token()
    return _TOKEN.sub("hf_***", text.replace(token, "hf_***") if token else text)


@contextlib.contextmanager
def plain_errors(hub: Hub, what: str) -> Iterator[None]:
    """Turn errors of the client into errors of the zoo.

    Args:
        hub: the host that is asked.
        what: the repository or the file that is asked for, named in the error.

    Raises:
        NotFoundError: what is asked for does not exist.
        AccessError: the user may not read or write it.
        NetworkError: the host could not be reached, or cannot answer at the moment.
        ZooError: this machine cannot store what arrives.
    """
    try:
        yield
    except ZooError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise translate(hub, what, error) from error


def translate(hub: Hub, what: str, error: BaseException) -> ZooError:
    """The error of the zoo that stands for an error of the client."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return translate(hub, what, error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return _of_status(hub, what, error)
    reason = _first_line(error)
    if isinstance(error, HTTPError | ConnectionError | TimeoutError | FileMetadataError | LocalEntryNotFoundError):
        hint = "; if it has no xet storage, set HF_HUB_DISABLE_XET=1" if "xet" in reason else ""
        return NetworkError(f"{what}: {hub.endpoint} cannot be reached: {reason}{hint}")
    if isinstance(error, OSError) and error.errno is not None:
        return ZooError(f"{what}: cannot be kept in {hub.cache}: {error.strerror}")
    return NetworkError(f"{what}: {hub.endpoint}: {reason}")


def is_unreachable(error: BaseException) -> bool:
    """Tell if the connection failed, so that the request may or may not have been carried out."""
    return isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)


def _of_status(hub: Hub, what: str, error: HfHubHTTPError) -> ZooError:
    status, asker = error.response.status_code, hub.api.token or get_token()
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
        return NetworkError(f"{what}: {hub.endpoint} cannot answer at the moment (status {status}); try again later")
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
