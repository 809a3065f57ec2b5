"""Small graphs and stacks for the tests of layers."""

import torch
from torch import nn

from zoo.layers.block import Block
from zoo.layers.conv import GENConv
from zoo.layers.inputs import BlockInputs
from zoo.layers.reversible import ReversibleStack
from zoo.ops.csr import CSR, csr_from_edge_index
from zoo.ops.edges import EdgeInput


def random_csr(num_nodes: int, num_edges: int, seed: int = 0) -> CSR:
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(num_nodes, (2, num_edges), generator=generator)
    return csr_from_edge_index(edge_index, num_nodes)[0]


def gen_stack(
    num_layers: int = 4, channels: int = 8, num_groups: int = 2, *, seed: int = 0, norm: str = "layer", **options
) -> ReversibleStack:
    """A reversible stack of GENConv blocks that project edge embeddings of ``channels``."""
    torch.manual_seed(seed)
    width = channels // num_groups
    layers = [
        [Block(width, GENConv(width, embedding_channels=channels, norm=norm), norm=norm) for _ in range(num_groups)]
        for _ in range(options.pop("num_distinct", num_layers))
    ]
    return ReversibleStack(layers, num_steps=num_layers, **options)


def stack_inputs(
    num_nodes: int = 12, channels: int = 8, *, dtype: torch.dtype = torch.float64, mask: bool = True, seed: int = 1
) -> tuple[torch.Tensor, BlockInputs]:
    """[N, C] states and the inputs of a stack: a graph with an isolated node, edge features, a shared mask."""
    generator = torch.Generator().manual_seed(seed)
    num_edges = 5 * num_nodes
    csr = random_csr(num_nodes - 1, num_edges)
    csr = CSR(torch.cat([csr.rowptr, csr.rowptr[-1:]]), csr.col)
    draw = {"generator": generator, "dtype": dtype}
    edges = EdgeInput(torch.rand(num_edges, 3, **draw), torch.randn(channels, 3, **draw), torch.randn(channels, **draw))
    keep = torch.rand(num_nodes, channels, **draw) > 0.25
    x = torch.randn(num_nodes, channels, **draw)
    return x, BlockInputs(csr, edges, keep.to(dtype) / 0.75 if mask else None)


def plain(stack: ReversibleStack) -> ReversibleStack:
    """The same layers under plain autograd; the parameters are shared."""
    twin = ReversibleStack(
        [list(blocks) for blocks in stack.layers],
        num_steps=stack.num_steps,
        slice_edges=stack.slice_edges,
        reversible=False,
    )
    return twin.train(stack.training)


def gradients(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """The gradients of all parameters, which are cleared."""
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    return found
