"""Load a model, by name or from a folder, ready to predict."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from zoo.spec.shape import DataSpec, GraphShape
from zoo.spec.shipped import list_bundles, name_hint, shipped_dir
from zoo.workflows import session
from zoo.workflows.create import ZooInfo, info_of, set_info
from zoo.workflows.probe import check_model, read_probe
from zoo.workflows.run_dir import GRAPH_FILE, RunDir


@dataclass(frozen=True)
class Located:
    """The folder of a model's files and, if they came from the Hub, their commit."""

    folder: Path
    repo_id: str = ""
    revision: str = ""
    commit: str = ""


def load(
    reference: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    device: str | torch.device | None = "cpu",
    dtype: torch.dtype | None = None,
    num_node_features: int | None = None,
    num_tasks: int | None = None,
    verify: bool = False,
) -> nn.Module:
    """Load a model, ready to predict: ``logits = model(x, edge_index, edge_attr)``.

    A model whose recipe has ``train.label_reuse`` reads T more columns of x, [N, F + T]: after the features the label
    of each node as a one-hot row, or zeros where it is not known. In further passes the rows of zeros are replaced by
    the softmax of its logits, as often as ``num_iters`` says.

    >>> import zoo
    >>> model = zoo.load("quickstart")
    >>> model.zoo_info.shape.num_tasks
    10

    Args:
        reference: the folder of a bundle or a run; else the name of a model that came with this installation; else
            ``owner/name`` on the Hub, perhaps with ``@`` and a tag, a branch or a commit.
        revision: a tag, a branch or a commit on the Hub, if ``reference`` names none.
        token: for the Hub; None: the one of ``hf auth login`` or HF_TOKEN; False: none.
        cache_dir: where files from the Hub are kept; None: the cache of ``huggingface_hub``.
        offline: use only what is in the cache, without network access.
        device: ``cpu``, ``cuda`` or ``cuda:N``, also as a ``torch.device``; None: the GPU if there is one.
        dtype: of the weights; None: as they were trained, float32.
        num_node_features: F; replaces the encoder by a new, untrained one for x [N, F], for training on other graphs.
        num_tasks: T; replaces the head by a new, untrained one with so many outputs, for training on other labels.
        verify: run the bundle's probe first: on this device and with these kernels the weights must give the logits
            that they gave where they were written.

    Returns:
        The model in evaluation mode; its attribute ``zoo_info`` says what it is.

    Raises:
        NotFoundError: if there is no such model; names all the places where it was looked for.
        AccessError: if it may not be read.
        NetworkError: if the Hub cannot be reached and the cache does not hold it.
        BundleError: if its files are damaged or do not belong together, or it fails or lacks a probe to verify it by.
        RunError: if the device does not exist here, or a run has no weights yet.
    """
    # Arguments are checked first, because it may take minutes to fetch a model.
    target = session.resolve_device(None if device is None else str(device))
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ZooError(f"dtype: expected a floating-point torch.dtype such as torch.float64, got {dtype!r}")
    located = locate(reference, revision=revision, token=token, cache_dir=cache_dir, offline=offline)
    model = load_located(located)
    if verify:
        # A copy, because an equilibrium model counts its solves.
        check_model(copy.deepcopy(model).to(target), located.folder)
    widths = {"num_node_features": num_node_features, "num_tasks": num_tasks}
    if wanted := {name: width for name, width in widths.items() if width is not None}:
        model = _with_new_ends(model, wanted)
    return model.to(target, dtype)


def is_run(folder: Path) -> bool:
    """True if a folder is a run directory rather than a bundle."""
    return not (folder / CONFIG_FILE).exists() and (folder / "recipe.json").exists()


def describe_folder(folder: Path) -> tuple[Recipe, GraphShape | None, tuple[Measured, ...]]:
    """The recipe, the shape if it is known yet, and the figures of a run directory or a bundle."""
    if not is_run(folder):
        config = read_config(folder)
        return config.recipe, config.shape, config.results
    run = RunDir(folder)
    best, results = run.best(), run.results()
    shape = None if best is None else best.epoch.shape
    return run.recipe(), shape, () if results is None else results.results


def empty_model(spec: Model, shape: GraphShape) -> nn.Module:
    """A model whose tensors are on the meta device: names, shapes and types of its weights, and nothing allocated."""
    with torch.device("meta"):
        return build_model(spec, shape)


