"""The model as a user meets it."""

import time

import pytest
import torch
from pydantic import TypeAdapter

from zoo.errors import BundleError, RecipeError
from zoo.models.factory import build_model
from zoo.ops.csr import csr_from_edge_index
from zoo.spec.conv import GATConvSpec, GCNConvSpec, GenConvSpec, SAGEConvSpec
from zoo.spec.model import Model, RevGATSpec, RevSpec
from zoo.spec.shape import GraphShape
from zoo.workflows.convert import convert_state_dict

SHAPE = GraphShape(num_node_features=7, num_node_categories=3, num_edge_features=4, num_tasks=5)
PROTEINS = GraphShape(num_node_features=16, num_node_categories=8, num_edge_features=8, num_tasks=112)


def spec(**changes) -> RevSpec:
    return RevSpec.model_validate(
        {
            "type": "rev",
            "num_layers": 2,
            "hidden_channels": 8,
            "dropout": 0.2,
            "conv": {"type": "gen", "edge_encoder": "per_layer"},
            **changes,
        }
    )


def graph(num_nodes: int = 9, num_edges: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    x = torch.randn(num_nodes, 7, generator=generator)
    return x, edge_index, torch.rand(num_edges, 4, generator=generator)


@pytest.mark.parametrize(
    ("num_layers", "channels", "count"), [(1001, 80, 20_031_384), (448, 224, 68_471_608), (112, 64, 1_457_080)]
)
def test_published_parameter_counts_and_quick_building(num_layers: int, channels: int, count: int) -> None:
    published = spec(num_layers=num_layers, hidden_channels=channels)
    assert published.num_parameters(PROTEINS) == count
    with torch.device("meta"):
        start = time.process_time()
        model = build_model(published, PROTEINS)
        assert time.process_time() - start < 20
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_rev_gat_has_the_published_parameter_count() -> None:
    published = RevGATSpec(type="rev_gat", num_layers=5, hidden_channels=768, num_heads=3)
    assert published.num_parameters(GraphShape(num_node_features=168, num_tasks=40)) == 2_098_256


@pytest.mark.parametrize("conv", [{"type": "gcn"}, {"type": "sage"}, {"type": "gat", "num_heads": 3}])
@pytest.mark.parametrize("num_groups", [2, 4])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_counts_by_arithmetic_equal_the_built_model(conv: dict, num_groups: int, norm: str) -> None:
    small = spec(conv=conv, num_groups=num_groups, norm=norm)
    model = build_model(small, SHAPE)
    assert small.num_parameters(SHAPE) == sum(parameter.numel() for parameter in model.parameters())


def test_state_dict_names_and_shapes() -> None:
    block = {
        "norm.weight": (4,),
        "norm.bias": (4,),
        "conv.edge_linear.weight": (4, 8),
        "conv.edge_linear.bias": (4,),
        "conv.mlp.0.weight": (8, 4),
        "conv.mlp.0.bias": (8,),
        "conv.mlp.1.weight": (8,),
        "conv.mlp.1.bias": (8,),
        "conv.mlp.3.weight": (4, 8),
        "conv.mlp.3.bias": (4,),
    }
    ends = {
        "node_encoder.category.weight": (3, 3),
        "node_encoder.category.bias": (3,),
        "node_encoder.linear.weight": (8, 7),
        "node_encoder.linear.bias": (8,),
        "edge_encoder.weight": (8, 4),
        "edge_encoder.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "head.weight": (5, 8),
        "head.bias": (5,),
    }
    expected = ends | {
        f"stack.layers.{layer}.{group}.{name}": size
        for layer in range(2)
        for group in range(2)
        for name, size in block.items()
    }
    assert {name: tuple(tensor.shape) for name, tensor in build_model(spec(), SHAPE).state_dict().items()} == expected


def test_groups_of_a_layer_start_equal_and_layers_do_not() -> None:
    layers = build_model(spec(), SHAPE).stack.layers
    weights = [[block.conv.mlp[0].weight for block in layer] for layer in layers]
    assert torch.equal(weights[0][0], weights[0][1])
    assert not torch.equal(weights[0][0], weights[1][0])


def test_edge_order_does_not_matter_and_a_csr_is_taken_as_it_is() -> None:
    model = build_model(spec(), SHAPE).eval()
    x, edge_index, edge_attr = graph()
    expected = model(x, edge_index, edge_attr)
    order = torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x, edge_index[:, order], edge_attr[order]), expected)
    csr, perm = csr_from_edge_index(edge_index, x.size(0))
    assert torch.equal(model(x, csr, edge_attr[perm]), expected)


