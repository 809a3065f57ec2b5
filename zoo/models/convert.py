"""State dicts of the authors' code (github.com/lightaime/deep_gcns_torch) to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from zoo.errors import BundleError
from zoo.spec.model import Model, RevGATSpec

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
    """Rename the tensors of an official RevGCN or RevGAT state dict.

    Args:
        official: ``model_state_dict`` of the authors' checkpoint.
        spec: the model that it holds.

    Returns:
        A state dict that the model built from ``spec`` loads strictly.

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
