"""Edge weights in convolutions: the formulas of PyTorch Geometric, in values and gradients, and through every stack."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.pyg import GCNConv as PygGCNConv
from tests.pyg import GraphConv as PygGraphConv
from zoo.layers import Block, BlockInputs, GATConv, GCNConv, GENConv, ResidualStack, ReversibleStack
from zoo.layers.block import EquilibriumBlock
from zoo.layers.conv import RevGATConv, SAGEConv, reads_edge_weight
from zoo.layers.equilibrium import EquilibriumLayer

N, E, C = 40, 160, 8


def weighted_graph(*, with_loops: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Random states, edges and weights; node 0 has a self-loop, node 1 no incoming edge."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(2, N, (2, E), generator=generator)
    edge_index[0, : E // 10] = 1
    loops = torch.tensor([[0], [0]])
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    edge_index = torch.cat([edge_index, loops], 1) if with_loops else edge_index
    x = torch.randn(N, C, generator=generator, dtype=torch.float64)
    weight = torch.rand(edge_index.shape[1], generator=generator, dtype=torch.float64) + 0.1
    return x, edge_index, weight


def gradients(
    function: Callable[[Tensor, Tensor], Tensor], module: nn.Module, x: Tensor, weight: Tensor
) -> tuple[Tensor, list[Tensor]]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = function(x, weight)
    return out, list(torch.autograd.grad(out.square().sum(), [x, weight, *module.parameters()]))


def assert_same(conv: nn.Module, theirs: Callable[[Tensor, Tensor], Tensor], parameters: list[Tensor]) -> None:
    """Values, and gradients of states, weights and parameters."""
    x, edge_index, weight = weighted_graph()
    out, found = gradients(
        lambda x, w: conv(x, BlockInputs.from_edges(edge_index, edge_weight=w, num_nodes=N)), conv, x, weight
    )
    x2, weight2 = x.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = theirs(x2, weight2)
    torch.testing.assert_close(out, expected)
    for one, other in zip(found, torch.autograd.grad(expected.square().sum(), [x2, weight2, *parameters]), strict=True):
        torch.testing.assert_close(one, other)


def test_gcn_equals_the_one_of_pytorch_geometric() -> None:
    _, edge_index, _ = weighted_graph()
    conv, theirs = GCNConv(C).double(), PygGCNConv(C, C).double()
    theirs.lin.weight.data.copy_(conv.linear.weight.data)
    nn.init.normal_(conv.bias)
    theirs.bias.data.copy_(conv.bias.data)
    parameters = dict(theirs.named_parameters())
    ordered = [parameters["bias" if name == "bias" else "lin.weight"] for name, _ in conv.named_parameters()]
    assert_same(conv, lambda x, weight: theirs(x, edge_index, weight), ordered)


def test_sage_is_the_mean_of_weighted_neighbors() -> None:
    _, edge_index, _ = weighted_graph()
    conv, theirs = SAGEConv(C).double(), PygGraphConv(C, C, aggr="mean").double()
    theirs.lin_rel.load_state_dict(conv.neighbour.state_dict())
    theirs.lin_root.load_state_dict(conv.root.state_dict())
    assert_same(
        conv,
        lambda x, weight: theirs(x, edge_index, weight),
        [theirs.lin_rel.weight, theirs.lin_rel.bias, theirs.lin_root.weight],
    )


def test_gat_multiplies_attention_by_the_weights() -> None:
    _, (source, target), _ = weighted_graph()
    conv = GATConv(C, num_heads=2).double()

    def formula(x: Tensor, weight: Tensor) -> Tensor:
        h = (x @ conv.linear.weight.T).view(N, 2, C)
        score = (h * conv.attend_source).sum(-1)[source] + (h * conv.attend_target).sum(-1)[target]
        score = nn.functional.leaky_relu(score, 0.2).exp()
        alpha = score / torch.zeros(N, 2, dtype=x.dtype).index_add(0, target, score)[target]
        message = h[source] * (alpha * weight[:, None])[:, :, None]
        return torch.zeros_like(h).index_add(0, target, message).mean(1) + conv.bias

    assert_same(conv, formula, list(conv.parameters()))


@pytest.mark.parametrize("conv", [GCNConv(C), SAGEConv(C), GATConv(C, num_heads=2)])
def test_weights_of_one_change_nothing(conv: nn.Module) -> None:
    x, edge_index, weight = weighted_graph()
    plain = conv(x.float(), BlockInputs.from_edges(edge_index, num_nodes=N))
    ones = BlockInputs.from_edges(edge_index, edge_weight=torch.ones_like(weight), num_nodes=N)
    torch.testing.assert_close(conv(x.float(), ones), plain)


def test_a_node_of_no_weight_has_finite_gradients() -> None:
    x, edge_index, weight = weighted_graph()
    weight[-1] = 0  # the self-loop of node 0, its only edge
    conv = GCNConv(C).double()
    out, found = gradients(
        lambda x, w: conv(x, BlockInputs.from_edges(edge_index, edge_weight=w, num_nodes=N)), conv, x, weight
    )
    assert torch.equal(out[0], conv.bias)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found)


def stack_of(name: str, reversible: bool) -> nn.Module:
    torch.manual_seed(0)
    if name == "reversible":
        return ReversibleStack(
            [[Block(C // 2, GCNConv(C // 2)) for _ in range(2)] for _ in range(3)], reversible=reversible
        )
    return ResidualStack([Block(C, SAGEConv(C)) for _ in range(3)], checkpoint=reversible)


@pytest.mark.parametrize("name", ["reversible", "residual"])
def test_gradients_of_weights_through_a_stack_equal_plain_autograd(name: str) -> None:
    x, edge_index, weight = weighted_graph()
    results = []
    for saving in (True, False):
        stack = stack_of(name, saving).double()
        results.append(
            gradients(
                lambda x, w, stack=stack: stack(x, BlockInputs.from_edges(edge_index, edge_weight=w, num_nodes=N)),
                stack,
                x,
                weight,
            )
        )
    (out, found), (plain, expected) = results
    torch.testing.assert_close(out, plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert bool(found[1].abs().sum() > 0)


def test_an_equilibrium_depends_on_the_weights() -> None:
    x, edge_index, weight = weighted_graph()
    layer = EquilibriumLayer(EquilibriumBlock(C, [GCNConv(C), GCNConv(C)])).double()
    inputs = BlockInputs.from_edges(edge_index, edge_weight=weight.requires_grad_(), num_nodes=N)
    layer(x, inputs).sum().backward()
    assert weight.grad is not None
    assert bool(torch.isfinite(weight.grad).all())
    assert bool((weight.grad != 0).any())


@pytest.mark.parametrize("conv", [GENConv(C), RevGATConv(C, C, num_heads=1, attend_target=True, symmetric_norm=True)])
def test_a_convolution_that_reads_no_weights_refuses_them(conv: nn.Module) -> None:
    x, edge_index, weight = weighted_graph()
    assert not reads_edge_weight(conv)
    with pytest.raises(ValueError, match="Conv reads no edge weights: leave edge_weight out, or use GCN, SAGE or GAT"):
        conv(x.float(), BlockInputs.from_edges(edge_index, edge_weight=weight.float(), num_nodes=N))


def test_the_shape_of_weights_is_checked() -> None:
    _, edge_index, weight = weighted_graph()
    with pytest.raises(ValueError, match=r"edge_weight: expected \[\d+\], got \[\d+, 1\]"):
        BlockInputs.from_edges(edge_index, edge_weight=weight[:, None], num_nodes=N)
