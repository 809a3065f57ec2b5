"""The bundle: config.json, model.safetensors, probe.safetensors and README.md, which keep and share a trained model.

``config.json`` holds everything that loading needs, with every default spelled out; nothing in it is the name of a
Python object, and of the path to a user's graph only the last part is written. A bundle may come from anywhere,
so it is read step by step: sizes before contents, the configuration before the weights, the names and shapes of the
weights before their values, and the digest last.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from zoo.errors import BundleError
from zoo.files import atomic_write, sync_folder, write_errors, write_json
from zoo.hub.config import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT_VERSION,
    PROBE_FILE,
    WEIGHTS_FILE,
    BundleConfig,
    Provenance,
    Stored,
    read_config,
)
from zoo.json_object import read_json_object
from zoo.spec.plugins import packages_of
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured
from zoo.spec.shape import GraphShape
from zoo.tensor_file import Shapes, first_nonfinite, read_tensors, write_tensors


@dataclass(frozen=True)
class Contents:
    """The parts from which a bundle is written."""

    recipe: Recipe
    shape: GraphShape
    results: tuple[Measured, ...]
    provenance: Provenance
    state: Mapping[str, Tensor]


def write_bundle(folder: Path, contents: Contents, finish: Callable[[Path], object]) -> BundleConfig:
    """Write a bundle: the whole folder appears at once or not at all; one that holds this bundle is left alone.

    ``finish`` adds the probe while the files stand elsewhere, or raises if they must not get their place.

    Raises:
        BundleError: if the folder holds something else, cannot be written, or the weights are not all finite.
    """
    check_finite(contents.state)
    with write_errors(folder, BundleError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            staged = Path(scratch) / folder.name
            staged.mkdir()
            _write_files(staged, contents)
            finish(staged)
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                if _same(folder, staged):
                    return read_config(folder)
                raise BundleError(f"{folder}: already there and not this bundle; choose another --out")
            staged.rename(folder)
        sync_folder(folder.parent)
    return read_config(folder)


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raise a BundleError if some weights are NaN or infinite, of which no bundle must be made."""
    if name := first_nonfinite(state):
        raise BundleError(f"{name}: NaN or infinite weights are neither written to a bundle nor published")


def read_weights(folder: Path, config: BundleConfig, build: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Read the weights of a bundle with this configuration.

    ``build`` makes the state dict of its model, of which names, shapes and types are compared (meta tensors will do).
    It is called once the header of the file can be that of such a model.

    Raises:
        BundleError: if the file is damaged, holds anything else, or is not the one that ``config`` speaks of.
    """
    path = folder / WEIGHTS_FILE

    def check(found: Shapes) -> None:
        # To build a model of many layers and groups takes far longer than to state their numbers in a small file.
        least = getattr(config.recipe.model, "min_tensors", 1)
        if len(found) < least:
            raise BundleError(
                f"{path}: holds {len(found):,} tensors; the recipe in {CONFIG_FILE} needs {least:,} or more"
            )
        if faults := differences(found, build()):
            raise BundleError(f"{path}: does not fit the recipe in {CONFIG_FILE}: {faults}")

    file = read_tensors(path, BundleError, max_header_bytes=config.weights.num_bytes, check=check)
    if file.sha256 != config.weights.sha256:
        raise BundleError(
            f"{path}: its SHA-256 is {file.sha256}, but {CONFIG_FILE} says {config.weights.sha256}: "
            "the file is damaged or was changed"
        )
    return file.tensors


def _write_files(folder: Path, contents: Contents) -> None:
    from zoo.hub.card import render_card

    weights, recipe = folder / WEIGHTS_FILE, _portable(contents.recipe)
    sha256 = write_tensors(weights, contents.state, {"format": "pt"}, BundleError)
    config = BundleConfig(
        format_version=FORMAT_VERSION,
        recipe=recipe,
        shape=contents.shape,
        results=contents.results,
        provenance=contents.provenance,
        weights=Stored(sha256=sha256, num_bytes=weights.stat().st_size),
        packages=packages_of(recipe.to_json()) or None,
    )
    data = {**config.model_dump(mode="json", exclude_none=True), "recipe": recipe.to_json()}
    write_json(folder / CONFIG_FILE, data, BundleError)
    atomic_write(folder / CARD_FILE, [render_card(config).encode()], BundleError)


def write_probe(folder: Path, probe: Mapping[str, Tensor]) -> None:
    """Write the probe of a bundle, and its size and digest into ``config.json``; a BundleError if that fails."""
    path, config = folder / PROBE_FILE, folder / CONFIG_FILE
    data = read_json_object(config, error=BundleError)
    sha256 = write_tensors(path, probe, {"format": "pt"}, BundleError)
    data["probe"] = {"sha256": sha256, "num_bytes": path.stat().st_size}
    write_json(config, data, BundleError)


def _portable(recipe: Recipe) -> Recipe:
    """The recipe without the folders of this machine."""
    if not recipe.data.path:
        return recipe
    name = os.path.basename(os.path.abspath(recipe.data.path))
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": name})})


def _same(one: Path, other: Path) -> bool:
    """Tell if two folders hold the same bundle, but for cards, which their owners write, and rounding in probes."""
    try:
        configs = [read_config(folder).model_copy(update={"probe": None}) for folder in (one, other)]
    except BundleError:
        return False
    return configs[0] == configs[1] and (one / WEIGHTS_FILE).read_bytes() == (other / WEIGHTS_FILE).read_bytes()


def differences(found: Shapes, expected: Mapping[str, Tensor]) -> str:
    """Differences between the shapes and types of tensors and those of a model; empty if they fit."""
    faults = [f"unknown tensor {name!r}" for name in found if name not in expected]
    for name, tensor in expected.items():
        shape, dtype = found.get(name, (None, None))
        if shape is None:
            faults.append(f"tensor {name!r} is missing")
        elif shape != tuple(tensor.shape):
            faults.append(f"tensor {name!r} has shape {list(shape)} instead of {list(tensor.shape)}")
        elif dtype != tensor.dtype:
            faults.append(f"tensor {name!r} holds {dtype} instead of {tensor.dtype}")
    more = f" and {len(faults) - 3:,} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more
