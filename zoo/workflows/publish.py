"""From a run directory or a bundle to a repository on the Hub, and the card of the bundle."""

from __future__ import annotations

import os
import re
from pathlib import Path

from zoo.errors import BundleError, ZooError
from zoo.files import atomic_write, read_errors, read_regular
from zoo.hub import push as hub_push
from zoo.hub import sign as hub_sign
from zoo.hub.card import (
    BENCHMARK_FILE,
    is_current,
    is_generated,
    license_of,
    render_benchmark,
    render_card,
    renew_benchmark,
)
from zoo.hub.client import connect, warn
from zoo.hub.config import CARD_FILE, CONFIG_FILE, CURVES_FILE, FILES, SIGNATURE_FILE, BundleConfig, read_config
from zoo.hub.push import Content, Options, Published, Target, inspect
from zoo.hub.reference import DEFAULT_REVISION, ReferenceFormatError, check_new_ref, check_repo_id
from zoo.json_object import MAX_JSON_BYTES
from zoo.workflows.export import check_bundle, export
from zoo.workflows.load import is_run
from zoo.workflows.plot import plot
from zoo.workflows.run_dir import RunDir

_MAX_CARD_BYTES = 1 << 20
_SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def push(
    source: str | os.PathLike[str],
    repo_id: str,
    *,
    license: str | None = None,
    private: bool = False,
    tag: str = "",
    branch: str = DEFAULT_REVISION,
    message: str = "",
    create_pr: bool = False,
    replace_card: bool = False,
    benchmark: str = "",
    sign: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    token: str | None = None,
    quiet: bool = True,
) -> Published:
    """Publish a bundle or a finished run on the Hub, in one commit: ``zoo.push("runs/mine", "me/mine")``.

    A README.md that was written by hand, here or on the Hub, keeps its words unless ``replace_card``; one here wins.
    Its metadata and its table are renewed, but for the license and what else its owner added.

    Args:
        source: a folder that ``zoo.save`` or ``zoo.train`` wrote; a run is exported first.
        repo_id: ``owner/name``; created if there is no such repository.
        license: of the model, as the Hub names it, such as "apache-2.0"; None: the one that README.md names, if any.
        private: a repository that has to be created is private; one that is public is refused.
        tag: also set this tag. One that exists elsewhere is never moved.
        branch: commit to this branch; created at the main one if it is not there.
        message: title of the commit.
        create_pr: open a pull request instead of committing.
        replace_card: render README.md anew even if somebody wrote its words.
        benchmark: ``owner/dataset:task`` on the Hub, on whose leaderboard the test figure is entered, in the unit in
            which ``config.json`` has it; empty: the one where it is entered already, if any.
        sign: a private key of an elliptic curve in PEM, to sign the bundle with; needs ``revgnn-zoo[sign]``.
        dry_run: check everything and send nothing.
        token: for the Hub; None: the one of ``hf auth login`` or HF_TOKEN.
        quiet: show no progress.

    Raises:
        BundleError: if a file is missing, damaged, a link, or not fit to be published, or the model fails its probe.
        AccessError: if the user may not write there.
        NetworkError: if the Hub cannot be reached.
        ZooError: if the tag exists elsewhere or the repository was changed meanwhile.
    """
    if not isinstance(source, str | os.PathLike):
        raise BundleError(f"expected the folder of a run or a bundle, got {type(source).__name__}; zoo.save writes one")
    options = Options(private, tag, branch, message, create_pr, dry_run)
    name, at, revision = repo_id.partition("@")
    check_repo_id(name)
    if at:
        raise ReferenceFormatError(f"{repo_id}: expected owner/name alone; to tag what is published: --tag {revision}")
    if license is not None and not _LICENSE.fullmatch(license):
        raise ZooError(f"license {license!r}: expected its identifier on the Hub, such as mit or apache-2.0")
    if options.tag:
        check_new_ref(options.tag, "tag")
    check_new_ref(options.branch, "branch")
    if options.create_pr and options.branch != DEFAULT_REVISION:
        raise ZooError("a pull request has a branch of its own; leave --branch or --create-pr out")
    # Everything that can be checked here is checked before the first request to the Hub.
    folder = prepare_bundle(Path(source))
    _refuse_links(folder)
    config = read_config(folder)
    check_bundle(folder)
    entry = render_benchmark(config, benchmark) if benchmark else ""
    if sign is not None:
        hub_sign.sign(folder, Path(sign))
    hub = connect(quiet=quiet, token=token)
    target = inspect(hub, repo_id, (*FILES, BENCHMARK_FILE), options)
    card = _merged_card(folder, config, target, license=license or "", replace=replace_card)
    files: dict[str, Content] = {
        CONFIG_FILE: read_regular(folder / CONFIG_FILE, max_bytes=MAX_JSON_BYTES),
        **{name: folder / name for name in config.files},
        CARD_FILE: card.encode(),
    }
    if entry := entry or renew_benchmark(config, target.benchmark):
        files[BENCHMARK_FILE] = entry.encode()
    files |= {name: folder / name for name in (CURVES_FILE, SIGNATURE_FILE) if (folder / name).is_file()}
    for name, content in files.items():
        if isinstance(content, bytes):
            _refuse_secrets(f"{folder}: {name}", content.decode())
    return hub_push.push(hub, target, files, options)


