"""Save a model that was trained in your own loop."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

import zoo
from zoo.errors import BundleError
from zoo.hub.bundle import Contents, differences, write_bundle
from zoo.hub.config import Provenance
from zoo.spec.results import Measured
from zoo.workflows.create import info_of, unwrapped
from zoo.workflows.load import expected_state


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
    if faults := differences(found, expected_state(info.recipe.model, info.shape)):
        raise BundleError(f"{folder}: the model is no longer that of its recipe {info.recipe.name!r}: {faults}")
    provenance = Provenance(zoo_version=zoo.__version__, torch_version=importlib.metadata.version("torch"))
    write_bundle(Path(folder), Contents(info.recipe, info.shape, tuple(results), provenance, state))
    return Path(folder)
