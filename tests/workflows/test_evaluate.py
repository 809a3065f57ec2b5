import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.workflows.small import NUM_NODES, small_recipe, write_graph
from tests.workflows.test_load import make_bundle
from zoo.data.graph import Graph, directed_edges
from zoo.data.partition import RandomParts
from zoo.data.synthetic import write_synthetic_proteins
from zoo.errors import RecipeError, RunError, ZooError, ZooWarning
from zoo.layers.conv import SAGEConv
from zoo.models.factory import build_model
from zoo.spec.recipe import read_recipe
from zoo.spec.results import Measured
from zoo.spec.shape import GraphShape
from zoo.spec.shipped import recipe_path
from zoo.workflows import evaluate as module
from zoo.workflows import session, step
from zoo.workflows.create import create_model
from zoo.workflows.evaluate import (
    Logits,
    Protocol,
    eval_protocol,
    evaluate,
    measure,
    predict,
    test_protocol,
    views,
)
from zoo.workflows.export import export
from zoo.workflows.graphs import is_synthetic, recipe_graph
from zoo.workflows.load import load
from zoo.workflows.run_dir import RunDir
from zoo.workflows.train import train

# Not a test.
test_protocol.__test__ = False  # type: ignore[attr-defined]
CPU = torch.device("cpu")


def figures_of(reference: Path, **options: Any) -> list[Measured]:
    """What ``evaluate`` measures, without what it is compared with."""
    return [comparison.figure for comparison in evaluate(reference, **options)]


