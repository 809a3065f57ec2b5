"""A bundle proves itself: its weights give the same logits wherever they run, or it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
import zoo.models.gnn
import zoo.workflows.probe
from tests.hub.bundles import content
from tests.workflows.test_load import make_bundle
from zoo.cli import main
from zoo.errors import BundleError
from zoo.files import sha256_of
from zoo.hub.config import read_config
from zoo.ops.dispatch import use_backend
from zoo.spec.shipped import list_bundles, shipped_dir
from zoo.workflows.export import add_probe, export
from zoo.workflows.probe import check_model

PROBE = "probe.safetensors"
SHAPE = zoo.GraphShape(num_node_features=6, num_edge_features=3, num_tasks=3)


@pytest.fixture
def proven(tmp_path: Path) -> Path:
    """A bundle with a probe."""
    folder = make_bundle(tmp_path)
    add_probe(folder)
    return folder


@pytest.fixture
def changed_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of the package in which the last normalization means something else."""
    normed_relu = zoo.models.gnn.normed_relu
    monkeypatch.setattr(zoo.models.gnn, "normed_relu", lambda *inputs: 1.001 * normed_relu(*inputs))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the probe, and make ``config.json`` speak of the new file."""
    path, config = folder / PROBE, folder / "config.json"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    data = json.loads(config.read_text())
    data["probe"] = {"sha256": sha256_of(path), "num_bytes": path.stat().st_size}
    config.write_text(json.dumps(data))


@pytest.mark.parametrize("name", list_bundles())
def test_each_shipped_bundle_is_of_the_recipe_of_its_name_and_passes_its_probe(name: str) -> None:
    folder = shipped_dir("bundles") / name
    assert (folder / PROBE).stat().st_size <= 40_000
    model = zoo.load(name, verify=True)
    assert model.zoo_info.recipe.to_json() == zoo.read_recipe(name).to_json()
    with use_backend("reference"):
        assert check_model(model, folder).tolerance < 1e-3


def test_all_shipped_bundles_are_small_together() -> None:
    files = [path for path in shipped_dir("bundles").glob("*/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000


@pytest.mark.parametrize(
    "recipe",
    [
        "small_rev",
        "small_res",
        "small_deq",
        "small_rev_deq",
        "small_rev_gat",
        "small_rev_gcn",
        "small_wt_rev",
        "small_oscillator",
    ],
)
def test_a_probe_reads_what_the_model_reads(recipe: str, tmp_path: Path) -> None:
    shape = SHAPE.model_copy(update={"num_node_features": 9, "num_node_categories": 4})
    model = zoo.create_model(recipe, shape)
    zoo.load(zoo.save(model, tmp_path / "b"), verify=True)
    probe, reads = load_file(tmp_path / "b" / PROBE), model.zoo_info.recipe.model
    assert ("edge_attr" in probe, "edge_weight" in probe) == (reads.reads_edges, reads.reads_edge_weight)
    assert probe["x"][:, -4:].unique(dim=0).tolist() == (64 * torch.eye(4).flip(0)).tolist()
    assert probe["logits_float64"].shape == (32, 3)


def test_wide_inputs_and_outputs_get_fewer_nodes(tmp_path: Path) -> None:
    shape = zoo.GraphShape(num_node_features=3000, num_tasks=2)
    zoo.save(zoo.create_model("small_rev", shape, num_layers=2), tmp_path / "b")
    probe = load_file(tmp_path / "b" / PROBE)
    assert len(probe["x"]) == 24_000 // (3000 + 12 * 2)
    assert (tmp_path / "b" / PROBE).stat().st_size < 40_000


def test_the_same_model_gives_the_same_probe(proven: Path) -> None:
    before = content(proven)
    add_probe(proven)
    assert content(proven) == before


def test_a_changed_layer_fails_the_probe_and_loads_without(changed_layer: None) -> None:
    with pytest.raises(BundleError, match=r"quickstart: fails its probe: .* tolerance .*, on .* CPU, backend "):
        zoo.load("quickstart", verify=True)
    assert zoo.load("quickstart").zoo_info.shape.num_tasks == 10


@pytest.mark.parametrize("bias", [1e-3, torch.nan])
def test_changed_weights_fail_the_probe(proven: Path, bias: float) -> None:
    model = zoo.load(proven)
    check_model(model, proven)
    with torch.no_grad():
        model.head.bias[0] += bias
    with pytest.raises(BundleError, match="fails its probe"):
        check_model(model, proven)


def test_verifying_leaves_the_model_as_if_it_had_never_run() -> None:
    model = zoo.load("small_deq", verify=True)
    logs = [layer.forward_log for layer in model.modules() if hasattr(layer, "forward_log")]
    assert [vars(log) for log in logs] == [vars(type(log)("forward")) for log in logs]
    assert len(logs) == 1


@pytest.mark.parametrize("way", ["save", "export"])
def test_a_model_whose_outputs_depend_on_more_than_its_file_is_not_written(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    logits = zoo.workflows.probe._logits
    counts = iter(range(100))
    monkeypatch.setattr(zoo.workflows.probe, "_logits", lambda *inputs: logits(*inputs) + next(counts) // 3)
    model = zoo.create_model("small_rev", SHAPE, num_layers=2)
    with pytest.raises(BundleError, match="fails its probe"):
        zoo.save(model, tmp_path / "bundle") if way == "save" else export(finished_run, tmp_path / "bundle")
    assert next(counts) == 4
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_finite_are_no_proof(tmp_path: Path) -> None:
    model = zoo.create_model("small_rev", SHAPE, num_layers=2)
    with torch.no_grad():
        model.head.weight.fill_(3e38)
    with pytest.raises(BundleError, match="logits_float32 are NaN or infinite on a graph of random features"):
        zoo.save(model, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_a_probe_loads_and_gets_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_bundle(tmp_path)
    before = {**content(folder), "config.json": b""}
    zoo.load(folder)
    with pytest.raises(BundleError, match=r"carries no probe to verify it by; add one: revgnn-zoo verify .* --renew"):
        zoo.load(folder, verify=True)
    assert main(["verify", str(folder)]) == 5
    assert main(["verify", str(folder), "--renew"]) == 0
    assert "verified: logits differ by up to" in capsys.readouterr().out
    after = content(folder)
    assert {name: after[name] for name in before} == {**before, "config.json": after["config.json"]}


def test_a_run_is_verified_by_its_bundle(finished_run: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle: it has no config\.json"):
        zoo.load(finished_run, verify=True)


def test_verify_says_what_differs_on_which_kernels(
    proven: Path, capsys: pytest.CaptureFixture[str], changed_layer: None
) -> None:
    with use_backend("chunked"):
        assert main(["verify", str(proven), "--device", "cpu"]) == 5
    error = capsys.readouterr().err
    assert "fails its probe: logits differ by up to" in error
    assert "backend chunked; compare --device cpu and ZOO_BACKEND=reference" in error


def test_verify_prints_json(proven: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(proven), "--json", "--device", "cpu"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["deviation"] <= facts["tolerance"] < 1e-3
    assert set(facts) == {"model", "deviation", "float32_deviation", "tolerance", "device", "backend"}


DAMAGED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing tensor": (lambda t: t.pop("logits_float64"), "'logits_float64' is missing"),
    "more": (lambda t: t.update(extra=torch.zeros(2)), "unknown tensor 'extra'"),
    "columns": (lambda t: t.update(x=t["x"][:, :-1].clone()), r"'x' has shape \[32, 5\] instead of \[32, 6\]"),
    "vector": (lambda t: t.update(x=t["x"].flatten()), "'x' has shape"),
    "scalar": (lambda t: t.update(edge_index=torch.tensor(3, dtype=torch.int32)), "'edge_index' has shape"),
    "no x": (lambda t: t.pop("x"), "'x' is missing"),
    "type": (lambda t: t.update(x=t["x"].float()), "'x' holds torch.float32"),
    "edges": (lambda t: t["edge_index"][0].fill_(32), "edges to nodes that are not there"),
    "negative": (lambda t: t["edge_index"][0].fill_(-1), "edges to nodes that are not there"),
    "NaN": (lambda t: t["tolerance"].fill_(torch.nan), "not finite"),
    "empty": (
        lambda t: t.update({k: t[k][:0].clone() for k in ("x", "logits_float32", "logits_float64")}),
        "no nodes",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_probe_that_does_not_fit_is_refused_when_loaded(case: str, proven: Path) -> None:
    change, words = DAMAGED[case]
    rewrite(proven, change)
    with pytest.raises(BundleError, match=words):
        zoo.load(proven)


def test_a_changed_or_missing_probe_is_refused_when_loaded(proven: Path) -> None:
    path = proven / PROBE
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(BundleError, match="damaged or changed: its SHA-256"):
        zoo.load(proven)
    path.unlink()
    with pytest.raises(BundleError, match=r"not a whole bundle: it has no probe\.safetensors"):
        zoo.load(proven)


def test_export_to_the_same_folder_keeps_a_probe_of_another_machine(finished_run: Path, tmp_path: Path) -> None:
    folder, _ = export(finished_run, tmp_path / "b")
    rewrite(folder, lambda tensors: tensors["logits_float32"].add_(1e-7))
    before = content(folder)
    assert export(finished_run, folder)[1] == read_config(folder)
    assert content(folder) == before
