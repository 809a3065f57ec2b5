"""A user's graph under every family: what a recipe leaves out follows from the graph, and it trains at once."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.pyg import NUM_NODES, some_data
from tests.workflows.small import changed, recipe_data, small_recipe
from zoo.data.graph import Graph
from zoo.errors import RecipeError, ZooWarning
from zoo.spec.recipe import Recipe, parse_recipe, read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows.compare import read_entries
from zoo.workflows.evaluate import evaluate
from zoo.workflows.export import export
from zoo.workflows.graphs import adapt_recipe, complete_recipe, recipe_graph
from zoo.workflows.run_dir import RunDir
from zoo.workflows.train import train

FAMILIES = (
    "quickstart",
    "small_res",
    "small_wt_rev",
    "small_oscillator",
    "small_deq",
    "small_rev_deq",
    "small_rev_gat",
    "small_rev_gcn",
)
NODES = torch.arange(NUM_NODES)
LABELS = {
    "binary": NODES % 2,
    "multiclass": torch.where(NODES % 7 == 0, -1, NODES % 3),
    "multilabel": torch.stack([NODES % 2, NODES % 3 == 0], 1).float(),
    "regression": torch.where(NODES % 7 == 0, torch.nan, NODES / 10),
}
GRAPHS: dict[str, dict[str, Any]] = {
    "features of nodes and edges": {},
    "no x": {"x": None, "y": LABELS["binary"]},
    "no edge_attr, [N, S]": {"edge_attr": None, "num_splits": 3, "y": LABELS["multilabel"]},
    "nothing but edges": {"x": None, "edge_attr": None, "y": LABELS["regression"]},
}


def own_recipe(name: str, data: Any, folder: Path) -> Recipe:
    """A shipped recipe on a PyG graph, short."""
    path = zoo.save_graph(Graph.from_pyg(data), folder / "own.npz")
    short = ["train.num_epochs=2", "model.hidden_channels=8", "eval.every=1"]
    if "deq" not in name:
        short.append("model.num_layers=3")
    return read_recipe(recipe_path(name), ["data.dataset=file", f"data.path={path}", *short])


@pytest.fixture(autouse=True)
def _solves_may_stop_early() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the .* solve", ZooWarning)
        yield


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_on_every_graph_at_once(family: str, graph: str, tmp_path: Path) -> None:
    recipe = own_recipe(family, some_data(**GRAPHS[graph]), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZooWarning)
        results = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    assert {figure.split for figure in results.results} == {"train", "valid", "test"}


@pytest.mark.parametrize(
    ("task", "loss", "metric"),
    [
        ("binary", "bce_with_logits", "rocauc"),
        ("multilabel", "bce_with_logits", "rocauc"),
        ("multiclass", "cross_entropy", "accuracy"),
        ("regression", "mse", "mae"),
    ],
)
def test_loss_and_metric_follow_from_the_labels(task: str, loss: str, metric: str, tmp_path: Path) -> None:
    recipe, graph = complete_recipe(own_recipe("quickstart", some_data(y=LABELS[task]), tmp_path))
    assert graph is not None
    assert graph.task == task
    assert (recipe.train.loss, recipe.eval.metric) == (loss, metric)
    assert complete_recipe(recipe)[0] == recipe


def test_what_follows_is_written_into_the_run_and_the_bundle(tmp_path: Path) -> None:
    recipe = own_recipe("quickstart", some_data(x=None, edge_attr=None, y=LABELS["regression"]), tmp_path)
    with pytest.warns(ZooWarning) as caught:
        train(recipe, tmp_path / "run", device="cpu", quiet=True)
    said = [str(warning.message) for warning in caught]
    assert said == [
        "own: has no node features; the model reads the degree",
        "own: has no edge features; the model reads none",
    ]
    folder, config = export(tmp_path / "run")
    for written in (RunDir(tmp_path / "run").recipe(), config.recipe):
        assert (written.train.loss, written.eval.metric) == ("mse", "mae")
        assert written.data.node_features == ("degree",)
        assert not written.model.reads_edges
    # What is written there asks nothing more of the data.
    assert len(evaluate(folder, data=str(tmp_path / "own.npz"), device="cpu", quiet=True)) == 3


def test_an_incomplete_recipe_resumes_its_run(tmp_path: Path) -> None:
    data = changed(recipe_data(Path(small_recipe(tmp_path).data.path)), train__num_epochs=2)
    del data["train"]["loss"], data["eval"]["metric"]
    recipe = parse_recipe(data, where="small")
    first = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    assert first.results == train(recipe, tmp_path / "run", device="cpu", quiet=True, resume=True).results
    complete = small_recipe(tmp_path, train__num_epochs=2)
    assert train(complete, tmp_path / "run", device="cpu", quiet=True).results == first.results


@pytest.mark.parametrize("family", ["small_rev_gcn", "small_res"])
def test_weights_of_edges_decide_what_is_learned(family: str, tmp_path: Path) -> None:
    """Edges of weight 0 are no edges: the run is the one without them, through parts, evaluation and export."""
    data = some_data(edge_attr=None)
    weight = (data.edge_index.sum(0) % 3 > 0).float()
    kept = weight > 0
    runs = {}
    for name, changes in (("weighted", {"edge_weight": weight}), ("ones", {"edge_weight": torch.ones_like(weight)})):
        (tmp_path / name).mkdir()
        recipe = own_recipe(family, some_data(edge_attr=None, **changes), tmp_path / name)
        runs[name] = train(recipe, tmp_path / name / "run", device="cpu", quiet=True)
    assert runs["weighted"].data_sha256 != runs["ones"].data_sha256
    (tmp_path / "fewer").mkdir()
    recipe = own_recipe(family, some_data(edge_attr=None, edge_index=data.edge_index[:, kept]), tmp_path / "fewer")
    if family == "small_rev_gcn":  # whose degree is the sum of the weights
        fewer = train(recipe, tmp_path / "fewer" / "run", device="cpu", quiet=True)
        found = RunDir(tmp_path / "weighted" / "run").metrics()
        for one, other in zip(found, RunDir(tmp_path / "fewer" / "run").metrics(), strict=True):
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert fewer.results != ()
    folder, _ = export(tmp_path / "weighted" / "run")
    path = str(tmp_path / "weighted" / "own.npz")
    assert not any(c.is_regression for c in evaluate(folder, data=path, device="cpu", quiet=True))


def test_weights_that_no_convolution_reads_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    data = some_data()
    recipe = own_recipe("quickstart", some_data(edge_weight=torch.ones(data.num_edges)), tmp_path)
    with pytest.warns(ZooWarning, match="own: has edge weights; the model reads none"):
        recipe, loaded = complete_recipe(recipe)
    assert recipe_graph(recipe, loaded)[0].edge_weight is None


def test_recipes_that_leave_out_the_metric_are_compared_in_the_same_one(tmp_path: Path) -> None:
    data = some_data(x=None, edge_attr=None, y=LABELS["regression"])
    recipes = [own_recipe(name, data, tmp_path) for name in ("quickstart", "small_res")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZooWarning)
        entries = read_entries(recipes)
    assert [entry.recipe.metric for entry in entries] == ["mae", "mae"]
    assert not any(entry.recipe.model.reads_edges for entry in entries)
    assert all(entry.recipe.data.node_features == ("degree",) for entry in entries)


def test_a_loaded_graph_may_be_given(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, train__num_epochs=2)
    graph = zoo.load_graph("file", path=recipe.data.path)
    expected = train(recipe, tmp_path / "loaded", device="cpu", quiet=True)
    Path(recipe.data.path).unlink()
    assert train(recipe, tmp_path / "given", graph=graph, device="cpu", quiet=True).results == expected.results


def test_a_small_graph_has_as_many_clusters_in_a_part(tmp_path: Path) -> None:
    graph = zoo.load_graph("shortest-path", generated={"num_nodes": 2500})
    parts = {"type": "metis", "num_parts": 50, "num_clusters": 3000}
    recipe = adapt_recipe(read_recipe("small_rev", {"train.partition": parts}), graph, "graph.npz")
    assert recipe.train.partition.num_parts == 2
    assert recipe.train.partition.num_clusters == 120


def test_a_graph_that_has_a_name_gives_it_to_the_recipe(tmp_path: Path) -> None:
    graph = zoo.load_graph("file", path=small_recipe(tmp_path).data.path)
    for name, expected in (("Trains of Spain", "Trains of Spain"), ("data", None), ("<b>", None)):
        assert adapt_recipe(read_recipe("small_rev"), replace(graph, name=name), "graph.npz").data.name == expected
    with pytest.raises(RecipeError, match=r"data: name goes with dataset 'file' only"):
        read_recipe("small_rev", ["data.name=mine"])
    mine = read_recipe("small_rev", {"data.dataset": "file", "data.path": "a.npz", "data.name": "mine"})
    assert (mine.data.title, read_recipe(mine, {"data.dataset": "digits", "data.path": None}).data.name) == (
        "mine",
        None,
    )


def test_labels_of_known_data_need_no_loading() -> None:
    recipe = read_recipe(recipe_path("small_rev"), ["data.dataset=ogbn-proteins", 'data.node_features=["edge_sum"]'])
    assert recipe.train.loss is None
    recipe, graph = complete_recipe(recipe)
    assert graph is None
    assert (recipe.train.loss, recipe.eval.metric) == ("bce_with_logits", "rocauc")


def test_what_is_asked_for_is_not_replaced(tmp_path: Path) -> None:
    recipe = own_recipe("quickstart", some_data(), tmp_path)
    asked = read_recipe(
        recipe_path("quickstart"),
        ["train.loss=mse", "data.dataset=file", f"data.path={recipe.data.path}"],
    )
    with pytest.raises(RecipeError, match="'mse' does not fit a multiclass task"):
        recipe_graph(*complete_recipe(asked))


def test_label_reuse_asks_for_classes(tmp_path: Path) -> None:
    data = changed(recipe_data(Path(small_recipe(tmp_path, task="binary").data.path), task="binary"))
    data["train"]["label_reuse"] = {}
    del data["train"]["loss"]
    with pytest.raises(RecipeError, match="label_reuse goes with a loss of classes"):
        complete_recipe(parse_recipe(data, where="small"))


def test_a_recipe_without_a_metric_says_so_where_one_is_needed(tmp_path: Path) -> None:
    recipe = own_recipe("quickstart", some_data(), tmp_path)
    with pytest.raises(RecipeError, match=r"eval\.metric: is left out"):
        _ = recipe.metric