def fill(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Give a model without memory its weights, without a copy, and put it into evaluation mode."""
    if state.keys() != model.state_dict().keys():
        model.load_state_dict(state, assign=True)  # Raises, and names what is missing and what is unknown.
    for name, tensor in state.items():  # All at once would take time quadratic in the number of layers.
        owner, _, own_name = name.rpartition(".")
        model.get_submodule(owner).load_state_dict({own_name: tensor}, strict=False, assign=True)
    # A tensor outside the state dict is still on the meta device and would fail only when it is first used.
    if left := [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]:
        raise BundleError(f"the model keeps {left[0]!r} outside its state dict; it cannot be restored from a file")
    return model.eval()


def locate(reference: str | os.PathLike[str], *, revision: str | None = None, **access: Any) -> Located:
    """The folder that a reference to a model means, see :func:`load`; what is on the Hub is fetched.

    ``access`` are the options of :func:`zoo.hub.client.connect`.

    Raises:
        NotFoundError: if there is no such model.
        ZooError: if it cannot be fetched.
    """
    if not isinstance(reference, str | os.PathLike):
        raise ZooError(f"reference: expected a name or a folder, got {type(reference).__name__}")
    text, shipped = os.fspath(reference), list_bundles()
    # A path cannot hold a null character; pathlib would raise a ValueError instead of a ZooError.
    folder = Path(text.replace("\0", "?")).expanduser()
    # A folder comes before a shipped name and the Hub, so that no download takes the place of a user's own files.
    if folder.is_dir() and text:
        located = Located(folder)
    elif folder.is_file():
        raise NotFoundError(f"{text}: a file; a model is the folder of a bundle or a run")
    elif not isinstance(reference, str) or text.startswith((".", "/", "~")):
        raise NotFoundError(f"{text}: no such folder")
    elif text in shipped:
        located = Located(shipped_dir("bundles") / text)
    elif "/" in text:
        from zoo.workflows.pull import fetch, tried_as_folder

        with tried_as_folder():
            pulled = fetch(text, revision=revision, optional=False, **access)
        return Located(pulled.folder, pulled.reference.repo_id, pulled.reference.revision, pulled.commit)
    else:
        raise NotFoundError(
            f"{text}: neither a folder nor a shipped model, and not the owner/name of one on the Hub; "
            + name_hint(text, shipped)
        )
    if revision is not None:
        raise ZooError(f"revision={revision!r}: goes with a model on the Hub; {text} is a folder here")
    return located


def load_located(located: Located) -> nn.Module:
    """Load a bundle strictly: names, shapes and types are compared before anything is built; or the best of a run."""
    folder = located.folder
    if is_run(folder):
        return _load_run(RunDir(folder))
    config = read_config(folder)
    build = functools.cache(lambda: empty_model(config.recipe.model, config.shape))
    try:
        state = read_weights(folder, config, lambda: build().state_dict())
    except RecipeError as error:
        raise BundleError(f"{folder / CONFIG_FILE}: {error}") from error
    if config.probe is not None:
        read_probe(folder, config)
    # A warning, not an error: such a model can still be inspected.
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        warnings.warn(f"{folder}: some weights are NaN or infinite", ZooWarning, stacklevel=3)
    origin = located.repo_id, located.revision, located.commit
    info = ZooInfo(config.recipe, config.shape, folder, config.weights.sha256, config.results, *origin)
    return set_info(fill(build(), state), info)


def _with_new_ends(model: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    """A model with other inputs or outputs: a new encoder or head, and the trained weights in all that is between.

    The new ones are initialized by PyTorch's global generator.
    """
    info = info_of(model)
    given = ", ".join(f"{name}={width!r}" for name, width in widths.items())
    fields = {**info.shape.model_dump(), **widths}
    if "num_node_features" in widths:
        # Other features have no one-hot code of categories in their last columns.
        fields["num_node_categories"] = 0
    try:
        shape = GraphShape.model_validate(fields)
    except ValidationError:
        raise ZooError(f"{', '.join(widths)}: expected an integer from 1 to 1,000,000, got {given}") from None
    # A model wider by one at the same ends shows which weights depend on them. The encoder or head that holds one is
    # replaced as a whole: what else is in it was trained beside that weight and means nothing without it.
    wider_shape = shape.model_copy(update={name: getattr(shape, name) + 1 for name in widths})
    wider = empty_model(info.recipe.model, wider_shape).state_dict()
    # Its data set and what was published of it fit no other inputs or outputs.
    data, summary = DataSpec(dataset="file", path=GRAPH_FILE), f"{info.recipe.name}, fine-tuned with {given}"
    recipe = info.recipe.model_copy(update={"data": data, "source": None, "summary": summary})
    result = build_model(recipe.model, shape)
    state, trained = result.state_dict(), model.state_dict()
    ends = {name.partition(".")[0] for name in state if state[name].shape != wider[name].shape}
    new = [name for name in state if name.partition(".")[0] in ends]
    result.load_state_dict({name: state[name] if name in new else trained[name] for name in state}, strict=True)
    warnings.warn(
        f"{info.recipe.name}: new and untrained: {', '.join(new)}; the other {len(state) - len(new)} of {len(state)} "
        "tensors keep their trained values",
        ZooWarning,
        stacklevel=3,
    )
    return set_info(result, replace(info, recipe=recipe, shape=shape, results=(), sha256="")).eval()


def _load_run(run: RunDir) -> nn.Module:
    best = run.best()
    if best is None and run.results() is not None:
        raise RunError(f"{run.path}: best.safetensors is missing; put it back from a copy, or train again")
    if best is None:
        raise RunError(f"{run.path}: no weights yet: the run has not reached its first evaluation")
    recipe, shape = run.recipe(), best.epoch.shape
    return set_info(fill(empty_model(recipe.model, shape), best.tensors), ZooInfo(recipe, shape, run.path))
