"""Signatures: made and checked with keys, without a network, over the files that decide what a model computes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import zoo
from tests.hub.bundles import REPO, content, with_weights
from tests.hub.client import ALICE
from tests.hub.server import TestHub
from zoo.cli import main
from zoo.errors import BundleError
from zoo.hub.sign import check_signature, sign

pytest.importorskip("model_signing")
pytest.importorskip("OpenSSL")

UseHub = Callable[..., None]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two pairs of keys, as `openssl ecparam -name prime256v1 -genkey` writes them."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        (folder / f"{name}.pub").write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def signed(bundle: Path, keys: dict[str, Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(bundle, tmp_path / "signed"))
    sign(folder, keys["ours.pem"])
    return folder


def test_the_owner_may_rewrite_the_card_and_nothing_else(signed: Path, keys: dict[str, Path], bundle: Path) -> None:
    (signed / "README.md").write_text("Words of mine.")
    (signed / "notes.txt").write_text("Not a part of the bundle.")
    check_signature(signed, keys["ours.pub"])
    whole = content(signed)
    weights = whole["model.safetensors"][:-1] + b"\x01"
    for name, raw in with_weights(whole, weights).items():
        (signed / name).write_bytes(raw)
    zoo.load(signed)
    with pytest.raises(BundleError, match="its signature does not fit"):
        check_signature(signed, keys["ours.pub"])


def test_another_key_does_not_fit(signed: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match=r"its signature does not fit .*other\.pub"):
        check_signature(signed, keys["other.pub"])


def test_a_signature_of_another_bundle_does_not_fit(signed: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    other = zoo.save(zoo.load("quickstart"), tmp_path / "other")
    shutil.copy(signed / "model.sig", other)
    with pytest.raises(BundleError, match="its signature does not fit"):
        check_signature(other, keys["ours.pub"])


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff" * 100])
def test_a_damaged_signature_does_not_fit(signed: Path, keys: dict[str, Path], raw: bytes) -> None:
    (signed / "model.sig").write_bytes(raw)
    with pytest.raises(BundleError, match="its signature does not fit"):
        check_signature(signed, keys["ours.pub"])


def test_what_is_not_signed_says_so(bundle: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match=r"not signed: it has no model\.sig"):
        check_signature(bundle, keys["ours.pub"])


@pytest.mark.parametrize("name", ["ours.pub", "missing.pem"])
def test_what_is_no_private_key_signs_nothing(name: str, bundle: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with pytest.raises(BundleError, match="cannot be signed with"):
        sign(folder, keys.get(name, tmp_path / name))
    assert content(folder) == content(bundle)


def test_a_signature_goes_to_the_hub_and_comes_back(
    hub: TestHub, use_hub: UseHub, bundle: Path, keys: dict[str, Path], tmp_path: Path
) -> None:
    use_hub(hub, ALICE)
    folder = Path(shutil.copytree(bundle, tmp_path / "copy"))
    assert main(["push", str(folder), REPO, "--sign", str(keys["ours.pem"]), "--license", "mit"]) == 0
    assert main(["verify", REPO, "--key", str(keys["ours.pub"]), "--device", "cpu"]) == 0
    assert main(["verify", REPO, "--key", str(keys["other.pub"]), "--device", "cpu"]) == 5
    check_signature(zoo.pull(REPO, tmp_path / "pulled"), keys["ours.pub"])
    # A new version without a signature must not keep the old one.
    (folder / "model.sig").unlink()
    assert "model.sig" in zoo.push(folder, REPO, license="mit").changed
    assert main(["verify", REPO, "--key", str(keys["ours.pub"]), "--device", "cpu"]) == 5
