"""Fetch bundles from the Hub; needs no torch."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.errors import AccessError, BundleError, NetworkError, NotFoundError, ZooError
from zoo.files import write_errors
from zoo.hub import pull as hub_pull
from zoo.hub.client import connect
from zoo.hub.config import CONFIG_FILE, FILES
from zoo.hub.pull import Pulled
from zoo.hub.reference import ReferenceFormatError, parse_reference


def fetch(reference: str, *, revision: str | None = None, optional: bool = True, **access: Any) -> Pulled:
    """Fetch and verify a bundle; see :func:`pull`. Without ``optional``, only the files that loading reads.

    ``access`` are the options of :func:`zoo.hub.client.connect`.

    Raises:
        ZooError: if it does not exist, may not be read, cannot be reached or is damaged.
    """
    return hub_pull.pull(connect(**access), parse_reference(reference, revision), optional=optional)


def pull(
    reference: str,
    to: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    update: bool = False,
) -> Path:
    """Fetch a model from the Hub, verify it, and return its folder: ``zoo.pull("owner/name@v1", "./mine")``.

    Args:
        reference: ``owner/name``, perhaps with ``@`` and a tag, a branch or a commit.
        to: copy the files to this folder; None: they stay in the cache.
        revision: a tag, a branch or a commit, if ``reference`` names none.
        token: for the Hub; None: the one of ``hf auth login`` or HF_TOKEN; False: none.
        cache_dir: where files are kept; None: the cache of ``huggingface_hub``.
        offline: use only what is in the cache, without network access.
        update: replace the bundle that ``to`` holds.

    Raises:
        ZooError: if it does not exist, may not be read, cannot be reached, is damaged, or if ``to`` is taken.
    """
    pulled = fetch(reference, revision=revision, token=token, cache_dir=cache_dir, offline=offline)
    if to is None:
        return pulled.folder
    copy_bundle(pulled, Path(to), update=update)
    return Path(to)


@contextmanager
def tried_as_folder() -> Iterator[None]:
    """Add to an error of the Hub that there is no such folder either; ``runs/mine`` may mean both."""
    try:
        yield
    except (NotFoundError, AccessError, NetworkError, ReferenceFormatError) as error:
        raise type(error)(f"{error}; nor is there such a folder") from error


def copy_bundle(pulled: Pulled, out: Path, *, update: bool = False) -> None:
    """Copy a bundle out of the cache: a new folder appears at once or not at all.

    A folder that holds exactly these files is left alone. With ``update`` it may be that of another bundle, whose files
    are replaced; other files stay.

    Raises:
        BundleError: if the folder holds something else.
        ZooError: if it cannot be written.
    """
    # The configuration comes first: until all files are there, a folder that is updated does not fit it.
    names = [name for name in FILES if (pulled.folder / name).is_file()]
    with write_errors(out, ZooError):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if all((out / n).is_file() and filecmp.cmp(out / n, pulled.folder / n, shallow=False) for n in names):
                return
            if not (update and (out / CONFIG_FILE).is_file()):
                hint = "; to replace the bundle there: --update" if (out / CONFIG_FILE).is_file() else ""
                raise BundleError(f"{out}: already there and not this bundle; choose another --to{hint}")
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the files, because a rename is atomic only within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out if out.exists() else out.parent) as scratch:
            staged = Path(scratch) / "bundle"
            staged.mkdir()
            for name in names:
                shutil.copyfile(pulled.folder / name, staged / name)
            if not out.exists():
                staged.rename(out)
                return
            for name in FILES:
                if name in names:
                    (staged / name).replace(out / name)
                else:
                    (out / name).unlink(missing_ok=True)
