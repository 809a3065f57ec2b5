"""Getting files from public places: whole or not at all, the same bytes each time, unpacked without surprises."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from zoo.errors import DataError
from zoo.files import locked, make_folder, write_json

TIMEOUT_S = 30.0
# ogbn-papers100M is the largest: 57 GB, and 83 GB unpacked.
MAX_DOWNLOAD_BYTES = 64 << 30
MAX_UNPACKED_BYTES = 128 << 30
MAX_MEMBERS = 10_000
CHECKSUMS = "checksums.json"

logger = logging.getLogger(__name__)


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the data sets, which need not exist yet.

    It is ``root`` if given; else the environment variable ZOO_DATA; else ``revgnn-zoo/data`` in the user's cache folder
    (XDG_CACHE_HOME, by default ``~/.cache``).

    Raises:
        DataError: if it begins with the ``~`` of a user that does not exist.
    """
    root = root or os.environ.get("ZOO_DATA")
    if not root:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "revgnn-zoo" / "data"
    try:
        return Path(root).expanduser().absolute()
    except RuntimeError as error:
        raise DataError(f"{root}: there is no such user's folder; change ZOO_DATA") from error


def check_free_space(folder: Path, required_bytes: int, purpose: str) -> None:
    """Refuse to start a large write that cannot end well; ``purpose`` completes "... is needed for".

    Raises:
        DataError: if the disk has less than that and a reserve of 64 MiB.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < required_bytes + (64 << 20):
        needed, free = f"{required_bytes / 2**30:.2f} GiB", f"{free_bytes / 2**30:.2f} GiB"
        raise DataError(f"{folder}: {needed} of disk space is needed for {purpose}, only {free} is free")


def download(url: str, path: Path, *, manual: str, max_bytes: int = MAX_DOWNLOAD_BYTES, record: bool = True) -> str:
    """Fetch one file over https; over http only if the environment variable ZOO_ALLOW_HTTP is 1.

    The first download of a URL records its SHA-256 in ``checksums.json`` beside the file; a later one must match.

    Args:
        url: http or https.
        path: where the file goes, in an existing folder; nothing is left there if the download fails.
        manual: what to do without network, for the error message.
        max_bytes: refuse more than this.
        record: record the SHA-256; else the caller does so with :func:`check_digest`, once it has opened the file.

    Returns:
        The SHA-256.

    Raises:
        DataError: if the file cannot be had, comes incomplete or differs from an earlier download.
    """
    reason: str = ""
    cause: Exception | None = None
    secure = f"https://{url.removeprefix('http://')}" if url.startswith("http://") else url
    is_http_allowed = os.environ.get("ZOO_ALLOW_HTTP") == "1"
    for address in dict.fromkeys([secure, url] if is_http_allowed else [secure]):
        if address != secure:
            logger.warning("%s cannot be had over https (%s); trying plain http", url, reason)
        try:
            return _fetch(address, path, url, max_bytes, record=record)
        except urllib.error.HTTPError as error:
            # The error holds the answer of the server, and with it the connection.
            error.close()
            reason, cause = str(error), error
        except (OSError, http.client.HTTPException) as error:
            reason, cause = str(getattr(error, "reason", None) or error or type(error).__name__), error
    if secure != url and not is_http_allowed:
        # Without TLS an attacker on the network could choose the first bytes, with which later downloads are compared.
        reason += "; over plain http only with ZOO_ALLOW_HTTP=1"
    raise DataError(f"{url}: cannot be downloaded ({reason}); {manual}") from cause


def _fetch(address: str, path: Path, url: str, max_bytes: int, *, record: bool) -> str:
    """Download from an address, checked against what is recorded for the URL."""
    request = urllib.request.Request(address, headers={"User-Agent": "revgnn-zoo"})
    part = None
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            length = response.headers.get("Content-Length")
            expected = int(length) if length is not None and length.isdigit() else None
            if expected is not None and expected > max_bytes:
                raise DataError(f"{url}: offers {expected:,} bytes, more than the {max_bytes:,} expected at most")
            check_free_space(path.parent, expected or 0, f"downloading {url}")
            digest, size = hashlib.sha256(), 0
            bar = tqdm(total=expected, desc=f"downloading {path.name}", unit="B", unit_scale=True, disable=None)
            with bar, tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
                part = Path(file.name)
                while block := response.read(1 << 20):
                    size += len(block)
                    if size > max_bytes:
                        raise DataError(f"{url}: sends more than the {max_bytes:,} bytes expected at most")
                    digest.update(block)
                    file.write(block)
                    bar.update(len(block))
        if expected is not None and size != expected:
            raise DataError(f"{url}: the download was cut at {size:,} of {expected:,} bytes; try again")
        with part.open("rb") as whole:
            if whole.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html")):
                raise DataError(f"{url}: a web page came in place of the file; does this network ask for a login?")
        check_digest(path.parent, url, digest.hexdigest(), record=record)
        part.chmod(0o644)
        part.replace(path)
        return digest.hexdigest()
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def check_digest(folder: Path, url: str, digest: str, *, record: bool) -> None:
    """Compare with the first download of this URL into this folder; if there was none, record it if asked to.

    Raises:
        DataError: if the digest is another one.
    """
    path = folder / CHECKSUMS
    with locked(folder / f".{CHECKSUMS}.lock", DataError):
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            recorded = known[url]["sha256"] if url in known else None
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a readable record of checksums; repair or remove it") from error
        if recorded is not None:
            if recorded != digest:
                raise DataError(
                    f"{url}: its content (sha256 {digest}) differs from the first download (sha256 {recorded}); "
                    f"if you trust the change, remove its entry from {path}"
                )
        elif record:
            write_json(path, {**known, url: {"sha256": digest}}, DataError)


def download_and_unpack(
    url: str, folder: Path, *, archive_folder: str, manual: str, needed: Callable[[Path], Iterable[Path]]
) -> None:
    """Fetch a zip archive and put one of its folders into place.

    Args:
        url: of the archive.
        folder: gets the content of the archive's folder; its parent must exist.
        archive_folder: the folder inside the archive.
        manual: what to do without network, for the error message.
        needed: the files that must be in the archive's folder, given where that is.

    Raises:
        DataError: if the archive cannot be had, is damaged or unsafe, or lacks the folder or a file.
    """
    make_folder(folder.parent, DataError)
    with locked(folder.parent / f".{folder.name}.lock", DataError):
        if folder.exists() and any(folder.iterdir()):
            # Another process was faster.
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            work = Path(temporary)
            # The checksums belong to the root folder, so the archive is kept there while it is needed.
            archive = folder.parent / f"{folder.name}.zip"
            try:
                digest = download(url, archive, manual=manual, record=False)
                unpack(archive, work, max_bytes=MAX_UNPACKED_BYTES)
            finally:
                archive.unlink(missing_ok=True)
            unpacked = work / archive_folder
            for path in (unpacked, *needed(unpacked)):
                if not path.exists():
                    raise DataError(f"{url}: the archive has no {path.relative_to(work)}; {manual}")
            # Recorded only now: what is no archive must not become what later downloads are compared with.
            check_digest(folder.parent, url, digest, record=True)
            if folder.exists():
                folder.rmdir()
            shutil.move(unpacked, folder)


def unpack(archive: Path, folder: Path, *, max_bytes: int) -> None:
    """Unpack a zip archive into an existing folder, refusing names that leave the folder and sizes beyond a budget.

    Raises:
        DataError: if the archive is damaged or unsafe; the folder may then hold some of its members.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            declared = sum(member.file_size for member in members)
            if len(members) > MAX_MEMBERS or declared > max_bytes:
                raise DataError(
                    f"{archive.name}: {len(members):,} members of {declared:,} bytes together; "
                    f"at most {MAX_MEMBERS:,} members and {max_bytes:,} bytes are unpacked"
                )
            for member in members:
                _check_member(archive, member)
            check_free_space(folder, declared, f"unpacking {archive.name}")
            # zipfile reads no more of a member than it declares, so that the sum above is the limit.
            for member in tqdm(members, desc=f"unpacking {archive.name}", unit=" files", disable=None, leave=False):
                opened.extract(member, folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive.name}: not a whole zip archive ({error}); try the download again") from error
    except ValueError as error:
        raise DataError(f"{archive.name}: not a valid zip archive ({error})") from error


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    parts = PurePosixPath(name).parts
    unsafe = not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name
    # The upper half of the external attributes is a Unix mode; anything but a plain file or folder is refused.
    kind = stat.S_IFMT(member.external_attr >> 16)
    if unsafe or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"{archive.name}: holds the unsafe member {name!r}; nothing was put into place")
