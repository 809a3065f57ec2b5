"""Write bundles: of the best weights of a run, and of a model that was trained in your own loop; each with a probe."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

import zoo
from zoo.errors import BundleError, RunError
from zoo.hub.bundle import Contents, check_finite, differences, write_bundle, write_probe
from zoo.hub.config import BundleConfig, Provenance
from zoo.ops.dispatch import use_backend
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured
from zoo.workflows.create import info_of, unwrapped
from zoo.workflows.load import Located, empty_model, load_located
from zoo.workflows.probe import check_model, make_probe
from zoo.workflows.run_dir import RunDir


def export(folder: Path, out: Path | None = None) -> tuple[Path, BundleConfig]:
    """Write the best weights of a finished run as a bundle; return its folder, ``bundle`` by default, and config.

    Raises:
        RunError: if the run is not finished.
        BundleError: if the bundle cannot be written, or something else stands in its place.
    """
    run = RunDir(folder)
    results, best = run.results(), run.best()
    if results is not None and best is None:
        raise RunError(f"{folder}: best.safetensors is missing; put it back from a copy, or train again")
    # Until the run is finished a later epoch may replace its best weights.
    if results is None or best is None:
        raise RunError(f"{folder}: the run is not finished; continue it with: revgnn-zoo train --resume {folder}")
    contents = Contents(
        recipe=without_claims(run.recipe()) if results.data_is_synthetic else run.recipe(),
        shape=best.epoch.shape,
        results=results.results,
        provenance=Provenance(
            zoo_version=results.environment.zoo,
            torch_version=results.environment.torch,
            device=results.environment.device,
            epoch=best.epoch.epoch,
            num_epochs=results.num_epochs,
            data_sha256=results.data_sha256,
            data_is_synthetic=results.data_is_synthetic,
        ),
        state=best.tensors,
    )
    path = run.bundle_path if out is None else out
    return path, write_bundle(path, contents, add_probe)


def without_claims(recipe: Recipe) -> Recipe:
    """The recipe without its source, whose figures hold for the real data, of a run on synthetic data."""
    summary = f"{recipe.name}, trained on synthetic data in place of {recipe.data.dataset}"
    return recipe.model_copy(update={"source": None, "summary": summary})


def save(model: nn.Module, folder: str | os.PathLike[str], *, results: Sequence[Measured] = ()) -> Path:
    """Write a model of the zoo as a bundle, which ``zoo.load`` reads and ``zoo.push`` publishes.

    How it was trained does not matter: in your own loop, by Lightning, or not at all.

    >>> import zoo
    >>> model = zoo.create_model("small_rev", zoo.GraphShape(num_node_features=16, num_tasks=3), num_layers=2)
    >>> folder = zoo.save(model, "mine")
    >>> zoo.load("mine").zoo_info.shape.num_tasks
    3

    Args:
        model: made by ``zoo.create_model`` or ``zoo.load``, perhaps inside DistributedDataParallel, an AveragedModel or
            ``torch.compile``.
        folder: of the bundle; new or empty.
        results: figures of these very weights, such as ``[c.figure for c in zoo.evaluate(model, data)]``.

    Returns:
        The folder.

    Raises:
        ZooError: if the zoo did not make the model.
        BundleError: if its weights are no longer those of its recipe, are not finite, or cannot be written.
    """
    info, model = info_of(model), unwrapped(model)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    # A module that was added or replaced since would not be rebuilt from the recipe.
    if faults := differences(found, empty_model(info.recipe.model, info.shape).state_dict()):
        raise BundleError(f"{folder}: the model is no longer that of its recipe {info.recipe.name!r}: {faults}")
    provenance = Provenance(zoo_version=zoo.__version__, torch_version=importlib.metadata.version("torch"))
    contents = Contents(info.recipe, info.shape, tuple(results), provenance, state)
    write_bundle(Path(folder), contents, add_probe)
    return Path(folder)


def add_probe(folder: Path) -> None:
    """Give a bundle a new probe, and check that another load of the same files passes it.

    Raises:
        BundleError: if the folder is no whole bundle or cannot be written, or the model fails its probe.
    """
    write_probe(folder, make_probe(load_located(Located(folder))))
    check_bundle(folder)


def check_bundle(folder: Path) -> None:
    """Load a bundle and verify it on the CPU, before it gets its place or is published.

    Raises:
        BundleError: if its files are damaged, its weights are not finite, or it has no probe or fails it.
    """
    # The backend that the user named may serve a GPU alone.
    with use_backend(None):
        model = load_located(Located(folder))
        check_finite(model.state_dict())
        check_model(model, folder)
