"""The content of a bundle's ``config.json``, as data; reading it needs no torch.

A bundle may come from anywhere, so its configuration is read step by step: its size before its content, every key and
every number before anything is done with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field

import zoo
from zoo.errors import BundleError
from zoo.files import read_errors, read_regular
from zoo.json_object import MAX_JSON_BYTES, abbreviate, parse_json_object
from zoo.spec.base import Spec, parse_spec
from zoo.spec.overrides import upgrade_recipe
from zoo.spec.plugins import missing_package
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured
from zoo.spec.shape import GraphShape

FORMAT_VERSION: Literal[1] = 1
CONFIG_FILE, WEIGHTS_FILE, PROBE_FILE = "config.json", "model.safetensors", "probe.safetensors"
CARD_FILE, CURVES_FILE, SIGNATURE_FILE = "README.md", "curves.png", "model.sig"
FILES = (CONFIG_FILE, WEIGHTS_FILE, PROBE_FILE, CARD_FILE, CURVES_FILE, SIGNATURE_FILE)


_VERSION = re.compile(r"\d+")
_POINTER = b"version https://git-lfs"


class Provenance(Spec):
    """The origin of the weights. It names no user, no host and no path."""

    zoo_version: str
    torch_version: str
    device: str = ""
    epoch: int = Field(default=0, ge=0, description="the epoch that was selected")
    num_epochs: int = Field(default=0, ge=0, description="epochs trained")
    data_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", description="the graph, features and split")
    data_is_synthetic: bool = Field(default=False, description="a stand-in took the place of the named data set")
    converted_from_sha256: str = Field(
        default="", pattern=r"^([0-9a-f]{64})?$", description="the checkpoint of another implementation"
    )


class Stored(Spec):
    """The size and the digest of a file, so that a change of it is noticed."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_bytes: int = Field(ge=0)


class BundleConfig(Spec):
    """The content of ``config.json``.

    Attributes:
        probe: a small graph and the logits that the weights give on it; None: the bundle carries none.
        packages: versions of other packages whose parts the recipe names; reading a bundle imports only what is
            installed already.
    """

    format_version: Literal[1]
    recipe: Recipe
    shape: GraphShape
    # Of the first wrong one alone the faults are told: thousands of them would take a minute.
    results: Annotated[tuple[Measured, ...], FailFast()]
    provenance: Provenance
    weights: Stored
    probe: Stored | None = None
    packages: dict[str, str] | None = None

    @property
    def files(self) -> dict[str, Stored]:
        """The files beside ``config.json`` that the bundle is not whole without, by name."""
        return {WEIGHTS_FILE: self.weights, **({} if self.probe is None else {PROBE_FILE: self.probe})}


def read_config(folder: Path) -> BundleConfig:
    """Read and check ``config.json``, and that the other files have the sizes that it and the model imply.

    Raises:
        BundleError: if the folder is not a whole bundle; with every fault of its configuration.
    """
    where = folder / CONFIG_FILE
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder")
    with read_errors(where, BundleError):
        try:
            raw = read_regular(where, max_bytes=MAX_JSON_BYTES)
        except FileNotFoundError:
            # The name of a model on the Hub, which a folder of the same name hides.
            is_name = not folder.is_absolute() and len(folder.parts) == 2
            hint = f"; this folder was looked at; for the model on the Hub: {folder.as_posix()}@main" if is_name else ""
            raise BundleError(f"{folder}: not a bundle: it has no {CONFIG_FILE}{hint}") from None
    config = parse_config(raw, where=str(where))
    for name, stored in config.files.items():
        _check_size(folder / name, stored)
    return config


def parse_config(raw: bytes, *, where: str) -> BundleConfig:
    """Check the content of a ``config.json``, of which ``where`` names the origin; a BundleError lists every fault."""
    data = parse_json_object(raw, where=where, error=BundleError)
    version = data.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise BundleError(f"{where}: format_version {version} is of a newer revgnn-zoo; upgrade to read it")
    if type(version) in (bool, float):
        # Python takes both true and 1.0 for 1.
        raise BundleError(f"{where}: format_version: expected an integer, got {json.dumps(version)}")
    # Before the recipe, whose choices would only be called unknown without the package.
    if requirement := missing_package(data.get("packages")):
        raise BundleError(
            f"{where}: needs a package that is not installed here; if you trust it: pip install '{requirement}'"
        )
    if isinstance(data.get("recipe"), dict):
        data["recipe"] = upgrade_recipe(data["recipe"], where=f"{where}: recipe", error=BundleError)
    try:
        config = parse_spec(BundleConfig, data, where=where, error=BundleError)
    except BundleError as error:
        if newer := _newer_version(data):
            raise BundleError(f"{where}: written by revgnn-zoo {newer}; upgrade to read it ({error})") from error
        raise
    path = config.recipe.data.path
    if path in ("..", ".") or PureWindowsPath(path).name != path:
        # Else a stranger's bundle would decide which file of this machine is opened.
        raise BundleError(f"{where}: recipe.data.path: expected the name of a file alone, got {abbreviate(path)}")
    num_parameters = config.recipe.model.num_parameters(config.shape)
    if config.weights.num_bytes < 4 * num_parameters:
        raise BundleError(
            f"{where}: weights.num_bytes: {config.weights.num_bytes:,} bytes cannot hold "
            f"the recipe's {num_parameters:,} parameters"
        )
    return config


def _newer_version(data: Mapping[str, Any]) -> str:
    """The version of revgnn-zoo that wrote a configuration, if it is a later one than this; else empty."""
    provenance = data.get("provenance")
    text = str(provenance.get("zoo_version")) if isinstance(provenance, dict) else ""
    written, this = ([int(part) for part in _VERSION.findall(version)] for version in (text[:20], zoo.__version__))
    return text[:20] if written > this else ""


def _check_size(path: Path, stored: Stored) -> None:
    """Refuse a wrong size before a model is built, which for a hostile recipe could take very long."""
    with read_errors(path, BundleError):
        try:
            num_bytes = path.stat().st_size
        except FileNotFoundError:
            raise BundleError(f"{path.parent}: not a whole bundle: it has no {path.name}") from None
        is_pointer = num_bytes != stored.num_bytes and read_regular(path, max_bytes=MAX_JSON_BYTES).startswith(_POINTER)
    if is_pointer:
        raise BundleError(f"{path}: a pointer of git LFS in place of the file; fetch it with: git lfs pull")
    if num_bytes != stored.num_bytes:
        raise BundleError(
            f"{path}: has {num_bytes:,} bytes, but {CONFIG_FILE} says {stored.num_bytes:,}: "
            "the file is damaged or was changed"
        )
