"""From a run directory to a bundle."""

from __future__ import annotations

from pathlib import Path

from zoo.errors import RunError
from zoo.hub.bundle import Contents, write_bundle
from zoo.hub.config import BundleConfig, Provenance
from zoo.spec.recipe import Recipe
from zoo.workflows.load import saved_shape
from zoo.workflows.run_dir import RunDir, measured


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
    if results is None or best is None:
        raise RunError(f"{folder}: the run is not finished; continue it with: revgnn-zoo train ... --resume")
    environment = results["environment"]
    data_is_synthetic = results.get("data_is_synthetic", False)
    contents = Contents(
        recipe=_honest(run.recipe(), data_is_synthetic=data_is_synthetic),
        shape=saved_shape(run, best.tree),
        results=measured(results, where=str(folder)),
        provenance=Provenance(
            zoo_version=environment["zoo"],
            torch_version=environment["torch"],
            device=environment["device"],
            epoch=best.tree["epoch"],
            num_epochs=results["num_epochs"],
            data_sha256=results["data_sha256"],
            data_is_synthetic=data_is_synthetic,
        ),
        state=best.tensors,
    )
    path = run.bundle_path if out is None else out
    return path, write_bundle(path, contents)


def _honest(recipe: Recipe, *, data_is_synthetic: bool) -> Recipe:
    """The recipe without what its source found on the real data, if the run saw a stand-in for them."""
    if not data_is_synthetic:
        return recipe
    summary = f"{recipe.name}, trained on synthetic data in place of {recipe.data.dataset}"
    return recipe.model_copy(update={"source": None, "summary": summary})