@pytest.fixture(scope="module")
def bundle(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(finished_run, tmp_path_factory.mktemp("bundle") / "small")[0]


def test_logits_are_averaged_over_the_views(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    graph, _ = recipe_graph(recipe)
    model = build_model(recipe.model, graph.shape).eval()
    protocol = Protocol(3, 4, 7, "test")
    expected = torch.zeros(NUM_NODES, 3)
    with torch.no_grad():
        for view in range(3):
            for part in RandomParts(graph, 4, session.generator(7, "test", view)):
                expected[part.nodes] += model(part.x, part.csr, part.edge_attr) / 3
    actual = predict(model, graph, protocol, device=CPU, precision="fp32")
    assert actual.dtype == torch.float32
    assert torch.allclose(actual, expected, atol=1e-6)


def test_one_part_is_the_model_on_the_whole_graph(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    graph, _ = recipe_graph(recipe)
    model = build_model(recipe.model, graph.shape).eval()
    edge_index, edge_attr = directed_edges(graph)
    with torch.no_grad():
        expected = model(graph.x, edge_index, edge_attr)
    assert torch.equal(predict(model, graph, Protocol(1, 1, 0, "x"), device=CPU, precision="fp32"), expected)


def test_prediction_drops_nothing_and_gives_the_model_back_as_it_was(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    graph, _ = recipe_graph(recipe)
    model = build_model(recipe.model, graph.shape).train()
    protocol = Protocol(1, 2, 0, "x")
    first = predict(model, graph, protocol, device=CPU, precision="fp32")
    assert torch.equal(predict(model, graph, protocol, device=CPU, precision="fp32"), first)
    assert model.training
    assert not predict(model.eval(), graph, protocol, device=CPU, precision="fp32").requires_grad
    assert not model.training


@pytest.mark.parametrize("num_views", [1, 2])
def test_evaluation_keeps_the_logits_of_the_nodes_that_it_scores(num_views: int, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    graph, split = recipe_graph(recipe)
    model = build_model(recipe.model, graph.shape).eval()
    protocol = Protocol(num_views, 4, 7, "test")
    whole = predict(model, graph, protocol, device=CPU, precision="fp32")
    nodes = split.nodes("valid", "test")
    assert 0 < len(nodes) < NUM_NODES
    rows = predict(model, graph, protocol, device=CPU, precision="fp32", nodes=nodes)
    assert torch.equal(rows, whole[nodes])
    logits = Logits(nodes, rows)
    assert torch.equal(logits[split.test], whole[split.test])
    kept, all_of_them = (
        measure(graph, split, "accuracy", source, protocol, ("valid", "test")) for source in (logits, whole)
    )
    assert kept == all_of_them


def test_views_are_the_same_every_time_and_differ_from_each_other(tmp_path: Path) -> None:
    graph, _ = recipe_graph(small_recipe(tmp_path))
    protocol = Protocol(2, 3, 0, "eval")
    nodes = [[parts.nodes(index).tolist() for parts, index in views(graph, protocol)] for _ in range(2)]
    assert nodes[0] == nodes[1]
    assert len(nodes[0]) == protocol.num_steps
    assert nodes[0][:3] != nodes[0][3:]
    others = [parts.nodes(index).tolist() for parts, index in views(graph, Protocol(2, 3, 0, "test"))]
    assert others != nodes[0]


def test_the_protocols_are_those_of_the_recipe(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    assert str(eval_protocol(recipe)) == "2 views of 2 parts"
    assert str(test_protocol(recipe)) == "3 views of 2 parts"
    whole = small_recipe(tmp_path, test__partition={"type": "full"}, eval__num_views=1)
    assert str(test_protocol(whole)) == "whole graph"
    # All views of an undivided graph are the same: one is enough.
    assert test_protocol(whole).num_views == 1
    assert str(eval_protocol(whole)) == "1 view of 2 parts"


def test_each_split_is_scored_on_its_own_nodes(tmp_path: Path) -> None:
    graph, split = recipe_graph(small_recipe(tmp_path))
    logits = torch.zeros(NUM_NODES, 3)
    logits[split.test, graph.y[split.test]] = 1.0
    logits[split.valid, (graph.y[split.valid] + 1) % 3] = 1.0
    figures = {f.split: f.value for f in measure(graph, split, "accuracy", logits, Protocol(1, 1, 0, "x"))}
    assert figures["test"] == 1.0
    assert figures["valid"] == 0.0


def test_a_run_evaluates_to_its_own_results(finished_run: Path) -> None:
    results = RunDir(finished_run).results()
    assert results is not None
    expected = results.results[:3]
    assert tuple(figures_of(finished_run, device="cpu", quiet=True)) == expected


def test_a_bundle_evaluates_like_its_run(finished_run: Path, bundle: Path) -> None:
    graph = finished_run.parent / "multiclass.npz"
    for options in ({}, {"num_views": 2, "num_parts": 5}, {"num_parts": 1}):
        of_run = figures_of(finished_run, device="cpu", quiet=True, **options)
        assert figures_of(bundle, device="cpu", quiet=True, data=str(graph), **options) == of_run


def test_the_export_gives_the_same_bits(finished_run: Path, bundle: Path) -> None:
    loaded = [load(folder) for folder in (finished_run, bundle)]
    graph, _ = recipe_graph(loaded[0].zoo_info.recipe)
    protocol = test_protocol(loaded[0].zoo_info.recipe)
    logits = [predict(one, graph, protocol, device=CPU, precision="fp32") for one in loaded]
    assert torch.equal(logits[0], logits[1])


def test_too_little_memory_is_one_line(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "predict", lambda *arguments, **options: torch.empty(1 << 60, dtype=torch.uint8))
    with pytest.raises(RunError, match=r"run: this machine is out of memory; raise --parts$"):
        figures_of(finished_run, device="cpu", quiet=True)


def test_a_stand_in_is_told_from_the_data_set_it_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    recipe = small_recipe(tmp_path)
    graph, _ = recipe_graph(recipe)
    assert not is_synthetic(recipe, graph)
    proteins = recipe.model_copy(update={"data": recipe.data.model_copy(update={"dataset": "ogbn-proteins"})})
    assert is_synthetic(proteins, graph)
    full = dataclasses.replace(graph, num_nodes=132_534)
    assert not is_synthetic(proteins, full)
    # A stand-in of the true size says what it is.
    (tmp_path / "ogbn_proteins").mkdir()
    (tmp_path / "ogbn_proteins" / "SYNTHETIC.txt").write_text("random draws")
    assert is_synthetic(proteins, full)


def test_a_run_on_synthetic_data_claims_nothing_of_the_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    write_synthetic_proteins(tmp_path / "data", 200, mean_degree=10)
    small = ["model.num_layers=2", "model.hidden_channels=8", "train.num_epochs=1", "test.num_views=1"]
    recipe = read_recipe(recipe_path("rev_deep"), [*small, "test.partition.num_parts=5"])
    # The claims of the true size, as somebody would write them in a recipe file for it.
    recipe = recipe.model_copy(update={"source": read_recipe(recipe_path("rev_deep")).source})
    assert recipe.source is not None
    assert train(recipe, tmp_path / "run", device="cpu", quiet=True).data_is_synthetic
    # The source reports a figure under this very protocol, of the real data.
    assert {one.published for one in evaluate(tmp_path / "run", device="cpu", quiet=True)} == {None}
    path, config = export(tmp_path / "run")
    assert config.provenance.data_is_synthetic
    assert config.recipe.source is None
    assert config.recipe.summary == "rev_deep, trained on synthetic data in place of ogbn-proteins"
    card = (path / "README.md").read_text()
    assert "model-index" not in card
    assert "They say nothing about the real `ogbn-proteins`." in card


def test_views_and_parts_can_be_chosen(finished_run: Path) -> None:
    figure = figures_of(finished_run, split=("test",), num_views=5, num_parts=3, device="cpu", quiet=True)[0]
    assert (figure.split, figure.protocol) == ("test", "5 views of 3 parts")
    figure = figures_of(finished_run, split=("test",), num_views=5, num_parts=1, device="cpu", quiet=True)[0]
    assert figure.protocol == "whole graph"


def test_more_parts_than_nodes_are_refused(finished_run: Path) -> None:
    with pytest.raises(RunError, match="--parts 91: multiclass has only 90 nodes"):
        figures_of(finished_run, num_parts=91, device="cpu", quiet=True)


def test_splits_are_named_and_at_least_one(finished_run: Path) -> None:
    for split, got in (([], "none"), (["train", "dev"], "'dev'")):
        with pytest.raises(RunError, match=f"split: expected some of train, valid, test, got {got}"):
            evaluate(finished_run, split=split, device="cpu", quiet=True)


def test_a_run_on_clusters_says_so_and_finds_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def halves(graph: Graph, num_clusters: int) -> torch.Tensor:
        found.append(num_clusters)
        return torch.arange(graph.num_nodes) * num_clusters // graph.num_nodes

    monkeypatch.setattr(step, "metis_clusters", halves)
    metis = {"type": "metis", "num_parts": 2, "num_clusters": 6}
    recipe = small_recipe(tmp_path, train__partition=metis, eval__partition=metis, test__partition=metis)
    results = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    assert found == [6]
    assert results.results[0].protocol == "3 views of 2 parts of 6 clusters"
    figures = figures_of(tmp_path / "run", device="cpu", quiet=True)
    assert tuple(figures) == results.results[:3]
    more = small_recipe(
        tmp_path, train__partition=metis, eval__partition=metis, test__partition=metis, train__num_epochs=9
    )
    monkeypatch.setattr(step, "metis_clusters", lambda graph, count: halves(graph, count).flip(0))
    with pytest.raises(RunError, match="cannot continue: the clusters changed since the state was saved"):
        train(more, tmp_path / "run", device="cpu", quiet=True, resume=True)
    monkeypatch.setattr(step, "metis_clusters", halves)
    (whole,) = figures_of(tmp_path / "run", split="test", num_parts=1, device="cpu", quiet=True)
    assert whole.protocol == "whole graph"
    with pytest.raises(RunError, match="num_parts: expected 1 to 6, the number of clusters of the recipe, got 7"):
        figures_of(tmp_path / "run", num_parts=7, device="cpu", quiet=True)


def test_fewer_clusters_than_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"eval.partition: num_clusters: 3 do not fill the 4 of num_parts"):
        small_recipe(tmp_path, eval__partition={"type": "metis", "num_parts": 4, "num_clusters": 3})


DIGITS = GraphShape(num_node_features=64, num_tasks=10)


@pytest.mark.parametrize("name", ["small_wt_rev", "small_wt_res", "small_oscillator"])
def test_models_that_share_weights_take_other_numbers_of_steps(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, DIGITS, hidden_channels=8)
    calls: list[nn.Module] = []
    for layer in model.modules():
        if isinstance(layer, SAGEConv):
            layer.register_forward_hook(lambda conv, arguments, out: calls.append(conv))
    counts, figures = [], []
    for steps in (None, 8, 24):
        figures.append(evaluate(model, num_steps=steps, split="test", device="cpu", quiet=True)[0])
        counts.append(len(calls))
        calls.clear()
    assert counts[0] == counts[1] == counts[2] / 3
    assert figures[0] == figures[1]
    assert model.stack.num_steps == 8


def test_other_steps_need_shared_weights_and_are_compared_with_no_figure() -> None:
    own, changed = (
        evaluate("small_wt_rev", num_steps=steps, split="test", device="cpu", quiet=True)[0] for steps in (None, 16)
    )
    assert own.published is not None
    assert changed.published is None
    assert changed.figure.value != own.figure.value
    with pytest.raises(RunError, match="--steps: every layer of this model has weights of its own"):
        evaluate("quickstart", num_steps=9, device="cpu", quiet=True)


@pytest.mark.filterwarnings("ignore:a forward solve stopped")
@pytest.mark.parametrize("name", ["small_deq", "small_rev_deq"])
def test_an_equilibrium_may_iterate_longer_or_shorter(name: str) -> None:
    model = create_model(name, DIGITS, hidden_channels=8)
    own = model.stack.solver
    for steps in (2, 200):
        model.stack.solver = dataclasses.replace(own, tol=1e-30)
        evaluate(model, num_steps=steps, split="test", device="cpu", quiet=True)
        assert model.stack.forward_log.take()["mean_forward_iters"] == steps
    assert model.stack.solver == dataclasses.replace(own, tol=1e-30)


def test_a_path_for_a_named_data_set_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path, data={"dataset": "digits"})
    with pytest.raises(RecipeError, match="--data goes with the data set 'file' only; this model's is 'digits'"):
        figures_of(folder, data="x", device="cpu", quiet=True)


def test_a_graph_of_another_shape_is_refused(bundle: Path, finished_run: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(finished_run.parent / "multiclass.npz"))
    arrays["x"] = arrays["x"][:, :5]
    np.savez(tmp_path / "narrow.npz", **arrays)
    with pytest.raises(RunError, match=r"the graph has .*num_node_features=5.*, the model was made for .*=6"):
        figures_of(bundle, data=str(tmp_path / "narrow.npz"), device="cpu", quiet=True)


def test_a_relative_path_is_also_looked_for_among_the_data(
    bundle: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "nothing"))
    with pytest.raises(ZooError, match=r"data\.path: no such file or folder: multiclass\.npz nor .*nothing"):
        figures_of(bundle, device="cpu", quiet=True)
    monkeypatch.setenv("ZOO_DATA", str(finished_run.parent))
    assert len(figures_of(bundle, device="cpu", quiet=True)) == 3


def test_data_that_changed_since_the_run_are_told(tmp_path: Path) -> None:
    train(small_recipe(tmp_path, train__num_epochs=1), tmp_path / "run", device="cpu", quiet=True)
    export(tmp_path / "run")
    evaluate(tmp_path / "run", device="cpu", quiet=True)
    write_graph(tmp_path / "multiclass.npz", y=np.arange(NUM_NODES) // 30)
    for folder in (tmp_path / "run", tmp_path / "run" / "bundle"):
        with pytest.warns(ZooWarning, match="the data are not those that the model was trained on"):
            evaluate(folder, data=str(tmp_path / "multiclass.npz"), device="cpu", quiet=True)
