"""``train --report-depth``: norms by layer."""

import itertools
import json
import math

import pytest
import torch

from tests.workflows.small import recipe_data, write_graph
from tests.workflows.test_resume import outcome, run
from zoo.errors import RunError
from zoo.layers.inputs import BlockInputs
from zoo.models.factory import build_model
from zoo.spec.recipe import parse_recipe
from zoo.workflows import depth_report as module
from zoo.workflows import train as train_module
from zoo.workflows.depth_report import report_depth
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.objective import Objective
from zoo.workflows.run_dir import RunDir
from zoo.workflows.step import epoch_parts


@pytest.fixture
def drawn(monkeypatch):
    """The reports that were drawn; a picture takes longer than training on a graph this small."""
    drawn: list = []
    monkeypatch.setattr(module, "_draw", lambda run, report: drawn.append(report))
    return drawn


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory):
    return write_graph(tmp_path_factory.mktemp("graph") / "graph.npz")


def recipe(graph_file, kind, **keys):
    model = {"type": kind, "hidden_channels": 8, "conv": {"type": "gcn"}} | keys
    data = recipe_data(graph_file)
    return parse_recipe(data | {"model": model, "train": data["train"] | {"num_epochs": 1}}, where="a test")


def report(recipe, folder):
    run(recipe, folder, report_depth=True)
    return json.loads((folder / "depth.json").read_text())


def test_the_backward_pass_of_a_reversible_stack_reports_what_plain_autograd_does(graph_file, tmp_path, drawn):
    reversible = report(recipe(graph_file, "rev", num_layers=4), tmp_path / "rev")
    plain = report(recipe(graph_file, "rev", num_layers=4, reversible=False), tmp_path / "plain")
    assert [list(report) for report in drawn] == 2 * [["start"], ["start", "end"]]
    for place in ("start", "end"):
        assert reversible[place].keys() == {"state", "branch", "jacobian", "gradient"}
        for name, values in reversible[place].items():
            assert len(values) == 4
            assert min(values) > 0
            assert values == pytest.approx(plain[place][name], rel=1e-3), (place, name)


def test_figures_are_those_of_the_layers(graph_file, tmp_path, monkeypatch):
    spec = recipe(graph_file, "res", num_layers=3, norm_position="post")
    run(spec, tmp_path / "run")
    graph, split = recipe_graph(spec)
    model = build_model(spec.model, graph.shape).eval()
    part = next(iter(epoch_parts(graph, spec.train, 1)))
    x, inputs = torch.rand(len(part.nodes), 8), BlockInputs(part.csr)
    states = [x]
    for layer in model.stack.layers:
        states.append(layer(states[-1], inputs))
    # The sum of the last states, so that its gradient is one everywhere.
    monkeypatch.setattr(Objective, "step_loss", lambda objective, twin, part: twin.stack(x, inputs).sum())
    objective = Objective(spec.train, graph, split, torch.device("cpu"))
    report_depth(RunDir(tmp_path / "run"), "start", model, objective, [part])
    assert (tmp_path / "run" / "depth.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((tmp_path / "run" / "depth.json").read_text())["start"]

    def mean_square(tensor):
        return math.sqrt(tensor.square().mean().item())

    assert figures["state"] == pytest.approx([mean_square(state) for state in states[:-1]], rel=1e-4)
    added = [mean_square(after - before) for before, after in itertools.pairwise(states)]
    assert figures["branch"] == pytest.approx(added, rel=1e-4)
    grads = torch.autograd.grad(states[-1].sum(), states[1:])
    assert figures["gradient"] == pytest.approx([mean_square(grad) for grad in grads], rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_report_changes_no_result(graph_file, tmp_path, drawn):
    spec = recipe(graph_file, "rev", num_layers=4, dropout=0.3, norm="batch")
    report(spec, tmp_path / "with")
    run(spec, tmp_path / "without")
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")


def test_a_run_that_fails_after_its_first_report_can_be_started_again(graph_file, tmp_path, drawn, monkeypatch):
    spec = recipe(graph_file, "rev", num_layers=4)
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "training_step", lambda *_: (_ for _ in ()).throw(RunError("no room")))
        with pytest.raises(RunError, match="no room"):
            run(spec, tmp_path / "run", report_depth=True)
    assert (tmp_path / "run" / "depth.json").is_file()
    run(spec, tmp_path / "run")


def test_a_model_without_layers_is_refused(graph_file, tmp_path):
    with pytest.raises(RunError, match="--report-depth: needs a model with a stack of layers"):
        run(recipe(graph_file, "deq"), tmp_path / "run", report_depth=True)
