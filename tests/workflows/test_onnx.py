"""Models outside Python compute what they compute here, on graphs of other sizes than the one that was traced."""

from __future__ import annotations

import copy
import importlib.util

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from zoo.errors import RunError
from zoo.models.factory import build_model
from zoo.spec.model import ResSpec, RevSpec
from zoo.spec.shape import GraphShape
from zoo.workflows import onnx as module
from zoo.workflows.onnx import export_onnx, export_program

NUM_FEATURES, NUM_EDGE_FEATURES, NUM_TASKS = 6, 3, 4
SPECS = {"rev": RevSpec, "res": ResSpec}
CONVS = {
    "gen": {"type": "gen", "edge_encoder": "per_layer"},
    "gen_softmax": {"type": "gen", "aggr": {"type": "softmax"}},
    "gcn": {"type": "gcn"},
    "sage": {"type": "sage"},
    "gat": {"type": "gat"},
}
# A convolution is traced alike in every stack and every layer, so that one kind has two of them.
KINDS = [*(("rev", conv) for conv in CONVS if conv != "gat"), ("res", "gen")]


def make_model(family: str, conv: str) -> nn.Module:
    """A small model, whose weights are not those of initialization."""
    torch.manual_seed(0)
    num_layers = 2 if (family, conv) == ("rev", "gen") else 1
    data = {"type": family, "num_layers": num_layers, "hidden_channels": 16, "dropout": 0.2, "conv": CONVS[conv]}
    num_edge_features = NUM_EDGE_FEATURES if conv == "gen" else 0
    shape = GraphShape(num_node_features=NUM_FEATURES, num_edge_features=num_edge_features, num_tasks=NUM_TASKS)
    model = build_model(SPECS[family].model_validate(data), shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_graph(conv: str, num_nodes: int, num_edges: int) -> tuple[Tensor, ...]:
    """Edges in no order, with self-loops, a repeated edge, and nodes without edges."""
    edge_index = torch.randint(num_nodes - num_nodes // 4, (2, num_edges))
    edge_index[1, :2] = edge_index[0, :2]
    edge_index[:, -1] = edge_index[:, -2]
    edge_attr = (torch.randn(num_edges, NUM_EDGE_FEATURES),) if conv == "gen" else ()
    return torch.randn(num_nodes, NUM_FEATURES), edge_index, *edge_attr


def logits_of(model: nn.Module, graph: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return model(*graph)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "conv"), KINDS)
def test_program_and_onnx_file_give_the_same_logits_on_graphs_of_any_size(family, conv, tmp_path, monkeypatch):
    model = make_model(family, conv)
    traced = export_program(model)
    program = traced.module()
    # Traced once for both.
    monkeypatch.setattr(module, "export_program", lambda model: traced)
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for sizes in ((30, 170), (9, 4), (2, 3)):
        graph = make_graph(conv, *sizes)
        expected = logits_of(model, graph)
        assert_close(program(*graph), expected)
        names = ("x", "edge_index", "edge_attr")[: len(graph)]
        assert [given.name for given in session.get_inputs()] == list(names)
        feed = {name: tensor.numpy() for name, tensor in zip(names, graph, strict=True)}
        assert_close(torch.from_numpy(session.run(["logits"], feed)[0]), expected)
    domains = {node.domain for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert domains == {""}  # standard operators


@pytest.mark.parametrize(("family", "conv"), KINDS)
def test_evaluation_compiles_without_graph_breaks(family, conv):
    torch.compiler.reset()
    model = make_model(family, conv)
    # Exporting to ONNX takes the operators of each convolution apart; the whole way to a backend is gone once here.
    backend = "aot_eager" if (family, conv) == ("rev", "gen") else "eager"
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for sizes in ((30, 170), (12, 40)):
        graph = make_graph(conv, *sizes)
        assert_close(logits_of(compiled, graph), logits_of(model, graph))
    torch.compiler.reset()


def test_edge_weights_and_loops_compile_in_gcn():
    torch.compiler.reset()
    model = make_model("res", "gcn")
    graph = (*make_graph("gcn", 12, 40), None, torch.rand(40))
    # Two loops at one node would leave open whose weight counts.
    graph[1][:, 1] = torch.tensor([0, 1])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(logits_of(compiled, graph), logits_of(model, graph))
    torch.compiler.reset()


def test_exporting_leaves_the_model_as_it_is():
    model = make_model("res", "gen").double().train()
    before = copy.deepcopy(model.state_dict())
    export_program(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float64


def test_models_of_other_kinds_are_refused_by_name():
    with pytest.raises(RunError, match="GATConv cannot be exported; expected GEN, GCN or SAGE"):
        export_program(make_model("rev", "gat"))
    shape = GraphShape(num_node_features=NUM_FEATURES, num_tasks=NUM_TASKS)
    with pytest.raises(RunError, match="EquilibriumLayer cannot be exported; expected family rev or res"):
        export_program(build_model("small_deq", shape))


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r'ONNX needs onnx and onnxscript, .* pip install "revgnn-zoo\[onnx\]"'):
        export_onnx(make_model("rev", "gcn"), tmp_path / "model.onnx")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["rev", "res"])
def test_half_precision_weights_are_refused_in_favor_of_autocast(family, dtype):
    model, graph = make_model(family, "gen"), make_graph("gen", 30, 170)
    expected = logits_of(model, graph)
    model.to(dtype)
    with pytest.raises(ValueError, match=rf"torch.autocast\('cpu', {dtype}\)"):
        model(*graph)
    model.float()
    with torch.autocast("cpu", dtype):
        actual = logits_of(model, graph)
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)
