"""The convolutions of PyTorch Geometric in every family: exact counts, exact gradients, memory of one layer."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.layers.graphs import plain, stack_inputs
from zoo.errors import RecipeError
from zoo.layers.conv import CONVS
from zoo.layers.pyg_conv import PYG_CONVS, PygConv
from zoo.models.factory import build_model
from zoo.spec.base import parse_spec
from zoo.spec.model import DeqSpec, Model, ResSpec, RevSpec
from zoo.spec.shape import GraphShape
from zoo.workflows.load import fill

OPTIONS: dict[str, dict[str, int]] = {
    "gatv2": {"num_heads": 3},
    "transformer": {"num_heads": 2},
    "general": {"num_heads": 2},
    "cheb": {"num_hops": 3},
    "tag": {"num_hops": 2},
    "pna": {"mean_degree": 5},
}
NAMES = list(PYG_CONVS)
FAMILIES: list[tuple[Any, dict[str, Any]]] = [
    (RevSpec, {"type": "rev", "num_layers": 3}),
    (RevSpec, {"type": "rev", "num_layers": 4, "num_distinct_layers": 2, "num_groups": 4, "norm": "batch"}),
    (ResSpec, {"type": "res", "num_layers": 3, "checkpoint": True}),
    (DeqSpec, {"type": "deq", "num_warmup_epochs": 1, "num_warmup_steps": 2}),
    (DeqSpec, {"type": "deq", "solver": {"type": "reversible", "max_iters": 4}}),
]


def model_spec(name: str, family: int = 0, **changes: Any) -> Any:
    cls, keys = FAMILIES[family]
    conv = {"type": name, **OPTIONS.get(name, {})}
    return parse_spec(cls, {"hidden_channels": 8, "dropout": 0.1, "conv": conv, **keys, **changes}, where="here")


def shape(spec: Model) -> GraphShape:
    return GraphShape(num_node_features=7, num_edge_features=4 if spec.reads_edges else 0, num_tasks=5)


def graph(spec: Model, dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 7, generator=generator, dtype=dtype)
    edge_attr = torch.rand(80, 4, generator=generator, dtype=dtype)
    return [x, torch.randint(19, (2, 80), generator=generator), edge_attr if spec.reads_edges else None]


def stack(name: str, num_layers: int = 3) -> tuple[nn.Module, tuple[Any, Any]]:
    """A reversible stack in float64, its states and its inputs."""
    torch.manual_seed(0)
    spec = model_spec(name, num_layers=num_layers)
    found = build_model(spec, shape(spec)).double().stack
    x, inputs = stack_inputs()
    return found, (x, inputs if spec.reads_edges else inputs._replace(edges=None))


@pytest.mark.filterwarnings("ignore:.*without converging")
@pytest.mark.parametrize("family", range(len(FAMILIES)))
@pytest.mark.parametrize("name", NAMES)
def test_every_family_counts_and_trains_it(name: str, family: int) -> None:
    spec = model_spec(name, family)
    torch.manual_seed(0)
    model = build_model(spec, shape(spec))
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.num_parameters(shape(spec))
    model(*graph(spec)).square().mean().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_reversible_gradients_equal_plain_autograd(name: str) -> None:
    reversible, (x, inputs) = stack(name)
    twin = plain(copy.deepcopy(reversible))
    results = []
    for module in (reversible, twin):
        state = x.clone().requires_grad_()
        out = module(state, inputs)
        out.square().mean().backward()
        results.append([out.detach(), state.grad, *(parameter.grad for parameter in module.parameters())])
    largest = max(float(tensor.abs().max()) for tensor in results[1])
    for ours, theirs in zip(*results, strict=True):
        # A bias before a norm has a gradient of zero, of which rounding leaves something.
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * largest)


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", NAMES)
def test_stored_activations_do_not_grow_with_depth(name: str) -> None:
    def stored(num_layers: int) -> int:
        module, (x, inputs) = stack(name, num_layers)
        # A group reads a view of the mask, which has its storage.
        own = {storage(tensor) for tensor in (*module.parameters(), inputs.mask, *inputs.csr, *(inputs.edges or ()))}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if storage(tensor) not in own:
                kept[storage(tensor)] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(x.requires_grad_(), inputs)
        return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())

    assert stored(3) == stored(12) == 12 * 8 * 8


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_layer_of_pyg(name: str) -> None:
    module, (x, inputs) = stack(name)
    conv = module.layers[0][0].conv
    assert isinstance(conv, PygConv)
    assert type(conv.conv).__module__.startswith("torch_geometric.nn.conv")
    source = inputs.csr.col.long()
    target = torch.repeat_interleave(torch.arange(12), inputs.csr.rowptr.diff())
    arguments = [x[:, :4], torch.stack([source, target])]
    if inputs.edges is not None:
        embedding = nn.functional.linear(inputs.edges.attr, inputs.edges.weight, inputs.edges.bias)
        arguments.append(conv.edge_linear(embedding))
    torch.testing.assert_close(conv(x[:, :4], inputs), conv.conv(*arguments))


def test_pna_does_not_depend_on_the_graph() -> None:
    conv = CONVS["pna"](8, mean_degree=7)
    assert float(conv.conv.aggr_module.avg_deg_lin) == 7
    assert float(conv.conv.aggr_module.avg_deg_log) == pytest.approx(torch.tensor(8.0).log().item())


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_restores_it(name: str) -> None:
    spec = model_spec(name)
    model = build_model(spec, shape(spec)).eval()
    # Bundles are checked against a model on the meta device before a byte of them is read.
    with torch.device("meta"):
        empty = build_model(spec, shape(spec))
    restored = fill(empty, model.state_dict())
    assert torch.equal(restored(*graph(spec)), model(*graph(spec)))


def test_weight_normalization_is_refused() -> None:
    with pytest.raises(RecipeError, match="weight_norm goes with the convolutions of this package, not with 'gin'"):
        model_spec("gin", 3, weight_norm="weight")


def test_edge_features_are_asked_for() -> None:
    spec = model_spec("gine")
    with pytest.raises(RecipeError, match="'gine' reads edge features, and the graph has none"):
        build_model(spec, GraphShape(num_node_features=7, num_tasks=5))


def test_pyg_is_imported_only_when_its_layer_is_built() -> None:
    code = (
        "import sys; from zoo.layers.conv import CONVS; import zoo.models.factory; CONVS['gcn'](4)\n"
        "assert 'torch_geometric' not in sys.modules; CONVS['gin'](4); assert 'torch_geometric' in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=root, timeout=120)
