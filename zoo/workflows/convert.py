"""From a checkpoint of the authors' code (github.com/lightaime/deep_gcns_torch) to a bundle."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.errors import BundleError
from zoo.files import read_errors, sha256_of
from zoo.hub.bundle import Contents, differences, write_bundle
from zoo.hub.config import BundleConfig, Provenance
from zoo.spec.model import Model, RevGATSpec
from zoo.spec.recipe import Recipe
from zoo.spec.shape import GraphShape
from zoo.workflows.export import add_probe
from zoo.workflows.load import empty_model

# Weights, two moments of Adam and a gradient, eight bytes each, would still be less.
_BYTES_PER_PARAMETER = 40
_SLACK_BYTES = 1 << 26


def convert(checkpoint: Path, recipe: Recipe, out: Path) -> BundleConfig:
    """Write the weights of a checkpoint of github.com/lightaime/deep_gcns_torch, a ``.pth`` file, as a bundle.

    The file is unpickled with ``weights_only=True`` and in no other way; that admits tensors and plain containers only.

    Raises:
        BundleError: if the file is not such a checkpoint or does not fit the recipe, or the bundle cannot be written.
    """
    sha256 = _inspect(checkpoint, recipe)
    state = {name: tensor.clone() for name, tensor in convert_state_dict(_load(checkpoint), recipe.model).items()}
    shape = _shape(checkpoint, recipe, state)
    faults = differences(
        {n: (tuple(t.shape), t.dtype) for n, t in state.items()}, empty_model(recipe.model, shape).state_dict()
    )
    if faults:
        raise BundleError(f"{checkpoint}: does not fit the recipe {recipe.name}: {faults}; override it with --set")
    provenance = Provenance(zoo_version=zoo.__version__, torch_version=torch.__version__, converted_from_sha256=sha256)
    return write_bundle(out, Contents(recipe, shape, (), provenance, state), add_probe)


def _inspect(path: Path, recipe: Recipe) -> str:
    """Refuse what cannot be the recipe's checkpoint before it is unpickled; its SHA-256."""
    widest = GraphShape(num_node_features=1024, num_edge_features=1024, num_tasks=1024)
    limit = _BYTES_PER_PARAMETER * recipe.model.num_parameters(widest) + _SLACK_BYTES
    with read_errors(path, BundleError):
        try:
            if path.stat().st_size > limit:
                raise BundleError(f"{path}: larger than any checkpoint of the recipe {recipe.name} could be")
            return sha256_of(path)
        except FileNotFoundError:
            raise BundleError(f"{path}: no such file") from None


def _load(path: Path) -> dict[str, Tensor]:
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # The unpickler of a damaged or hostile file can fail in any way.
    except Exception as error:
        reason = "it holds more than tensors" if "weights" in str(error).lower() else "it is damaged or cut short"
        raise BundleError(f"{path}: not a checkpoint that can be read safely: {reason}") from error
    state = data.get("model_state_dict") if isinstance(data, Mapping) else None
    if not isinstance(state, Mapping):
        raise BundleError(f"{path}: not a checkpoint of the authors' code: it has no 'model_state_dict'")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise BundleError(f"{path}: model_state_dict: {name!r} is not a dense tensor")
    return dict(state)


def _shape(path: Path, recipe: Recipe, state: Mapping[str, Tensor]) -> GraphShape:
    """The shape of the graphs that the checkpoint was trained on, read from the sizes of its first and last tensors."""

    def size(name: str, dim: int, num_dims: int) -> int:
        tensor = state.get(name)
        if tensor is None or tensor.dim() != num_dims:
            raise BundleError(f"{path}: does not fit the recipe {recipe.name}: it has no fitting {name!r}")
        return tensor.shape[dim]

    if recipe.model.type == "rev_gat":
        return GraphShape(num_node_features=size("first.linear.weight", 1, 2), num_tasks=size("bias", 0, 1))
    category = "node_encoder.category.weight"
    return GraphShape(
        num_node_features=size("node_encoder.linear.weight", 1, 2),
        num_node_categories=size(category, 1, 2) if category in state else 0,
        num_edge_features=size("edge_encoder.weight", 1, 2) if recipe.model.reads_edges else 0,
        num_tasks=size("head.weight", 0, 2),
    )


