"""The public face: its names, their documented examples, and models made, trained and shared from Python."""

import copy
import doctest
import importlib
import inspect
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import zoo
from tests.pyg import some_data
from zoo.data.published import digits_graph
from zoo.errors import AccessError, DataError, NotFoundError, RecipeError, ZooError, ZooWarning

FUNCTIONS = [name for name in zoo.__all__ if inspect.isfunction(getattr(zoo, name))]


def test_every_public_name_is_there_and_only_these_are_listed() -> None:
    assert len(zoo.__all__) == len(set(zoo.__all__)) > 10
    for name in zoo.__all__:
        assert getattr(zoo, name) is not None
    assert dir(zoo) == sorted(zoo.__all__)
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'laod'"):
        zoo.laod  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_zoo_imports_neither_torch_nor_numpy() -> None:
    heavy = {"torch", "numpy", "pydantic"}
    code = f"import sys, zoo; dir(zoo); zoo.list_models(); sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(zoo.__file__).parents[1])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_run_and_arguments_are_typed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(zoo, name)
    module = importlib.import_module(function.__module__)
    tests = doctest.DocTestFinder(recurse=False).find(function, name, globs=dict(vars(module)))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = [doctest.DocTestRunner(optionflags=flags, verbose=False).run(test) for test in tests]
    assert not any(result.failed for result in results)
    annotations = inspect.signature(function).parameters.values()
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in annotations)


def test_models_are_listed_by_pattern_family_data_set_and_weights() -> None:
    names = zoo.list_models()
    assert set(zoo.list_recipes()) <= set(names)
    assert zoo.list_models("rev_*") == [name for name in names if name.startswith("rev_")]
    trained = zoo.list_models(pretrained=True)
    assert "quickstart" in trained
    assert sorted([*trained, *zoo.list_models(pretrained=False)]) == names
    for name in zoo.list_models(family="rev_gat", dataset="ogbn-arxiv"):
        recipe = zoo.read_recipe(name)
        assert (recipe.model.type, recipe.data.dataset) == ("rev_gat", "ogbn-arxiv")
    assert zoo.list_models("small_*", dataset="cora", family="rev") == []


def test_a_recipe_is_read_from_a_name_a_file_or_its_data(tmp_path: Path) -> None:
    recipe = zoo.read_recipe("small_rev")
    assert zoo.read_recipe(recipe) is recipe
    assert zoo.read_recipe(recipe.to_json()).to_json() == recipe.to_json()
    deeper = zoo.read_recipe("small_rev", {"model.num_layers": 20, "train.num_epochs": 3})
    assert deeper == zoo.read_recipe("small_rev", ["model.num_layers=20", "train.num_epochs=3"])
    assert (deeper.model.num_layers, deeper.train.num_epochs) == (20, 3)
    patient = zoo.read_recipe(recipe, {"train.patience": 7})
    assert zoo.read_recipe(patient, {"train.patience": None}).train.patience == 0
    with pytest.raises(NotFoundError, match="did you mean 'small_rev'"):
        zoo.read_recipe("smal_rev")
    with pytest.raises(RecipeError, match="expected a name, a file or a recipe, got int"):
        zoo.read_recipe(3)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="num_layer: unknown key; did you mean 'num_layers'"):
        zoo.read_recipe("small_rev", {"model.num_layer": 3})


