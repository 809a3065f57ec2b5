"""Our models against numbers recorded from the authors' code, whichever backend computes them."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from tests import parity
from zoo.layers.block import Block
from zoo.layers.conv import GATConv, GCNConv, GENConv, SAGEConv
from zoo.layers.inputs import BlockInputs
from zoo.layers.reversible import ReversibleStack
from zoo.models.factory import build_model
from zoo.models.gnn import DropoutMasks
from zoo.models.revgat import RevGATMasks
from zoo.ops.csr import csr_from_edge_index
from zoo.ops.dispatch import use_backend
from zoo.ops.edges import EdgeInput
from zoo.spec.shape import GraphShape
from zoo.workflows.convert import convert_block_name, convert_state_dict

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
# In float32 one backend is enough: what another does otherwise, float64 shows a hundred thousand times as sharply.
BACKENDS = {torch.float64: ("reference", "chunked", "numba"), torch.float32: ("numba",)}


def recorded_cases(kind: str) -> pytest.MarkDecorator:
    """The recorded cases of a kind, each on the backends of its precision."""
    cases = [(name, backend) for name in parity.cases(kind) for backend in BACKENDS[parity.dtype_of(name)]]
    return pytest.mark.parametrize(("name", "backend"), cases)


@pytest.fixture(autouse=True)
def _on_backend(backend: str) -> Iterator[None]:
    with use_backend(backend):
        yield


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str, floor: float = 1e-6) -> None:
    """Largest difference relative to the largest value, or to ``floor`` if that is more."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    scale = expected.abs().max().item() if expected.numel() else 1.0
    error = (actual - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= TOLERANCE[expected.dtype] * max(scale, floor), f"{what}: {error} of {scale}"


def assert_gradients(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    actual = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert sorted(actual) == sorted(expected)
    # A gradient that is zero by construction (a bias before a norm) is recorded as rounding of the others.
    floor = 1e-3 * max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert_close(actual[name], gradient.reshape(actual[name].shape), name, floor)


def summed_over_ties(gradient: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Which of two identical rows gets a gradient depends on the last bit: only their sum is defined."""
    return gradient.new_zeros(gradient.shape).index_add(0, group.long(), gradient)


@recorded_cases("RevGCN")
@pytest.mark.parametrize("reversible", [True, False])
def test_revgcn_equals_the_authors(name: str, reversible: bool) -> None:
    case, recorded = parity.manifest()[name], parity.tensors(name)
    args, dtype, training = case["args"], parity.dtype_of(name), case["mode"] == "train"
    spec = parity.rev_spec(args).model_copy(update={"reversible": reversible})
    model = build_model(spec, parity.rev_shape(args)).to(dtype).train(training)
    model.load_state_dict(convert_state_dict(parity.under(recorded, "state/"), spec))
    inputs = {key: recorded[f"in/{key}"].clone().requires_grad_() for key in ("x", "node_features", "edge_attr")}
    # Their x is the species code; the sums of edge features are a table that node_index reads.
    x = inputs["node_features"][recorded["in/node_index"]]
    if args["use_one_hot_encoding"]:
        x = torch.cat([x, inputs["x"]], dim=1)
    masks = DropoutMasks(recorded.get("mask/shared"), recorded.get("mask/final")) if training else None
    out = model(x, recorded["in/edge_index"], inputs["edge_attr"], masks=masks)
    train = recorded["in/train_idx"]
    loss = F.binary_cross_entropy_with_logits(out[train], recorded["in/y"][train].to(dtype))
    loss.backward()

    assert_close(out.detach(), recorded["out/pred"], "logits")
    assert_close(loss.detach().view(1), recorded["out/loss"], "loss")
    assert_gradients(model, convert_state_dict(parity.under(recorded, "grad/"), spec))
    for key, group in (("x", "tie/node_group"), ("edge_attr", "tie/edge_group")):
        if f"grad_in/{key}" in recorded:
            actual = inputs[key].grad
            actual = torch.zeros_like(recorded[f"grad_in/{key}"]) if actual is None else actual
            ours, theirs = (summed_over_ties(g, recorded[group]) for g in (actual, recorded[f"grad_in/{key}"]))
            assert_close(ours, theirs, key)
    after = model.state_dict()
    # Their statistics are updated by the forward pass, and twice more by the backward pass; ours once.
    for key, buffer in convert_state_dict(parity.under(recorded, "buf_after_forward/"), spec).items():
        torch.testing.assert_close(after[key], buffer, msg=key)
    if "step/grad_norm_before_clip" in recorded:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert_close(norm.view(1), recorded["step/grad_norm_before_clip"], "gradient norm")
        torch.optim.Adam(model.parameters(), lr=1e-3).step()
        stepped = convert_state_dict(parity.under(recorded, "step/state/"), spec)
        parameters = dict(model.named_parameters())
        # Adam's first step is lr * sign(gradient): a gradient of nothing but rounding moves by +-lr at random.
        noise = TOLERANCE[dtype] * max(parameter.grad.abs().max() for parameter in model.parameters())
        for key in parameters.keys() & stepped.keys():
            settled = parameters[key].grad.abs() > noise
            assert_close(parameters[key].detach()[settled], stepped[key][settled], key)


CONVS = {
    "gcn": lambda channels, edge, kwargs: GCNConv(channels),
    "sage": lambda channels, edge, kwargs: SAGEConv(channels),
    "gat": lambda channels, edge, kwargs: GATConv(channels, num_heads=kwargs.get("heads", 1)),
    "gen": lambda channels, edge, kwargs: gen_conv(channels, edge, kwargs),
}


def gen_conv(channels: int, edge_channels: int | None, kwargs: dict) -> GENConv:
    aggr = parity.aggr_json(kwargs)
    return GENConv(
        channels, aggr=aggr.pop("type"), **aggr, num_mlp_layers=kwargs["mlp_layers"], embedding_channels=edge_channels
    )


@recorded_cases("GroupAdditiveCoupling")
@pytest.mark.parametrize("direction", ["reversible", "plain", "inverse"])
def test_coupling_equals_the_authors(name: str, direction: str) -> None:
    case, recorded = parity.manifest()[name], parity.tensors(name)
    num_groups, dtype = case["group"], parity.dtype_of(name)
    channels = case["channels"] // num_groups
    edge_channels = case["channels"] if case["edge"] == "full" else None
    blocks = [
        Block(channels, CONVS[case["block"]](channels, edge_channels, case["block_kwargs"]), norm=case["norm"])
        for _ in range(num_groups)
    ]
    stack = ReversibleStack([blocks], slice_edges=True).to(dtype).train(case["mode"] == "train")

    def ours(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        result = {}
        for key, tensor in official.items():
            _, _, group, rest = key.split(".", 3)
            new = f"layers.0.{group}.{convert_block_name(rest)}"
            result[new] = tensor.squeeze(0) if "attend" in new else tensor
        return result

    stack.load_state_dict(ours(parity.under(recorded, "state/")))
    x = recorded["in/x"].clone().requires_grad_()
    csr, perm = csr_from_edge_index(recorded["in/edge_index"], x.size(0))
    edge_emb = recorded["in/edge_emb"].clone().requires_grad_() if "in/edge_emb" in recorded else None
    edges = None if edge_emb is None else EdgeInput(edge_emb[perm])
    inputs = BlockInputs(csr, edges, recorded.get("in/mask") if stack.training else None)
    stack.reversible = direction != "plain"
    out = stack.inverse(x, inputs) if direction == "inverse" else stack(x, inputs)
    (out * recorded["in/w"]).sum().backward()

    prefix = "inverse" if direction == "inverse" else "forward"
    assert_close(out.detach(), recorded[f"{prefix}/out"], "output")
    assert_close(x.grad, recorded[f"{prefix}/grad_in/x"], "x")
    assert_gradients(stack, ours(parity.under(recorded, f"{prefix}/grad/")))
    if edge_emb is not None:
        assert_close(edge_emb.grad, recorded[f"{prefix}/grad_in/edge_emb"], "edge_emb")


@recorded_cases("GENConv")
def test_first_of_tied_maxima_takes_the_gradient(name: str) -> None:
    case, recorded = parity.manifest()[name], parity.tensors(name)
    conv = GENConv(case["channels"], num_mlp_layers=2).to(parity.dtype_of(name))
    conv.load_state_dict(parity.under(recorded, "state/"))
    x, edge_emb = (recorded[f"in/{key}"].clone().requires_grad_() for key in ("x", "edge_emb"))
    csr, perm = csr_from_edge_index(recorded["in/edge_index"], x.size(0))
    out = conv(x, BlockInputs(csr, EdgeInput(edge_emb[perm])))
    (out * recorded["in/w"]).sum().backward()
    assert_close(out.detach(), recorded["out/out"], "output")
    assert_close(x.grad, recorded["first/grad_in/x"], "x")
    assert_close(edge_emb.grad, recorded["first/grad_in/edge_emb"], "edge_emb")
    assert_gradients(conv, parity.under(recorded, "first/grad/"))


@recorded_cases("RevGAT")
@pytest.mark.parametrize("reversible", [True, False])
def test_revgat_equals_the_authors(name: str, reversible: bool) -> None:
    case, recorded = parity.manifest()[name], parity.tensors(name)
    args, dtype, training = case["args"], parity.dtype_of(name), case["mode"] == "train"
    spec = parity.rev_gat_spec(args).model_copy(update={"reversible": reversible})
    shape = GraphShape(num_node_features=args["in_feats"], num_tasks=args["n_classes"])
    model = build_model(spec, shape).to(dtype).train(training)
    model.load_state_dict(convert_state_dict(parity.under(recorded, "state/"), spec))
    x, edge_index = recorded["in/feat"].clone().requires_grad_(), recorded["in/edge_index"].long()
    kept = None
    if training and args["edge_drop"]:
        kept = torch.ones(args["n_layers"], edge_index.size(1), dtype=torch.bool)
        for row, permutation in zip(kept, recorded["mask/perms"].long(), strict=True):
            row[permutation[: int(edge_index.size(1) * args["edge_drop"])]] = False
    masks = [recorded.get(f"mask/{key}") if training else None for key in ("input", "shared", "final")]
    out = model(x, edge_index, masks=RevGATMasks(*masks, kept))
    train = recorded["in/train_idx"]
    eps = 1 - math.log(2)
    cross_entropy = F.cross_entropy(out[train], recorded["in/y"][train].long(), reduction="none")
    loss = (torch.log(eps + cross_entropy) - math.log(eps)).mean()
    loss.backward()

    assert_close(out.detach(), recorded["out/pred"], "logits")
    assert_close(loss.detach().view(1), recorded["out/loss"], "loss")
    assert_gradients(model, convert_state_dict(parity.under(recorded, "grad/"), spec))
    assert_close(x.grad, recorded["grad_in/feat"], "x")
    after = model.state_dict()
    for key, buffer in convert_state_dict(parity.under(recorded, "buf_after_forward/"), spec).items():
        torch.testing.assert_close(after[key], buffer, msg=key)
