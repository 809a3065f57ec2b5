import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests.workflows.small import changed, recipe_data, small_recipe
from zoo.data.graph import directed_edges
from zoo.data.published import digits_graph
from zoo.errors import AccessError, BundleError, NetworkError, NotFoundError, RunError, ZooError, ZooWarning
from zoo.hub.bundle import Contents, write_bundle
from zoo.hub.config import Provenance
from zoo.models.factory import build_model
from zoo.spec.recipe import parse_recipe
from zoo.spec.results import Measured
from zoo.spec.shape import GraphShape
from zoo.workflows.export import export
from zoo.workflows.run_dir import RunDir

SHAPE = GraphShape(num_node_features=6, num_edge_features=3, num_tasks=3)
FIGURE = Measured(split="test", metric="accuracy", value=0.5, num_views=1, num_parts=1)


def without_probe(folder: Path) -> None:
    """Bundles of the first version carried none."""


def make_bundle(folder: Path, *, state: dict[str, Tensor] | None = None, **places: object) -> Path:
    """A bundle of an untrained model."""
    recipe = parse_recipe(changed(recipe_data(Path("graph.npz")), **places), where="small")
    torch.manual_seed(0)
    weights = build_model(recipe.model, SHAPE).state_dict() if state is None else state
    provenance = Provenance(zoo_version=zoo.__version__, torch_version=torch.__version__)
    write_bundle(folder / "bundle", Contents(recipe, SHAPE, (FIGURE,), provenance, weights), without_probe)
    return folder / "bundle"


def test_a_loaded_model_predicts_like_the_original(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    torch.manual_seed(0)
    original = build_model(small_recipe(tmp_path).model, SHAPE).eval()
    model = zoo.load(folder)
    x, edge_index, edge_attr = torch.rand(20, 6), torch.randint(20, (2, 50)), torch.rand(50, 3)
    with torch.no_grad():
        assert torch.equal(model(x, edge_index, edge_attr), original(x, edge_index, edge_attr))
    assert not model.training
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())


def test_a_loaded_model_knows_what_it_is(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    model = zoo.load(folder)
    info = model.zoo_info
    config = json.loads((folder / "config.json").read_text())
    assert (info.recipe.name, info.shape, info.folder, info.results) == ("small", SHAPE, folder, (FIGURE,))
    assert info.sha256 == config["weights"]["sha256"]
    assert copy.deepcopy(model).zoo_info == info


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_loaded_model_can_be_trained_further(norm: str, tmp_path: Path) -> None:
    model = zoo.load(make_bundle(tmp_path, model__norm=norm)).train()
    model(torch.rand(20, 6), torch.randint(20, (2, 50)), torch.rand(50, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    before = torch.get_rng_state()
    zoo.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


NEITHER = "neither a folder nor a shipped model, and not the owner/name of one on the Hub"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("./folder", "./folder: no such folder"),
        ("/nowhere", "/nowhere: no such folder"),
        ("~/no such folder", "no such folder"),
        ("no_such_model", f"no_such_model: {NEITHER}; 'revgnn-zoo list' shows all"),
        ("quickstrat", f"quickstrat: {NEITHER}; did you mean 'quickstart'?"),
        ("", NEITHER),
        ("a\0b", NEITHER),
    ],
)
def test_an_error_names_every_place_that_was_tried(
    reference: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError) as error:
        zoo.load(reference)
    assert expected in str(error.value)


def test_text_that_is_a_folder_is_a_folder_before_it_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "owner/name"):
        folder = make_bundle(tmp_path / "made").rename(tmp_path / name.partition("/")[0])
        if "/" in name:
            (tmp_path / "inner").mkdir()
            folder = folder.rename(tmp_path / "inner/name")
            (tmp_path / "inner").rename(tmp_path / "owner")
        for text in (name, f"./{name}", str(tmp_path / name)):
            assert zoo.load(text).zoo_info.recipe.name == "small"
    with pytest.raises(ZooError, match="goes with a model on the Hub; owner/name is a folder here"):
        zoo.load("owner/name", revision="v1")