@pytest.mark.parametrize(
    "name", ["small_rev", "small_res", "small_deq", "small_rev_gat", "small_wt_rev", "small_oscillator", "rev_deep"]
)
@pytest.mark.parametrize("changes", [{}, {"edge_attr": None}], ids=["edge features", "none"])
def test_every_family_is_created_for_any_graph(name: str, changes: dict[str, Any]) -> None:
    data = some_data(**changes)
    small = {} if "deq" in name else {"num_layers": 4}
    blind = data.edge_attr is None and zoo.read_recipe(name).model.reads_edges
    said = pytest.warns(ZooWarning, match="no edge features; the model reads none") if blind else nullcontext()
    with said:
        model = zoo.create_model(name, data, **small)
    info = model.zoo_info
    reads = info.recipe.model.reads_edges
    assert info.shape.num_node_features == 5 + (3 if info.recipe.train.label_reuse else 0)
    assert (info.shape.num_tasks, info.shape.num_edge_features) == (3, 3 if reads else 0)
    assert not reads or data.edge_attr is not None
    x = torch.rand(30, info.shape.num_node_features)
    logits = model(x, data.edge_index, data.edge_attr if reads else None)
    logits.sum().backward()
    assert logits.shape == (30, 3)
    assert copy.deepcopy(model).zoo_info == info
    assert not any("zoo_info" in key for key in model.state_dict())


def test_a_model_is_created_for_a_shape_and_for_a_graph_of_the_zoo() -> None:
    graph = digits_graph()
    by_graph = zoo.create_model("small_rev", graph, num_layers=3)
    by_shape = zoo.create_model(zoo.read_recipe("small_rev"), graph.shape, num_layers=3)
    assert by_graph.zoo_info.shape == by_shape.zoo_info.shape
    assert by_shape.zoo_info.recipe.data.dataset == "digits"
    assert by_graph.zoo_info.recipe.data.dataset == "file"
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (by_graph, by_shape)]
    assert shapes[0] == shapes[1]
    built = zoo.build_model("quickstart", graph.shape)
    assert {n: t.shape for n, t in built.state_dict().items()} == {
        n: t.shape for n, t in zoo.load("quickstart").state_dict().items()
    }


def test_what_is_no_graph_and_what_is_no_override_is_one_line() -> None:
    shape = zoo.GraphShape(num_node_features=4, num_tasks=2)
    with pytest.raises(DataError, match=r"data: expected a zoo\.Graph or a torch_geometric\.data\.Data, got dict"):
        zoo.create_model("small_rev", {"x": 1})
    with pytest.raises(RecipeError, match="num_layer: unknown key; did you mean 'num_layers'"):
        zoo.create_model("small_rev", shape, num_layer=3)
    with pytest.raises(ZooError, match="the graph has none; set edge_encoder to 'none'"):
        zoo.create_model("rev_deep", shape, num_layers=2)
    assert zoo.create_model("rev_deep", shape, num_layers=2, **{"model.conv.edge_encoder": "none", "train.seed": 3})


SMALL: dict[str, Any] = {"model.num_layers": 3, "train.num_epochs": 2, "train.schedule": None}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return zoo.train("small_rev", some_data(), tmp_path / "run", overrides=SMALL, device="cpu", quiet=True)


def test_a_graph_in_memory_trains_is_evaluated_loaded_resumed_and_moved(run: Any, tmp_path: Path) -> None:
    measured = {figure.split: figure.value for figure in run.results().results}
    assert set(measured) == {"train", "valid", "test"}
    again = zoo.evaluate(run, device="cpu", quiet=True)
    assert {c.figure.split: c.figure.value for c in again} == measured
    own = zoo.evaluate(zoo.load(run), some_data(), split="test", device="cpu", quiet=True)
    assert [(c.figure.split, c.figure.value) for c in own] == [("test", measured["test"])]
    longer = {**SMALL, "train.num_epochs": 3}
    options: dict[str, Any] = {"overrides": longer, "resume": True, "device": "cpu", "quiet": True}
    seen: list[float] = []
    zoo.train("small_rev", some_data(), run, on_epoch=lambda record: seen.append(record["epoch"]), **options)
    assert seen == [3]
    with pytest.raises(ZooError, match="the run began on other data"):
        zoo.train("small_rev", some_data(x=torch.rand(30, 5)), run, **options)
    moved = run.path.rename(tmp_path / "elsewhere")
    assert len(zoo.evaluate(moved, device="cpu", quiet=True)) == 3


