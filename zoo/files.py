"""Files that are either whole or absent, locks between processes, and digests: what everything on disk is built on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import secrets
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from zoo.errors import ZooError, ZooWarning

_CHUNK_BYTES = 1 << 20
# Windows has only O_BINARY, other systems only the other two.
_OPEN_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def write_errors(path: Path, error: type[ZooError]) -> AbstractContextManager[None]:
    """Turn an OSError while a file or folder is written into one line: "PATH: cannot be written: REASON"."""
    return _os_errors(f"{path}: cannot be written", error)


def read_errors(path: Path, error: type[ZooError]) -> AbstractContextManager[None]:
    """Turn an OSError while a file is read into one line: "PATH: cannot be read: REASON"."""
    return _os_errors(f"{path}: cannot be read", error)


@contextlib.contextmanager
def _os_errors(message: str, error: type[ZooError]) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise error(f"{message}: {cause.strerror or cause}") from cause


@contextlib.contextmanager
def atomic_path(path: Path, error: type[ZooError]) -> Iterator[Path]:
    """Replace a file so that a reader, and a crash at any moment, finds the old content or the new, never a mixture.

    Yields:
        A path to write the new content to. It takes the place of ``path`` at the end; if anything fails, it is removed
        and the old file stays.

    Raises:
        error: if the content cannot be stored.
    """
    # In the same folder, because a rename cannot cross file systems.
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    with write_errors(path, error):
        try:
            yield temporary
            # Without this, a power cut after the rename could leave the new name with none of its bytes.
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def atomic_write(path: Path, chunks: Iterable[bytes | memoryview], error: type[ZooError]) -> None:
    """Write a file, in a folder that exists, whole or not at all.

    Raises:
        error: if the content cannot be stored; the old file is then untouched.
    """
    # "x" refuses a file or a link that is already there.
    with atomic_path(path, error) as temporary, open(temporary, "xb") as file:
        file.writelines(chunks)


def write_json(path: Path, data: Mapping[str, Any], error: type[ZooError]) -> None:
    """Write a JSON object, readable by people, whole or not at all.

    Raises:
        error: if it cannot be stored.
        ValueError: if a number is not finite.
    """
    atomic_write(path, [json.dumps(data, indent=2, allow_nan=False).encode() + b"\n"], error)


def make_folder(folder: Path, error: type[ZooError]) -> None:
    """Create a folder and its parents where they are not there.

    Raises:
        error: if that cannot be done.
    """
    with write_errors(folder, error):
        folder.mkdir(parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut.

    Raises:
        OSError: if the folder cannot be opened or written.
    """
    if os.name == "nt":
        # Windows opens no folders, and writes names before a rename returns.
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder; the files in it are still flushed.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; a pipe or a device is refused without waiting for it.

    Raises:
        OSError: if it cannot be opened or is something else; ``strerror`` says which.
    """
    descriptor = os.open(path, os.O_RDONLY | _OPEN_FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "not a regular file", str(path))
    return open(descriptor, "rb")


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """The first ``max_bytes`` + 1 bytes of a regular file, so that the caller can tell what is too large.

    Raises:
        OSError: as :func:`open_regular`.
    """
    with open_regular(path) as file:
        return file.read(max_bytes + 1)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a regular file.

    Raises:
        OSError: as :func:`open_regular`.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path, error: type[ZooError], *, advice: str | None = None) -> Iterator[None]:
    """Hold a lock that one process at a time can have; the end of the process, however it comes, gives it back.

    Args:
        path: the lock file, which stays behind and names its last owner; its folder must be writable.
        error: class of the error to raise.
        advice: what to do if another process holds the lock; it completes the error message. None: wait for it.

    Raises:
        error: if the lock file cannot be written, or "FOLDER: in use by process N on MACHINE; ADVICE".
    """
    # Imported here, because commands that only read would wait for it.
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    with write_errors(path, error):
        # Releases of filelock before 4.0 empty the file whenever they try, so look at it first.
        owner = _owner(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            owner = _owner(path) or owner or "(unknown)"
            if advice is not None:
                raise error(f"{path.parent}: in use by process {owner}; {advice}") from None
            warnings.warn(f"{path.parent}: waiting for process {owner}", ZooWarning, stacklevel=4)
            lock.acquire()
        except (NotImplementedError, OSError) as cause:
            if getattr(cause, "errno", errno.ENOSYS) not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            raise error(f"{path.parent}: the file system has no locks; choose a folder on another disk") from cause
    try:
        with write_errors(path, error):
            path.write_text(f"{os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def _owner(path: Path) -> str:
    """The process id and the machine in a lock file; empty if there is none."""
    return read_regular(path, max_bytes=200).decode("utf-8", "replace").strip() if path.is_file() else ""