def test_a_run_is_loaded_with_its_best_weights(finished_run: Path) -> None:
    model, run = zoo.load(str(finished_run)), RunDir(finished_run)
    best = run.best()
    assert best is not None
    assert all(tensor.equal(best.tensors[name]) for name, tensor in model.state_dict().items())
    assert (model.zoo_info.recipe, model.zoo_info.shape) == (run.recipe(), best.epoch.shape)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"reference": 3}, "reference: expected a name or a folder, got int"),
        ({"device": 3}, "3: no such device"),
        ({"dtype": "float16"}, "dtype: expected a floating-point torch.dtype"),
        ({"dtype": torch.int8}, "dtype: expected a floating-point torch.dtype"),
        ({"num_tasks": "2"}, "num_tasks: expected an integer"),
        ({"num_node_features": 0}, "num_node_features: expected an integer"),
        ({"reference": "a/b", "revision": 1}, "revision=1: expected a text"),
        ({"reference": "a/b@v1", "revision": "v2"}, "revision='v2': expected a text, and 'a/b@v1' without one"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_one_line(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ZooError) as error:
        zoo.load(**{"reference": "quickstart", **options})
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_device_and_dtype_are_those_asked_for() -> None:
    model = zoo.load("quickstart", device=torch.device("cpu"), dtype=torch.float64)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("family", ["small_rev", "small_res", "small_deq", "small_rev_gat", "small_rev_gcn"])
def test_new_inputs_and_outputs_leave_all_other_weights(family: str, tmp_path: Path) -> None:
    model = zoo.create_model(family, SHAPE)
    info = model.zoo_info
    provenance = Provenance(zoo_version=zoo.__version__, torch_version=torch.__version__)
    write_bundle(
        tmp_path / "b", Contents(info.recipe, info.shape, (FIGURE,), provenance, model.state_dict()), without_probe
    )
    with pytest.warns(ZooWarning, match="new and untrained: ") as said:
        tuned = zoo.load(tmp_path / "b", num_node_features=11, num_tasks=5)
    old, new = model.state_dict(), tuned.state_dict()
    fresh = {name for name in new if old[name].shape != new[name].shape or not old[name].equal(new[name])}
    ends = ("node_encoder.", "head.", "first.", "last.", "bias")
    assert fresh
    assert all(name.startswith(ends) for name in fresh)
    assert all(name in str(said[0].message) for name in fresh)
    edge_attr = torch.rand(50, 3) if info.recipe.model.reads_edges else None
    with torch.no_grad():
        assert tuned(torch.rand(20, 11), torch.randint(20, (2, 50)), edge_attr).shape == (20, 5)
    shape, recipe = tuned.zoo_info.shape, tuned.zoo_info.recipe
    assert (shape.num_node_features, shape.num_tasks, tuned.zoo_info.results) == (11, 5, ())
    assert (recipe.data.dataset, recipe.source) == ("file", None)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing: no such folder"):
        zoo.load(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"not a bundle: it has no config\.json"):
        zoo.load(tmp_path)


def test_a_file_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/mine.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"^recipes/mine.json: a file; a model is the folder of a bundle or a run$"):
        zoo.load("recipes/mine.json")


def test_a_missing_device_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such device"):
        zoo.load(make_bundle(tmp_path), device="gpu")


def test_weights_that_are_not_finite_are_not_exported_and_warn_when_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = build_model(small_recipe(tmp_path).model, SHAPE).state_dict()
    state["head.bias"][1] = torch.nan
    with pytest.raises(BundleError, match=r"head\.bias: NaN or infinite weights"):
        make_bundle(tmp_path, state=state)
    assert not (tmp_path / "bundle").exists()
    with monkeypatch.context() as context:
        context.setattr(torch, "isfinite", torch.ones_like)
        make_bundle(tmp_path, state=state)
    with pytest.warns(UserWarning, match="some weights are NaN or infinite"):
        zoo.load(tmp_path / "bundle")


def test_export_writes_what_the_run_found(finished_run: Path, tmp_path: Path) -> None:
    path, config = export(finished_run, tmp_path / "bundle")
    run = RunDir(finished_run)
    results, best = run.results(), run.best()
    assert results is not None
    assert best is not None
    assert config.results == results.results
    assert config.provenance.epoch == results.best_epoch
    assert config.provenance.data_sha256 == results.data_sha256
    assert not config.provenance.data_is_synthetic
    assert config.recipe.train == run.recipe().train
    model = zoo.load(path)
    assert all(torch.equal(tensor, best.tensors[name]) for name, tensor in model.state_dict().items())
    assert sorted(p.stem for p in path.iterdir()) == ["README", "config", "model", "probe"]


def test_a_bundle_names_no_folder_of_this_machine(finished_run: Path, tmp_path: Path) -> None:
    path, config = export(finished_run, tmp_path / "bundle")
    assert config.recipe.data.path == "multiclass.npz"
    for file in path.iterdir():
        for private in (str(finished_run.parent), str(Path.home())):
            assert private.encode() not in file.read_bytes()


def test_export_twice_gives_the_same_bytes_and_overwrites_nothing(finished_run: Path, tmp_path: Path) -> None:
    first = export(finished_run, tmp_path / "a")[0]
    again = export(finished_run, tmp_path / "b")[0]
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    (first / "README.md").write_text("my own words")
    assert export(finished_run, first)[0] == first
    assert (first / "README.md").read_text() == "my own words"
    (first / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="already there and not this bundle"):
        export(finished_run, first)
    assert (first / "config.json").read_text() == "{}"


def test_an_unfinished_run_is_not_exported(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(RunError, match="the run is not finished"):
        export(tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").unlink()
    with pytest.raises(RunError, match="has not reached its first evaluation"):
        zoo.load(tmp_path / "run")


def test_digits_go_through_a_loaded_model(tmp_path: Path) -> None:
    graph = digits_graph()
    recipe = parse_recipe(changed(recipe_data(Path("x")), data={"dataset": "digits"}), where="small")
    model = build_model(recipe.model, graph.shape).eval()
    provenance = Provenance(zoo_version=zoo.__version__, torch_version=torch.__version__)
    write_bundle(tmp_path / "b", Contents(recipe, graph.shape, (), provenance, model.state_dict()), without_probe)
    edge_index, edge_attr = directed_edges(graph)
    with torch.no_grad():
        logits = zoo.load(tmp_path / "b")(graph.x, edge_index, edge_attr)
        assert torch.equal(logits, model(graph.x, edge_index, edge_attr))
    assert logits.shape == (1797, 10)


@pytest.mark.parametrize("error", [NotFoundError, AccessError, NetworkError])
def test_an_error_of_the_hub_says_that_there_is_no_such_folder(
    error: type[ZooError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(reference: str, **options: object) -> None:
        raise error(f"{reference}: not on the Hub")

    monkeypatch.setattr("zoo.workflows.pull.fetch", nowhere)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=r"^runs/typo: not on the Hub; nor is there such a folder$"):
        zoo.load("runs/typo")
