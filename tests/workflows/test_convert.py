import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.data.synthetic import write_synthetic_proteins
from zoo.errors import BundleError
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows import convert as module
from zoo.workflows.convert import convert
from zoo.workflows.evaluate import evaluate

PARITY = Path(__file__).parent.parent / "parity"
# Written by the authors' own save_ckpt; its outputs were recorded beside it.
OFFICIAL = PARITY / "model_ckpt_g2_l7" / "random-train_10-test_5-num_evals_1_valid_best.pth"
RECORDED = PARITY / "ckpt_model_ckpt_g2_l7_f32.safetensors"


def official_recipe(*overrides: str) -> Recipe:
    overrides = ("model.num_layers=7", "model.hidden_channels=16", *overrides)
    return read_recipe(recipe_path("rev_deep"), overrides)


def test_an_official_checkpoint_predicts_what_was_recorded(tmp_path: Path) -> None:
    config = convert(OFFICIAL, official_recipe(), tmp_path / "bundle")
    assert (config.shape.num_tasks, config.shape.num_edge_features, config.shape.num_node_categories) == (9, 8, 8)
    recorded = load_file(RECORDED)
    # Their model reads the features and the one-hot code of the species side by side, as ours does.
    nodes = recorded["in/node_index"]
    x = torch.cat([recorded["in/node_features"][nodes], recorded["in/x"]], dim=1)
    with torch.no_grad():
        logits = zoo.load(tmp_path / "bundle")(x, recorded["in/edge_index"], recorded["in/edge_attr"])
    expected = recorded["out/pred_eval"]
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_bundle_says_where_it_comes_from(tmp_path: Path) -> None:
    config = convert(OFFICIAL, official_recipe(), tmp_path / "bundle")
    assert len(config.provenance.converted_from_sha256) == 64
    assert config.results == ()
    assert config.recipe.to_json() == official_recipe().to_json()
    assert str(OFFICIAL.parent) not in (tmp_path / "bundle" / "config.json").read_text()


def test_a_converted_model_evaluates_on_its_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    write_synthetic_proteins(tmp_path / "data", 300)
    recipe = official_recipe()
    full = torch.load(OFFICIAL, weights_only=True)
    # The checkpoint was made for 9 of the 112 labels.
    for name in ("weight", "bias"):
        head = full["model_state_dict"][f"node_pred_linear.{name}"]
        full["model_state_dict"][f"node_pred_linear.{name}"] = head.repeat(13, *[1] * (head.dim() - 1))[:112]
    torch.save(full, tmp_path / "full.pth")
    convert(tmp_path / "full.pth", recipe, tmp_path / "bundle")
    compared = evaluate(tmp_path / "bundle", num_views=2, num_parts=3, device="cpu", quiet=True)
    figures = [comparison.figure for comparison in compared]
    assert [figure.split for figure in figures] == ["train", "valid", "test"]
    assert all(0 < figure.value < 1 for figure in figures)


class Payload:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def changed_checkpoint(folder: Path, case: str) -> Path:
    path = folder / "changed.pth"
    whole = OFFICIAL.read_bytes()
    state = torch.load(OFFICIAL, weights_only=True)["model_state_dict"]
    if case == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif case == "old_format_truncated":
        torch.save(state, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-100])
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "text":
        path.write_text("not a checkpoint")
    elif case == "code":
        torch.save({"model_state_dict": Payload(folder / "canary")}, path)
    elif case == "old_format_code":
        torch.save({"model_state_dict": Payload(folder / "canary")}, path, _use_new_zipfile_serialization=False)
    elif case == "bare_state":
        torch.save(state, path)
    elif case == "list":
        torch.save([1, 2], path)
    elif case == "numbers":
        torch.save({"model_state_dict": {"a": 1}}, path)
    elif case == "sparse":
        torch.save({"model_state_dict": {"a": torch.zeros(3, 3).to_sparse()}}, path)
    elif case == "unknown_name":
        torch.save({"model_state_dict": {**state, "extra.weight": torch.zeros(2)}}, path)
    elif case == "missing_name":
        torch.save({"model_state_dict": {k: v for k, v in state.items() if k != "last_norm.bias"}}, path)
    elif case == "missing_head":
        torch.save({"model_state_dict": {k: v for k, v in state.items() if "node_pred" not in k}}, path)
    elif case == "half":
        torch.save({"model_state_dict": {k: v.half() for k, v in state.items()}}, path)
    return path


REFUSED = {
    "truncated": "not a checkpoint that can be read safely: it is damaged or cut short",
    "old_format_truncated": "not a checkpoint that can be read safely: it is damaged or cut short",
    "empty": "not a checkpoint that can be read safely: it is damaged or cut short",
    "text": "not a checkpoint that can be read safely",
    "code": "it holds more than tensors",
    "old_format_code": "it holds more than tensors",
    "bare_state": "it has no 'model_state_dict'",
    "list": "it has no 'model_state_dict'",
    "numbers": "'a' is not a dense tensor",
    "sparse": "'a' is not a dense tensor",
    "unknown_name": "extra.weight",
    "missing_name": "tensor 'norm.bias' is missing",
    "missing_head": "it has no fitting 'head.weight'",
    "half": "holds torch.float16 instead of torch.float32",
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_what_is_no_official_checkpoint_is_refused(case: str, tmp_path: Path) -> None:
    path = changed_checkpoint(tmp_path, case)
    with pytest.raises(BundleError) as error:
        convert(path, official_recipe(), tmp_path / "bundle")
    assert REFUSED[case] in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.num_layers=6", "unknown tensor"),
        ("model.num_layers=8", "is missing"),
        ("model.hidden_channels=32", "instead of"),
        ("model.norm=batch", "running_mean"),
        ('model.conv={"type": "sage"}', "does not fit"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(override: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not fit the recipe rev_deep") as error:
        convert(OFFICIAL, official_recipe(override), tmp_path / "bundle")
    assert expected in str(error.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (("nothing", "no such file"), ("pipe", "not a regular file"), (".", "not a regular file")):
        with pytest.raises(BundleError, match=expected):
            convert(tmp_path / name, official_recipe(), tmp_path / "bundle")


def test_a_file_larger_than_any_checkpoint_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLACK_BYTES", 0)
    monkeypatch.setattr(module, "_BYTES_PER_PARAMETER", 1)
    with pytest.raises(BundleError, match="larger than any checkpoint of the recipe rev_deep could be"):
        convert(OFFICIAL, official_recipe(), tmp_path / "bundle")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("precious")
    with pytest.raises(BundleError, match="already there and not this bundle"):
        convert(OFFICIAL, official_recipe(), tmp_path / "bundle")
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["notes.txt"]
    shutil.rmtree(tmp_path / "bundle")
    convert(OFFICIAL, official_recipe(), tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / "config.json").read_text())["recipe"]["name"] == "rev_deep"
