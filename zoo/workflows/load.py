"""Load a model, by name or from a folder, ready to predict."""

from __future__ import annotations

import difflib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from zoo.errors import BundleError, NotFoundError, RecipeError, RunError, ZooError, ZooWarning
from zoo.hub.bundle import read_weights
from zoo.hub.config import CONFIG_FILE, read_config
from zoo.models.factory import build_model
from zoo.spec.model import Model
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured
from zoo.spec.shape import GraphShape
from zoo.spec.shipped import shipped_dir
from zoo.workflows import session
from zoo.workflows.pull import fetch, name_or_folder
from zoo.workflows.run_dir import RunDir


@dataclass(frozen=True)
class ZooInfo:
    """Facts about a loaded model, its attribute ``zoo_info``.

    Attributes:
        recipe: the whole recipe.
        shape: of the graphs it was made for.
        folder: where it was loaded from.
        sha256: of its weights file.
        results: what was measured of it; empty if its head was replaced.
        repo_id: ``owner/name`` on the Hub; empty if it did not come from there.
        revision: that was asked for.
        commit: what the revision meant.
    """

    recipe: Recipe
    shape: GraphShape
    folder: Path
    sha256: str
    results: tuple[Measured, ...]
    repo_id: str = ""
    revision: str = ""
    commit: str = ""


@dataclass(frozen=True)
class Located:
    """The folder of a model's files and, if they came from the Hub, their commit."""

    folder: Path
    repo_id: str = ""
    revision: str = ""
    commit: str = ""


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to evaluate it, and what its bundle says was measured of it."""

    model: nn.Module
    recipe: Recipe
    shape: GraphShape
    results: tuple[Measured, ...] = ()


def load(reference: str | Path, *, num_tasks: int | None = None, device: str | None = "cpu") -> nn.Module:
    """Load a model, ready to predict: ``logits = model(x, edge_index, edge_attr)``.

    A model whose recipe has ``train.label_reuse`` reads T more columns of x, [N, F + T]: after the features the label
    of each node as a one-hot row, or zeros where it is not known. In further passes the rows of zeros are replaced by
    the softmax of its logits, as often as ``num_iters`` says.

    Args:
        reference: a ``Path`` is the folder of a bundle; a ``str`` is the name of a model that came with this
            installation, or ``owner/name`` on the Hub, perhaps with ``@`` and a tag, a branch or a commit.
        num_tasks: T; replaces the head by a new, untrained one with so many outputs, for training on other labels.
            None keeps the trained head. The inputs stay as they were, also the columns of labels that a model reads.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.

    Returns:
        The model in evaluation mode; its attribute ``zoo_info`` says what it is.

    Raises:
        NotFoundError: if there is no such model.
        AccessError: if it may not be read.
        NetworkError: if the Hub cannot be reached and the cache does not hold it.
        BundleError: if its files are damaged or do not belong together.
        RunError: if the device does not exist here.
    """
    target = session.resolve_device(device)
    model = load_located(locate(reference))
    return (model if num_tasks is None else _with_new_head(model, num_tasks)).to(target)


def load_for_evaluation(folder: Path) -> LoadedModel:
    """Load the model of a bundle or the best one of a run directory.

    Raises:
        ZooError: if it is neither, or damaged, or nothing was evaluated yet.
    """
    if is_run(folder):
        return _load_run(RunDir(folder))
    model = load_located(Located(folder))
    info: ZooInfo = model.__dict__["zoo_info"]
    return LoadedModel(model, info.recipe, info.shape, info.results)


def is_run(folder: Path) -> bool:
    """True if a folder is a run directory rather than a bundle."""
    return not (folder / CONFIG_FILE).exists() and (folder / "recipe.json").exists()


def expected_state(spec: Model, shape: GraphShape) -> dict[str, Tensor]:
    """The names, shapes and types of a model's weights, as meta tensors: nothing is allocated."""
    return _empty_model(spec, shape).state_dict()


