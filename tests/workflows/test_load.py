import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import zoo
from tests.workflows.small import changed, recipe_data, small_recipe
from zoo.data.digits import digits_graph
from zoo.data.graph import directed_edges
from zoo.errors import AccessError, BundleError, NetworkError, NotFoundError, RunError, ZooError
from zoo.hub.bundle import Contents, write_bundle
from zoo.hub.config import Provenance
from zoo.models.factory import build_model
from zoo.spec.recipe import parse_recipe
from zoo.spec.results import Measured
from zoo.spec.shape import GraphShape
from zoo.workflows.export import export
from zoo.workflows.load import load_for_evaluation
from zoo.workflows.run_dir import RunDir

SHAPE = GraphShape(num_node_features=6, num_edge_features=3, num_tasks=3)
FIGURE = Measured(split="test", metric="accuracy", value=0.5, num_views=1, num_parts=1)


def make_bundle(folder: Path, *, state: dict[str, Tensor] | None = None, **places: object) -> Path:
    """A bundle of an untrained model."""
    recipe = parse_recipe(changed(recipe_data(Path("graph.npz")), **places), where="small")
    torch.manual_seed(0)
    weights = build_model(recipe.model, SHAPE).state_dict() if state is None else state
    provenance = Provenance(zoo_version=zoo.__version__, torch_version=torch.__version__)
    write_bundle(folder / "bundle", Contents(recipe, SHAPE, (FIGURE,), provenance, weights))
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


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("./folder", r"text means a name; for a folder pass Path('./folder')"),
        ("/etc", "for a folder pass Path('/etc')"),
        ("~/folder", "for a folder pass Path"),
        ("..", "for a folder pass Path"),
        ("no_such_model", "no model of that name is shipped and there is no such folder; shipped: quickstart"),
        ("quickstrat", "no model of that name is shipped and there is no such folder; did you mean 'quickstart'?"),
        ("zoo", "no model of that name is shipped; for a folder pass Path('zoo')"),
        ("", "no model of that name is shipped"),
        ("a\0b", "no model of that name is shipped"),
    ],
)
def test_text_is_a_name(reference: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo").mkdir()
    with pytest.raises(NotFoundError) as error:
        zoo.load(reference)
    assert expected in str(error.value)


def test_a_folder_that_is_no_bundle_is_refused(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        zoo.load(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"not a bundle: it has no config\.json"):
        zoo.load(tmp_path)
    with pytest.raises(BundleError, match="a run directory, not a bundle; first: revgnn-zoo export"):
        zoo.load(finished_run)


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
    assert sorted(entry.name for entry in path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


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
        load_for_evaluation(tmp_path / "run")


def test_digits_go_through_a_loaded_model(tmp_path: Path) -> None:
    graph = digits_graph()
    recipe = parse_recipe(changed(recipe_data(Path("x")), data={"dataset": "digits"}), where="small")
    model = build_model(recipe.model, graph.shape).eval()
    provenance = Provenance(zoo_version=zoo.__version__, torch_version=torch.__version__)
    write_bundle(tmp_path / "b", Contents(recipe, graph.shape, (), provenance, model.state_dict()))
    edge_index, edge_attr = directed_edges(graph)
    with torch.no_grad():
        logits = zoo.load(tmp_path / "b")(graph.x, edge_index, edge_attr)
        assert torch.equal(logits, model(graph.x, edge_index, edge_attr))
    assert logits.shape == (1797, 10)


@pytest.mark.parametrize("error", [NotFoundError, AccessError, NetworkError])
def test_a_name_that_may_mean_a_folder_is_looked_for_in_both_places(
    error: type[ZooError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(reference: str, **options: object) -> None:
        raise error(f"{reference}: not on the Hub")

    monkeypatch.setattr("zoo.workflows.load.fetch", nowhere)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=r"^runs/typo: not on the Hub; nor is there such a folder$"):
        zoo.load("runs/typo")
    (tmp_path / "runs/mine").mkdir(parents=True)
    with pytest.raises(error, match=r"^runs/mine: not on the Hub; for the folder pass Path\('runs/mine'\)$"):
        zoo.load("runs/mine")
