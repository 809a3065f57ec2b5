"""Describe a run directory or a bundle."""

from __future__ import annotations

from pathlib import Path

from zoo.hub.config import read_config
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured
from zoo.spec.shape import GraphShape
from zoo.workflows.load import is_run
from zoo.workflows.run_dir import RunDir


def describe_folder(folder: Path) -> tuple[Recipe, GraphShape | None, tuple[Measured, ...]]:
    """The recipe, the shape if it is known yet, and the measured figures.

    Raises:
        ZooError: if the folder is neither a run directory nor a bundle, or is damaged.
    """
    if not is_run(folder):
        config = read_config(folder)
        return config.recipe, config.shape, config.results
    run = RunDir(folder)
    best, results = run.best(), run.results()
    shape = None if best is None else best.epoch.shape
    return run.recipe(), shape, () if results is None else results.results
