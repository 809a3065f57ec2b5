import pytest
import torch
from pydantic import TypeAdapter

from zoo.models.factory import build_model
from zoo.spec.model import Model
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import GraphShape, known_shape
from zoo.spec.shipped import list_recipes, recipe_path

PROTEINS = GraphShape(num_node_features=16, num_node_categories=8, num_edge_features=8, num_tasks=112)
SMALL = GraphShape(num_node_features=7, num_node_categories=3, num_edge_features=5, num_tasks=4)
NO_EDGES = GraphShape(num_node_features=7, num_tasks=4)
GEN = {"type": "gen", "edge_encoder": "per_layer"}


@pytest.mark.parametrize(("name", "published"), [("rev_deep", 20_031_384), ("rev_wide", 68_471_608)])
def test_the_full_models_have_the_published_number_of_parameters(name: str, published: int) -> None:
    recipe = read_recipe(recipe_path(name))
    assert known_shape(recipe) == PROTEINS
    assert recipe.model.num_parameters(PROTEINS) == published
    assert recipe.source is not None
    assert recipe.source.num_parameters == published


# Other published counts: RevGNN of 112 layers, and the official log of RevGAT on ogbn-arxiv.
@pytest.mark.parametrize(("channels", "published"), [(64, 1_457_080), (80, 2_251_384), (224, 17_141_560)])
def test_112_layers_have_the_published_number_of_parameters(channels: int, published: int) -> None:
    spec = {"type": "rev", "num_layers": 112, "hidden_channels": channels, "conv": GEN}
    assert TypeAdapter(Model).validate_python(spec).num_parameters(PROTEINS) == published


def test_rev_gat_has_the_published_number_of_parameters() -> None:
    spec = {"type": "rev_gat", "num_layers": 5, "hidden_channels": 768, "num_heads": 3}
    shape = GraphShape(num_node_features=168, num_tasks=40)
    assert TypeAdapter(Model).validate_python(spec).num_parameters(shape) == 2_098_256


def rev(conv: dict[str, object], **keys: object) -> dict[str, object]:
    return {"type": "rev", "num_layers": 3, "hidden_channels": 12, "conv": conv, **keys}


SPECS = [
    (rev(GEN), SMALL),
    (rev(GEN, num_groups=3, norm="batch"), SMALL),
    (rev(GEN, reversible=False), SMALL),
    (rev({"type": "gen"}), SMALL),
    (rev({"type": "gen", "edge_encoder": "shared"}), SMALL),
    (rev({"type": "gen", "num_mlp_layers": 1}), NO_EDGES),
    (rev({"type": "gen", "num_mlp_layers": 3, "message_norm": True, "learn_message_scale": True}), SMALL),
    (rev({**GEN, "aggr": {"type": "softmax", "learn_temperature": True}}), SMALL),
    (rev({**GEN, "aggr": {"type": "softmax", "scale_by_degree": True, "learn_degree_logit": True}}), SMALL),
    (rev({**GEN, "aggr": {"type": "powermean", "learn_power": True}}), SMALL),
    (rev({"type": "gcn"}), NO_EDGES),
    (rev({"type": "sage"}), NO_EDGES),
    (rev({"type": "gat", "num_heads": 2}), NO_EDGES),
    ({"type": "res", "num_layers": 4, "hidden_channels": 12, "conv": GEN, "norm_position": "post"}, SMALL),
    ({"type": "oscillator", "num_layers": 4, "hidden_channels": 12, "conv": GEN}, SMALL),
    ({"type": "gcnii", "num_layers": 4, "hidden_channels": 12}, NO_EDGES),
    ({"type": "rev_gat", "num_layers": 4, "hidden_channels": 24, "num_heads": 3}, NO_EDGES),
    ({"type": "rev_gat", "num_layers": 4, "hidden_channels": 16, "num_heads": 2, "attend_target": True}, NO_EDGES),
]


@pytest.mark.parametrize(("spec", "shape"), SPECS)
def test_arithmetic_agrees_with_the_model(spec: dict[str, object], shape: GraphShape) -> None:
    model = TypeAdapter(Model).validate_python(spec)
    with torch.device("meta"):
        built = build_model(model, shape)
    assert sum(p.numel() for p in built.parameters()) == model.num_parameters(shape)


@pytest.mark.parametrize("name", list_recipes())
def test_each_recipe_builds_with_the_counted_parameters(name: str) -> None:
    recipe = read_recipe(recipe_path(name))
    if "num_layers" in type(recipe.model).model_fields:
        recipe = read_recipe(recipe_path(name), ["model.num_layers=5"])
    shape = known_shape(recipe) or GraphShape(num_node_features=38, num_edge_features=5, num_tasks=12)
    with torch.device("meta"):
        built = build_model(recipe.model, shape)
    assert sum(p.numel() for p in built.parameters()) == recipe.model.num_parameters(shape)
