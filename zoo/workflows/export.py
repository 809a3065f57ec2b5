"""Export the best weights of a run directory as a bundle."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import RunError
from zoo.hub.bundle import Contents, write_bundle
from zoo.hub.config import BundleConfig, Provenance
from zoo.spec.recipe import Recipe
from zoo.workflows.run_dir import RunDir
from zoo.workflows.save import add_probe


def export(folder: Path, out: Path | None = None) -> tuple[Path, BundleConfig]:
    """Write the best weights of a finished run as a bundle.

    Args:
        folder: the run directory.
        out: the bundle's folder; None: ``bundle`` in the run directory.

    Returns:
        The bundle's folder and its configuration.

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
