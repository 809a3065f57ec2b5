"""The card of a bundle, rendered from its configuration and its learning curves."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import BundleError, ZooError
from zoo.files import atomic_write, read_errors, read_regular
from zoo.hub.card import card_faults, is_generated, render_card
from zoo.hub.config import CARD_FILE, CURVES_FILE, BundleConfig, read_config
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


def bundle_card(folder: Path, config: BundleConfig, *, repo_id: str = "", license: str = "mit") -> str:
    """The freshly rendered card of a bundle."""
    return render_card(config, repo_id=repo_id, license=license, has_curves=(folder / CURVES_FILE).is_file())


def write_card(source: Path, *, replace: bool = False) -> Path:
    """Render README.md of a bundle, or of the bundle of a finished run.

    Args:
        source: the bundle or the run.
        replace: overwrite a README.md that was written or edited by hand.

    Returns:
        The file.

    Raises:
        BundleError: if there is no whole bundle, or a README.md written by hand stands there.
    """
    folder = prepare_bundle(source)
    card, path = bundle_card(folder, read_config(folder), repo_id=""), folder / CARD_FILE
    if path.is_file() and not replace and not is_generated(_read(path)):
        raise BundleError(f"{path}: was written or edited by hand; --replace overwrites it")
    atomic_write(path, [card.encode()], BundleError)
    return path


def check_card(source: Path) -> Path:
    """Check README.md of a bundle, or of the bundle of a finished run; nothing is written.

    Returns:
        The file.

    Raises:
        ZooError: with everything that it lacks, one a line.
    """
    folder = source if not is_run(source) else RunDir(source).bundle_path
    if not folder.is_dir():
        raise BundleError(f"{source}: the run has no bundle yet; first: revgnn-zoo card {source}")
    config, path = read_config(folder), folder / CARD_FILE
    if not path.is_file():
        raise ZooError(f"{folder}: it has no {CARD_FILE}; write it with: revgnn-zoo card {folder}")
    text = _read(path)
    faults = card_faults(text, config)
    if is_generated(text) and text != bundle_card(folder, config):
        faults.append(f"out of date; write it again with: revgnn-zoo card {folder}")
    if faults:
        raise ZooError("\n".join(f"{path}: {fault}" for fault in faults))
    return path


def _read(path: Path) -> str:
    with read_errors(path, BundleError):
        return read_regular(path, max_bytes=_MAX_CARD_BYTES).decode("utf-8", "replace")
