"""Fetch bundles from the Hub; needs no torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.errors import AccessError, BundleError, NetworkError, NotFoundError, ZooError
from zoo.files import write_errors
from zoo.hub.client import connect
from zoo.hub.config import CONFIG_FILE, WEIGHTS_FILE
from zoo.hub.pull import OPTIONAL_FILES, Pulled, pull, pull_config
from zoo.hub.reference import parse_reference

_FILES = (CONFIG_FILE, WEIGHTS_FILE, *OPTIONAL_FILES)


def fetch(reference: str, *, offline: bool = False, quiet: bool = False, optional: bool = True) -> Pulled:
    """Fetch and verify a bundle.

    Args:
        reference: ``owner/name`` or ``owner/name@revision``.
        offline: use the cache alone.
        quiet: show no progress; remarks on what was used instead of the latest are still made.
        optional: fetch the card and the picture too.

    Raises:
        ZooError: if it does not exist, may not be read, cannot be reached or is damaged.
    """
    return pull(connect(offline=offline, quiet=quiet), parse_reference(reference), optional=optional)


def fetch_config(reference: str, *, offline: bool = False, quiet: bool = False) -> Pulled:
    """Fetch the configuration of a bundle alone.

    Raises:
        ZooError: as :func:`fetch`.
    """
    return pull_config(connect(offline=offline, quiet=quiet), parse_reference(reference))


@contextmanager
def name_or_folder(reference: str) -> Iterator[None]:
    """Add to an error of the Hub that there is no folder of this name either; ``runs/mine`` may mean both.

    Raises:
        ZooError: the error, of the same class.
    """
    try:
        yield
    except (NotFoundError, AccessError, NetworkError) as error:
        hint = f"for the folder pass Path({reference!r})" if Path(reference).is_dir() else "nor is there such a folder"
        raise type(error)(f"{error}; {hint}") from error


def copy_bundle(pulled: Pulled, out: Path) -> None:
    """Copy a bundle out of the cache: the whole folder appears at once or not at all.

    A folder that already holds exactly these files is left alone.

    Raises:
        BundleError: if the folder holds something else.
        ZooError: if it cannot be written.
    """
    names = [name for name in _FILES if (pulled.folder / name).is_file()]
    with write_errors(out, ZooError):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if all((out / n).is_file() and _same(out / n, pulled.folder / n) for n in names):
                return
            raise BundleError(f"{out}: already there and not this bundle; choose another --to")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            staged = Path(scratch) / out.name
            staged.mkdir()
            for name in names:
                shutil.copyfile(pulled.folder / name, staged / name)
            staged.rename(out)


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