def _refuse_links(folder: Path) -> None:
    """Refuse links, whose targets may lie anywhere and would be published."""
    for name in FILES:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise BundleError(f"{path}: a link or not a regular file; only regular files of the bundle are published")


def _refuse_secrets(where: str, text: str) -> None:
    if _SECRET.search(text):
        raise BundleError(f"{where}: holds what looks like an access token or a key; remove it before publishing")
    # In a container the home folder may be /, which occurs in any text.
    if (home := str(Path.home())) != "/" and home in text:
        raise BundleError(f"{where}: names your home folder {home}; remove it before publishing")


def _merged_card(folder: Path, config: BundleConfig, target: Target, *, license: str, replace: bool) -> str:
    """The card to publish: the words of one written by hand, here before there, with what config.json says."""
    local, there = read_card(folder), f"{target.repo_id}: its {CARD_FILE}"
    is_local = bool(local.strip()) and (not is_generated(local) or not target.card)
    old, where = (local, str(folder / CARD_FILE)) if is_local else (target.card, there)
    license = license or license_of(old) or license_of(local) or license_of(target.card)
    has_curves = (folder / CURVES_FILE).is_file()
    repo_id = target.repo_id
    card = render_card(
        config, repo_id=repo_id, has_curves=has_curves, license=license, old=old, where=where, replace=replace
    )
    if not license:
        warn(f"{repo_id}: the model has no license, so nobody may use it; to choose one: --license apache-2.0")
    return card


def prepare_bundle(source: Path) -> Path:
    """The bundle that a folder is or, if it is a finished run, gives: exported, with a picture of its curves."""
    if not is_run(source):
        return source
    folder, _ = export(source)
    picture = folder / CURVES_FILE
    # exists() is false for a dangling link, and plotting would write to wherever it points.
    if not picture.exists() and not picture.is_symlink():
        plot(RunDir(source), picture)
    return folder


def read_card(folder: Path) -> str:
    """README.md of a bundle; empty if it has none."""
    path = folder / CARD_FILE
    with read_errors(path, BundleError):
        return read_regular(path, max_bytes=_MAX_CARD_BYTES).decode("utf-8", "replace") if path.is_file() else ""


def write_card(source: Path, *, license: str = "", replace: bool = False) -> Path:
    """Render README.md of a bundle, or of the bundle of a finished run, and return its path.

    Of one that somebody wrote or edited, the words are kept unless ``replace``, and of any the license unless another
    is given.

    Raises:
        BundleError: if there is no whole bundle, or the metadata of README.md cannot be read.
    """
    folder = prepare_bundle(source)
    path, has_curves = folder / CARD_FILE, (folder / CURVES_FILE).is_file()
    old, where = read_card(folder), str(path)
    config = read_config(folder)
    card = render_card(config, has_curves=has_curves, license=license, old=old, where=where, replace=replace)
    atomic_write(path, [card.encode()], BundleError)
    return path


def check_card(source: Path) -> Path:
    """Check README.md of a bundle, or of the bundle of a finished run, and return its path; nothing is written.

    Raises:
        ZooError: if it is missing, cannot be read, or does not say what config.json says.
    """
    folder = source if not is_run(source) else RunDir(source).bundle_path
    if not folder.is_dir():
        raise BundleError(f"{source}: the run has no bundle yet; first: revgnn-zoo card {source}")
    config, path = read_config(folder), folder / CARD_FILE
    if not path.is_file():
        raise ZooError(f"{folder}: it has no {CARD_FILE}; write it with: revgnn-zoo card {folder}")
    has_curves = (folder / CURVES_FILE).is_file()
    if not is_current(read_card(folder), config, has_curves=has_curves, where=str(path)):
        raise ZooError(f"{path}: does not say what {CONFIG_FILE} says; renew it with: revgnn-zoo card {folder}")
    return path