def test_the_callback_gets_what_the_log_holds(tmp_path: Path) -> None:
    records: list[Any] = []
    run = zoo.train(
        "small_rev", some_data(), tmp_path / "a", overrides=SMALL, on_epoch=records.append, device="cpu", quiet=True
    )
    assert records == run.metrics()
    assert [record["epoch"] for record in records] == [1, 2]


def test_a_failed_start_leaves_no_folder(tmp_path: Path) -> None:
    nothing_known = some_data(y=torch.full((30,), -1))
    with pytest.raises(ZooError):
        zoo.train("small_rev", nothing_known, tmp_path / "run", device="cpu", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_model_trained_in_a_loop_of_ones_own_is_saved_and_loaded(tmp_path: Path) -> None:
    data = some_data()
    model = zoo.create_model("rev_deep", data, num_layers=3, hidden_channels=16)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(data.x, data.edge_index, data.edge_attr)
        torch.nn.functional.cross_entropy(logits, data.y).backward()
        optimizer.step()
    model.eval()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for name, saved in (("plain", model), ("averaged", averaged)):
        folder = zoo.save(saved, tmp_path / name)
        loaded = zoo.load(folder)
        with torch.no_grad():
            inputs = (data.x, data.edge_index, data.edge_attr)
            assert torch.equal(loaded(*inputs), model(*inputs))
        assert loaded.zoo_info.recipe.model.num_layers == 3
    card = (tmp_path / "plain/README.md").read_text()
    assert "not by the recipe: the model was saved from another program" in card
    assert "0 epochs" not in card
    figures = [comparison.figure for comparison in zoo.evaluate(model, data, device="cpu", quiet=True)]
    zoo.save(model, tmp_path / "measured", results=figures)
    compared = zoo.evaluate(tmp_path / "measured", data, device="cpu", quiet=True)
    assert [c.published for c in compared] == [c.figure.value for c in compared]


def test_what_is_no_model_of_the_zoo_or_was_changed_is_not_saved(tmp_path: Path) -> None:
    shape = zoo.GraphShape(num_node_features=4, num_tasks=2)
    with pytest.raises(ZooError, match=r"Linear: not a model of the zoo: it has no zoo_info"):
        zoo.save(torch.nn.Linear(2, 2), tmp_path / "a")
    model = zoo.create_model("small_rev", shape, num_layers=2)
    model.head = torch.nn.Linear(64, 7)
    with pytest.raises(ZooError, match=r"no longer that of its recipe 'small_rev': tensor 'head\.weight' has shape"):
        zoo.save(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["small_rev", "small_deq", "small_rev_gat", "rev_deep", "rev_gat_arxiv"])
def test_one_part_is_the_whole_graph_and_views_are_averaged(name: str) -> None:
    data = some_data()
    small = {} if "deq" in name else {"num_layers": 3}
    model = zoo.create_model(name, data, **small)
    whole = zoo.predict(model, data, num_parts=1)
    assert model.training
    model.eval()
    if model.zoo_info.recipe.train.label_reuse is None:
        graph = SimpleNamespace(x=data.x, edge_index=data.edge_index, edge_attr=data.edge_attr)
        assert torch.equal(zoo.predict(model, graph, num_parts=1), whole)
        inputs = (data.x, data.edge_index, data.edge_attr if model.zoo_info.recipe.model.reads_edges else None)
        with torch.no_grad():
            expected = model(*inputs)
        if not model.zoo_info.recipe.data.self_loops:
            torch.testing.assert_close(whole, expected)
    parts = zoo.predict(model, data, num_parts=5, num_views=2)
    assert parts.shape == whole.shape == (30, 3)
    assert bool(torch.isfinite(parts).all())
    assert not torch.equal(parts, whole)
    assert torch.equal(parts, zoo.predict(model, data, num_parts=5, num_views=2))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_weights_of_edges_and_sparse_matrices_are_read_where_the_model_reads_weights() -> None:
    data = some_data(edge_attr=None)
    num_edges = data.edge_index.shape[1]
    model = zoo.create_model("small_rev_gcn", data, num_layers=3)
    plain = zoo.predict(model, data, num_parts=1)
    weighted = copy.copy(data)
    weighted.edge_weight = torch.linspace(0.1, 2, num_edges)
    heavy = zoo.predict(model, weighted, num_parts=1)
    assert not torch.allclose(heavy, plain)
    adj_t = torch.sparse_coo_tensor(data.edge_index.flip(0), weighted.edge_weight, (30, 30)).coalesce().to_sparse_csr()
    torch.testing.assert_close(zoo.predict(model, SimpleNamespace(x=data.x, adj_t=adj_t), num_parts=1), heavy)


def test_a_part_needs_no_more_than_the_memory_it_is_given() -> None:
    from zoo.workflows.create import info_of
    from zoo.workflows.predict import parts_for

    graph = digits_graph()
    info = info_of(zoo.load("quickstart"))
    few, many = (parts_for(graph, info, memory) for memory in (1 << 30, 1 << 20))
    assert few == 1 < many
    assert parts_for(graph, info, 1 << 19) > many
    assert zoo.predict(zoo.load("quickstart"), graph, memory=1 << 20, num_views=1).shape == (1797, 10)


def test_features_that_a_graph_lacks_are_built_and_widths_are_compared() -> None:
    data = some_data(x=None)
    with pytest.warns(ZooWarning, match="has no node features; the model reads the degree"):
        model = zoo.create_model("small_rev", data, num_layers=2)
    data.num_nodes = 30
    assert zoo.predict(model, data).shape == (30, 3)
    wide = zoo.create_model("small_rev", some_data(), num_layers=2)
    with pytest.raises(ZooError, match="the model was made for"):
        zoo.predict(wide, some_data(x=torch.rand(30, 6)))
    with pytest.raises(ZooError, match="num_parts: expected 1 to 30, the number of nodes, got 31"):
        zoo.predict(wide, some_data(), num_parts=31)
    with pytest.raises(ZooError, match=r"expected a zoo\.Graph or a torch_geometric\.data\.Data, got int"):
        zoo.predict(wide, 3)


def test_a_push_that_is_not_logged_in_or_names_no_folder_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.hub.client.get_token", lambda: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(AccessError, match="publishing needs a token"):
        zoo.push(run, "me/mine")
    with pytest.raises(ZooError, match="expected owner/name"):
        zoo.push(run, "mine")


def test_a_run_is_continued_by_its_folder(tmp_path: Path) -> None:
    changes = {"train.num_epochs": 1, "train.schedule": None, "model.num_layers": 2}
    run = zoo.train("small_rev", some_data(), tmp_path / "run", overrides=changes, quiet=True, device="cpu")
    longer = zoo.train(run, resume=True, overrides="train.num_epochs=2", quiet=True, device="cpu")
    assert (longer.path, longer.results().num_epochs) == (run.path, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.predict("cora", some_data()), "str: not a model of the zoo"),  # type: ignore[arg-type]
        (lambda: zoo.save_graph(some_data(), "g.npz"), "expected a zoo.Graph, got Data; zoo.Graph.from_pyg"),
        (lambda: zoo.push(torch.nn.Linear(1, 1), "me/mine"), "expected the folder of a run or a bundle, got Linear"),  # type: ignore[arg-type]
        (
            lambda: zoo.train("small_rev", edge_precision="fp8"),
            "edge_precision: expected one of fp32, fp16, got",
        ),
        (lambda: zoo.train("small_rev", on_epoch=3), "on_epoch: expected a function, got 3"),  # type: ignore[arg-type]
        (lambda: zoo.train("small_rev", devise="cpu"), "options: devise: unknown key; did you mean 'device'"),
        (lambda: zoo.train("small_rev", num_threads=0), "num_threads: expected an integer of at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_one_line(call: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match=message):
        call()