# Their name, as a pattern, and ours.
_ENDS = (
    (r"node_one_hot_encoder\.", r"node_encoder.category."),
    (r"node_features_encoder\.", r"node_encoder.linear."),
    (r"last_norm\.", r"norm."),
    (r"node_pred_linear\.", r"head."),
    (r"bias_last\.bias$", r"bias"),
)
_CONV = (
    (r"(?:gcn|conv)\.edge_encoder\.", r"conv.edge_linear."),
    (r"gcn\.mlp\.", r"conv.mlp."),
    (r"gcn\.t$", r"conv.temperature"),
    (r"gcn\.p$", r"conv.power"),
    (r"gcn\.y$", r"conv.degree_logit"),
    (r"gcn\.msg_norm\.msg_scale$", r"conv.message_scale"),
    (r"gcn\.lin_l\.", r"conv.neighbour."),
    (r"gcn\.lin_r\.", r"conv.root."),
    (r"gcn\.lin\.", r"conv.linear."),
    (r"gcn\.att_src$", r"conv.attend_source"),
    (r"gcn\.att_dst$", r"conv.attend_target"),
    (r"gcn\.bias$", r"conv.bias"),
    (r"conv\.(fc|res_fc|attn_l|attn_r)", r"conv.\1"),
)
_ATTENTION = (
    (r"\bres_fc\.", "residual."),
    (r"\bfc\.", "linear."),
    (r"\battn_l$", "attend_source"),
    (r"\battn_r$", "attend_target"),
)
_REVERSIBLE = re.compile(r"^(?:gcns|convs)\.(\d+)\._fn\.Fms\.(\d+)\.(.+)$")
_PLAIN = re.compile(r"^convs\.(\d+)\.(.+)$")


def convert_state_dict(official: Mapping[str, Tensor], spec: Model) -> dict[str, Tensor]:
    """Rename the tensors of an official RevGCN or RevGAT state dict to those that the model of ``spec`` loads strictly.

    Raises:
        BundleError: if a tensor's name is unknown.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in official.items():
        new = _rename(name.removeprefix("module."), spec)
        if new.endswith((".attend_source", ".attend_target")) and tensor.dim() == 3:
            # DGL keeps attention vectors as [1, H, C].
            tensor = tensor.squeeze(0)
        result[new] = tensor
    return result


def convert_block_name(name: str) -> str:
    """The name inside one of our blocks of a tensor named ``name`` inside one of theirs."""
    for pattern, replacement in _CONV:
        if re.match(pattern, name):
            return _attention(re.sub("^" + pattern, replacement, name))
    if re.match(r"norm\.(weight|bias|running_mean|running_var|num_batches_tracked)$", name):
        return name
    raise BundleError(f"{name!r}: no tensor of this name in the authors' reversible blocks is known")


def _rename(name: str, spec: Model) -> str:
    # Their list of layers counts the first and the last attention layer of RevGAT, which stand apart in ours.
    offset = 1 if isinstance(spec, RevGATSpec) else 0
    match = _REVERSIBLE.match(name)
    if match:
        return f"stack.layers.{int(match[1]) - offset}.{match[2]}.{convert_block_name(match[3])}"
    match = _PLAIN.match(name)
    if match and isinstance(spec, RevGATSpec) and int(match[1]) in (0, spec.num_layers - 1):
        return ("last." if int(match[1]) else "first.") + _attention(match[2])
    for pattern, replacement in _ENDS:
        if re.match(pattern, name):
            return re.sub("^" + pattern, replacement, name)
    if re.match(r"(edge_encoder|norm)\.[a-z_]+$", name):
        return name
    raise BundleError(f"{name!r}: no tensor of this name in the authors' models is known")


def _attention(name: str) -> str:
    for pattern, replacement in _ATTENTION:
        name = re.sub(pattern, replacement, name)
    return name
