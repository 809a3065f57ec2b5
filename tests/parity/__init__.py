"""Reads the recorded cases."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from zoo.spec.model import RevGATSpec, RevSpec
from zoo.spec.shape import GraphShape

FOLDER = Path(__file__).parent


@cache
def manifest() -> dict:
    return json.loads((FOLDER / "manifest.json").read_text())["cases"]


def cases(kind: str) -> list[str]:
    return [name for name, case in manifest().items() if case["kind"] == kind]


def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / manifest()[name]["file"])


def under(recorded: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in recorded.items() if key.startswith(prefix)}


def dtype_of(name: str) -> torch.dtype:
    return {"f32": torch.float32, "f64": torch.float64}[manifest()[name]["dtype"]]


def aggr_json(args: dict) -> dict:
    """The aggregation that the authors' arguments mean, as a recipe says it."""
    name = args.get("gcn_aggr", args.get("aggr", "max"))
    if name in ("softmax", "softmax_sg", "softmax_sum"):
        # With a fixed temperature, and in "softmax_sg", the authors compute the weights without gradient.
        learned = args.get("learn_t", False) and name != "softmax_sg"
        aggr = {"type": "softmax", "temperature": args.get("t", 1.0), "learn_temperature": learned}
        aggr["detach_weights"] = not learned
    elif name in ("power", "power_sum"):
        aggr = {"type": "powermean", "power": args["p"], "learn_power": args["learn_p"]}
    else:
        return {"type": {"add": "sum"}.get(name, name)}
    if name.endswith("_sum"):
        aggr |= {"scale_by_degree": True, "degree_logit": args["y"], "learn_degree_logit": args["learn_y"]}
    return aggr


def rev_spec(args: dict) -> RevSpec:
    return RevSpec.model_validate(
        {
            "type": "rev",
            "num_layers": args["num_layers"],
            "hidden_channels": args["hidden_channels"],
            "num_groups": args["group"],
            "dropout": args["dropout"],
            "norm": args["norm"],
            "conv": {
                "type": "gen",
                "aggr": aggr_json(args),
                "num_mlp_layers": args["mlp_layers"],
                "edge_encoder": "per_layer" if args["conv_encode_edge"] else "shared",
                "message_norm": args["msg_norm"],
                "learn_message_scale": args["learn_msg_scale"],
            },
        }
    )


def rev_shape(args: dict) -> GraphShape:
    categories = 8 if args["use_one_hot_encoding"] else 0
    return GraphShape(
        num_node_features=8 + categories,
        num_node_categories=categories,
        num_edge_features=8,
        num_tasks=args["num_tasks"],
    )


def rev_gat_spec(args: dict) -> RevGATSpec:
    return RevGATSpec(
        type="rev_gat",
        num_layers=args["n_layers"],
        hidden_channels=args["n_hidden"] * args["n_heads"],
        num_heads=args["n_heads"],
        num_groups=args.get("group", 2),
        dropout=args["dropout"],
        input_dropout=args["input_drop"],
        edge_dropout=args["edge_drop"],
        attend_target=args["use_attn_dst"],
        symmetric_norm=args["use_symmetric_norm"],
    )