def test_reversible_and_plain_agree_to_the_last_bit_in_training() -> None:
    x, edge_index, edge_attr = graph()
    losses = []
    for reversible in (True, False):
        torch.manual_seed(0)
        model = build_model(spec(reversible=reversible), SHAPE)
        losses.append(model(x, edge_index, edge_attr).square().mean())
    assert torch.equal(*losses)


def test_additions_of_deep_stacks_are_scaled_in_training_backward_and_evaluation() -> None:
    arguments = graph()
    outs, gradients = [], []
    for changes in ({}, {"scale_by_depth": True}, {"scale_by_depth": True, "reversible": False}):
        torch.manual_seed(0)
        model = build_model(spec(num_layers=4, dropout=0.0, **changes), SHAPE).double()
        for name, parameter in model.named_parameters():
            # A block ends in a linear map, which half as large is what the scale makes of it.
            if not changes and name.startswith("stack.") and ".conv.mlp.3." in name:
                parameter.data.mul_(0.5)
        out = model(*(a.double() if a.is_floating_point() else a for a in arguments))
        out.square().sum().backward()
        outs.append(out)
        gradients.append(model.node_encoder.linear.weight.grad)
    for out, gradient in zip(outs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(out, outs[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-9, atol=1e-12)


def test_dropout_is_off_in_eval() -> None:
    model = build_model(spec(), SHAPE)
    arguments = graph()
    assert not torch.equal(model(*arguments), model(*arguments))
    model.eval()
    assert torch.equal(model(*arguments), model(*arguments))


@pytest.mark.parametrize("conv", [GCNConvSpec(type="gcn"), SAGEConvSpec(type="sage"), GATConvSpec(type="gat")])
def test_convolutions_without_edge_features(conv) -> None:
    x, edge_index, _ = graph()
    shape = GraphShape(num_node_features=7, num_tasks=5)
    assert build_model(spec(conv=conv.model_dump()), shape)(x, edge_index).shape == (9, 5)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "rev", "num_layers": 2, "hidden_channels": 8, "conv": {"type": "gcn"}},
        {"type": "res", "num_layers": 2, "hidden_channels": 8, "conv": {"type": "gen"}},
        {"type": "deq", "hidden_channels": 8, "conv": {"type": "sage"}},
        {"type": "rev_gat", "num_layers": 3, "hidden_channels": 8},
    ],
    ids=lambda model: model["type"],
)
def test_a_model_that_reads_no_edge_features_refuses_them(model) -> None:
    x, edge_index, edge_attr = graph()
    built = build_model(TypeAdapter(Model).validate_python(model), SHAPE)
    with pytest.raises(ValueError, match="this model reads no edge features: leave edge_attr out"):
        built(x, edge_index, edge_attr)
    assert built(x, edge_index).shape == (9, 5)


def test_a_graph_without_edges_or_with_one_node() -> None:
    model = build_model(spec(), SHAPE)
    nothing = torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, 4)
    for num_nodes in (1, 3):
        out = model(torch.randn(num_nodes, 7), *nothing)
        out.sum().backward()
        assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x, e, a: (x, e), r"reads edge features: give edge_attr \[E, 4\]"),
        (lambda x, e, a: (x, e, a[:-1]), r"edge_attr: expected shape \(30, 4\), got \(29, 4\)"),
        (lambda x, e, a: (x, e + 5, a), r"node ids must be in 0\.\.8"),
        (lambda x, e, a: (x, -e, a), r"node ids must be in 0\.\.8"),
        (lambda x, e, a: (x, e.float(), a), "expected integers"),
        (lambda x, e, a: (x, e.t(), a), "expected (integers|shape)"),
        (lambda x, e, a: (x[:-1], csr_from_edge_index(e, 9)[0], a), "the CSR has 9 nodes, x has 8"),
    ],
)
def test_wrong_inputs_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(spec(), SHAPE)(*arguments(*graph()))


def test_a_recipe_that_does_not_fit_the_graph_is_refused() -> None:
    with pytest.raises(
        RecipeError, match="'gen' reads edge features, and the graph has none; set edge_encoder to 'none'"
    ):
        build_model(spec(), GraphShape(num_node_features=7, num_tasks=5))
    absurd = RevSpec(
        type="rev", num_layers=100_000, hidden_channels=65_536, conv=GenConvSpec(type="gen", edge_encoder="none")
    )
    with pytest.raises(RecipeError, match="at most 20,000,000,000 are built"):
        build_model(absurd, SHAPE)


def test_unknown_tensor_names_are_refused() -> None:
    with pytest.raises(BundleError, match="no tensor of this name"):
        convert_state_dict({"gcns.0._fn.Fms.0.secret": torch.zeros(1)}, spec())
    with pytest.raises(BundleError, match="no tensor of this name"):
        convert_state_dict({"anything": torch.zeros(1)}, spec())