def fill(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Give a model without memory its weights, without a copy, and put it into evaluation mode."""
    model.load_state_dict(state, strict=True, assign=True)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise BundleError(f"the model keeps {left[0]!r} outside its state dict; it cannot be restored from a file")
    return model.eval()


def locate(reference: str | Path) -> Located:
    """The folder that a reference to a model means; nothing is guessed. What is on the Hub is fetched.

    Raises:
        NotFoundError: if there is no such model.
        ZooError: if it cannot be fetched.
    """
    if isinstance(reference, Path):
        return Located(reference.expanduser())
    if reference.startswith((".", "/", "~")):
        raise NotFoundError(f"{reference}: text means a name; for a folder pass Path({reference!r})")
    if "/" in reference:
        return _from_hub(reference)
    bundles = shipped_dir("bundles")
    names = sorted(path.name for path in bundles.iterdir() if path.is_dir()) if bundles.is_dir() else []
    if reference in names:
        return Located(bundles / reference)
    near = difflib.get_close_matches(reference, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(names) or 'none'}"
    if reference and Path(reference).is_dir():
        hint = f"for a folder pass Path({reference!r})"
        raise NotFoundError(f"{reference}: no model of that name is shipped; {hint}")
    raise NotFoundError(f"{reference}: no model of that name is shipped and there is no such folder; {hint}")


def _from_hub(reference: str) -> Located:
    with name_or_folder(reference):
        pulled = fetch(reference, optional=False)
    return Located(pulled.folder, pulled.reference.repo_id, pulled.reference.revision, pulled.commit)


def _empty_model(spec: Model, shape: GraphShape) -> nn.Module:
    with torch.device("meta"):
        return build_model(spec, shape)


def load_located(located: Located) -> nn.Module:
    """Load the bundle in a folder, strictly: names, shapes and types are compared before anything is built.

    Raises:
        BundleError: if it is none, or damaged.
    """
    folder = located.folder
    if is_run(folder):
        raise BundleError(f"{folder}: a run directory, not a bundle; first: revgnn-zoo export {folder}")
    config = read_config(folder)
    try:
        model = _empty_model(config.recipe.model, config.shape)
    except RecipeError as error:
        raise BundleError(f"{folder / CONFIG_FILE}: {error}") from error
    state = read_weights(folder, config, model.state_dict())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        warnings.warn(f"{folder}: some weights are NaN or infinite", ZooWarning, stacklevel=3)
    fill(model, state)
    model.__dict__["zoo_info"] = ZooInfo(
        config.recipe,
        config.shape,
        folder,
        config.weights.sha256,
        config.results,
        located.repo_id,
        located.revision,
        located.commit,
    )
    return model


def _with_new_head(model: nn.Module, num_tasks: int) -> nn.Module:
    """A model with the same weights but for a new head, which PyTorch's global generator initialises."""
    info: ZooInfo = model.__dict__["zoo_info"]
    spec = info.recipe.model
    try:
        shape = GraphShape.model_validate({**info.shape.model_dump(), "num_tasks": num_tasks})
    except ValidationError:
        raise ZooError(f"num_tasks: expected an integer from 1 to 1,000,000, got {num_tasks!r}") from None
    # The head is what depends on the number of tasks.
    wider = info.shape.model_copy(update={"num_tasks": info.shape.num_tasks + 1})
    state, other = model.state_dict(), expected_state(spec, wider)
    kept = {name: tensor for name, tensor in state.items() if other[name].shape == tensor.shape}
    result = build_model(spec, shape)
    result.load_state_dict({**result.state_dict(), **kept}, strict=True)
    result.__dict__["zoo_info"] = replace(info, shape=shape, results=())
    return result.eval()


def _load_run(run: RunDir) -> LoadedModel:
    best = run.best()
    if best is None:
        raise RunError(f"{run.path}: no weights yet: the run has not reached its first evaluation")
    recipe, shape = run.recipe(), best.epoch.shape
    return LoadedModel(fill(_empty_model(recipe.model, shape), best.tensors), recipe, shape)
