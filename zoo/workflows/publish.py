"""From a run directory or a bundle to a repository on the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from zoo.errors import BundleError, ZooError
from zoo.files import read_regular
from zoo.hub import push as hub_push
from zoo.hub.card import card_faults, is_generated
from zoo.hub.client import connect, warn
from zoo.hub.config import CARD_FILE, CONFIG_FILE, CURVES_FILE, PROBE_FILE, WEIGHTS_FILE, read_config
from zoo.hub.push import Content, Options, Published, inspect
from zoo.hub.reference import DEFAULT_REVISION, ReferenceFormatError, check_new_ref, check_repo_id
from zoo.json_object import MAX_JSON_BYTES
from zoo.workflows.card import bundle_card, prepare_bundle
from zoo.workflows.save import check_bundle

_FILES = (CONFIG_FILE, WEIGHTS_FILE, PROBE_FILE, CARD_FILE, CURVES_FILE)
_SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY")


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
    dry_run: bool = False,
    token: str | None = None,
    quiet: bool = True,
) -> Published:
    """Publish a bundle or a finished run on the Hub, in one commit: ``zoo.push("runs/mine", "me/mine")``.

    Args:
        source: a folder that ``zoo.save`` or ``zoo.train`` wrote; a run is exported first.
        repo_id: ``owner/name``; created if there is no such repository.
        license: of the model, as the Hub names it, such as "apache-2.0"; None: "mit".
        private: a repository that has to be created is private; one that is public is refused.
        tag: also set this tag. One that exists elsewhere is never moved.
        branch: commit to this branch; created at the main one if it is not there.
        message: title of the commit.
        create_pr: open a pull request instead of committing.
        replace_card: render README.md anew even if it was written by hand.
        dry_run: check everything and send nothing.
        token: for the Hub; None: the one of ``hf auth login`` or HF_TOKEN.
        quiet: show no progress.

    Raises:
        ZooError: as :func:`publish`.
    """
    if not isinstance(source, str | os.PathLike):
        raise BundleError(
            f"expected the folder of a run or a bundle, got {type(source).__name__}; zoo.save writes a model"
        )
    options = Options(private, tag, branch, message, create_pr, dry_run)
    return publish(Path(source), repo_id, options, license=license, replace_card=replace_card, token=token, quiet=quiet)


def publish(
    source: Path,
    repo_id: str,
    options: Options,
    *,
    license: str | None = None,
    replace_card: bool = False,
    token: str | None = None,
    quiet: bool = False,
) -> Published:
    """Publish a bundle, or the bundle of a finished run, in one commit.

    A README.md that was written by hand, here or on the Hub, is kept unless ``replace_card``; one here wins.

    Args:
        source: a bundle or a run directory; a run is exported first.
        repo_id: ``owner/name``; created if there is no such repository.
        options: how.
        license: of the model, in a rendered README.md; None: "mit". One written by hand has to name it itself.
        replace_card: publish a freshly rendered README.md whatever there is.
        token: for the Hub; None: the user's.
        quiet: show no progress.

    Raises:
        BundleError: if a file is missing, damaged, a link, or not fit to be published.
        AccessError: if the user may not write there.
        NetworkError: if the Hub cannot be reached.
        ZooError: if the tag exists elsewhere or the repository was changed meanwhile.
    """
    name, at, revision = repo_id.partition("@")
    check_repo_id(name)
    if at:
        raise ReferenceFormatError(f"{repo_id}: expected owner/name alone; to tag what is published: --tag {revision}")
    if options.tag:
        check_new_ref(options.tag, "tag")
    check_new_ref(options.branch, "branch")
    if options.create_pr and options.branch != DEFAULT_REVISION:
        raise ZooError("a pull request has a branch of its own; leave --branch or --create-pr out")
    # Everything that can be checked here is checked before the first request to the Hub.
    folder = prepare_bundle(source)
    _refuse_links(folder)
    config = read_config(folder)
    check_bundle(folder)
    hub = connect(quiet=quiet, token=token)
    target = inspect(hub, repo_id, _FILES, options)
    fresh = bundle_card(folder, config, repo_id=repo_id, license=license or "mit")
    card = fresh if replace_card else _choose_card(folder, repo_id, target.card, fresh)
    faults = card_faults(card, config)
    if license is not None and f"\nlicense: {license}\n" not in card:
        faults.append(f"was written by hand and does not name license: {license}")
    if faults:
        raise BundleError(f"{folder}: {CARD_FILE}: {'; '.join(faults)}; see: revgnn-zoo card {folder} --check")
    files: dict[str, Content] = {
        CONFIG_FILE: read_regular(folder / CONFIG_FILE, max_bytes=MAX_JSON_BYTES),
        **{name: folder / name for name in config.files},
        CARD_FILE: card.encode(),
    }
    if (folder / CURVES_FILE).is_file():
        files[CURVES_FILE] = folder / CURVES_FILE
    for name, content in files.items():
        if isinstance(content, bytes):
            _refuse_secrets(f"{folder}: {name}", content.decode())
    return hub_push.push(hub, target, files, options)


def _refuse_links(folder: Path) -> None:
    """Refuse links, whose targets may lie anywhere and would be published."""
    for name in _FILES:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise BundleError(f"{path}: a link or not a regular file; only regular files of the bundle are published")


def _refuse_secrets(where: str, text: str) -> None:
    if _SECRET.search(text):
        raise BundleError(f"{where}: holds what looks like an access token or a key; remove it before publishing")
    # In a container the home folder may be /, which occurs in any text.
    if (home := str(Path.home())) != "/" and home in text:
        raise BundleError(f"{where}: names your home folder {home}; remove it before publishing")


def _choose_card(folder: Path, repo_id: str, remote: str | None, fresh: str) -> str:
    """The card to publish: one written by hand, here before there, else the fresh one."""
    path = folder / CARD_FILE
    local = read_regular(path, max_bytes=1 << 20).decode(errors="replace") if path.is_file() else ""
    if local and not is_generated(local):
        return local
    if remote is not None and remote.strip() and not is_generated(remote):
        warn(f"{repo_id}: its {CARD_FILE} was written by hand and is kept; --replace-card renders a new one")
        return remote
    return fresh
