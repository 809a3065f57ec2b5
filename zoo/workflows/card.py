"""The card of a bundle, rendered from its configuration and its learning curves."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import BundleError, ZooError
from zoo.files import atomic_write, read_errors, read_regular
from zoo.hub.card import is_current, render_card
from zoo.hub.config import CARD_FILE, CONFIG_FILE, CURVES_FILE, read_config
from zoo.workflows.export import export
from zoo.workflows.load import is_run
from zoo.workflows.plot import plot
from zoo.workflows.run_dir import RunDir

_MAX_CARD_BYTES = 1 << 20


def prepare_bundle(source: Path) -> Path:
    """The bundle that a folder is or, if it is a finished run, gives: exported, with the picture of its curves.

    Raises:
        RunError: if the run is not finished.
        BundleError: if the bundle cannot be written.
    """
    if not is_run(source):
        return source
    folder, _ = export(source)
    picture = folder / CURVES_FILE
    # exists() is false for a dangling link, and plotting would write to wherever it points.
    if not picture.exists() and not picture.is_symlink():
        plot(RunDir(source), picture)
    return folder


def read_card(folder: Path) -> str:
    """README.md of a bundle; empty if it has none.

    Raises:
        BundleError: if it cannot be read.
    """
    path = folder / CARD_FILE
    with read_errors(path, BundleError):
        return read_regular(path, max_bytes=_MAX_CARD_BYTES).decode("utf-8", "replace") if path.is_file() else ""


def write_card(source: Path, *, license: str = "", replace: bool = False) -> Path:
    """Render README.md of a bundle, or of the bundle of a finished run.

    Of one that somebody wrote or edited, the words are kept, and of any the license.

    Args:
        source: the bundle or the run.
        license: of the model, as the Hub names it; empty: the one that README.md names.
        replace: render the words anew too.

    Returns:
        The file.

    Raises:
        BundleError: if there is no whole bundle, or the metadata of README.md cannot be read.
    """
    folder = prepare_bundle(source)
    has_curves, old, path = (folder / CURVES_FILE).is_file(), read_card(folder), folder / CARD_FILE
    try:
        card = render_card(read_config(folder), has_curves=has_curves, license=license, old=old, replace=replace)
    except ValueError as error:
        raise BundleError(f"{path}: {error}; mend it, or --replace it") from error
    atomic_write(path, [card.encode()], BundleError)
    return path


def check_card(source: Path) -> Path:
    """Check README.md of a bundle, or of the bundle of a finished run; nothing is written.

    Returns:
        The file.

    Raises:
        ZooError: if it is missing, cannot be read, or does not say what config.json says.
    """
    folder = source if not is_run(source) else RunDir(source).bundle_path
    if not folder.is_dir():
        raise BundleError(f"{source}: the run has no bundle yet; first: revgnn-zoo card {source}")
    config, path = read_config(folder), folder / CARD_FILE
    if not path.is_file():
        raise ZooError(f"{folder}: it has no {CARD_FILE}; write it with: revgnn-zoo card {folder}")
    try:
        is_renewed = is_current(read_card(folder), config, has_curves=(folder / CURVES_FILE).is_file())
    except ValueError as error:
        raise ZooError(f"{path}: {error}") from error
    if not is_renewed:
        raise ZooError(f"{path}: does not say what {CONFIG_FILE} says; renew it with: revgnn-zoo card {folder}")
    return path
