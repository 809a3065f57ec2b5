"""Signatures of bundles: a file beside the others, by the OpenSSF package ``model-signing`` with a key, offline.

Source: https://github.com/sigstore/model-transparency.
"""

from __future__ import annotations

from pathlib import Path

from zoo.errors import BundleError
from zoo.hub.config import CONFIG_FILE, SIGNATURE_FILE, read_config


def sign(folder: Path, key: Path) -> None:
    """Sign ``config.json`` and the files that it names with a private key, a PEM file of an elliptic curve."""
    _run(folder, key, is_check=False)


def check_signature(folder: Path, key: Path) -> None:
    """Raise a BundleError if a bundle was not signed by the owner of a public key, a PEM file."""
    if not (folder / SIGNATURE_FILE).is_file():
        raise BundleError(f"{folder}: not signed: it has no {SIGNATURE_FILE}")
    _run(folder, key, is_check=True)


def _run(folder: Path, key: Path, *, is_check: bool) -> None:
    signed = {CONFIG_FILE, *read_config(folder).files}
    # All else in the folder is left out by name, so that a signature which does not cover one of these does not fit.
    others = [path for path in folder.iterdir() if path.name not in signed]
    try:
        from model_signing import hashing, signing, verifying

        # The cache of the Hub keeps files as links.
        config = hashing.Config().set_ignored_paths(paths=others).set_allow_symlinks(True)
        if is_check:
            owner = verifying.Config().use_elliptic_key_verifier(public_key=key)
            owner.set_hashing_config(config).verify(folder, folder / SIGNATURE_FILE)
        else:
            author = signing.Config().use_elliptic_key_signer(private_key=key)
            author.set_hashing_config(config).sign(folder, folder / SIGNATURE_FILE)
    except ImportError as error:
        raise BundleError("signatures need another package; try: pip install 'revgnn-zoo[sign]'") from error
    # The package and the cryptography below it raise errors of many types, some without words.
    except Exception as error:
        fault = "its signature does not fit" if is_check else "cannot be signed with"
        raise BundleError(f"{folder}: {fault} {key}: {error!r:.200}") from error
