"""Cards: complete, true to config.json, accepted by the Hub, and never written over somebody's words."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.hub.bundles import changed_config
from tests.hub.client import ALICE, api
from tests.hub.server import TestHub
from zoo.cli import main
from zoo.errors import BundleError, ZooError
from zoo.hub.card import card_faults, is_generated, render_card
from zoo.hub.config import parse_config, read_config
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import known_shape
from zoo.spec.shipped import card_path, list_recipes, recipe_path, shipped_dir
from zoo.workflows.card import check_card, write_card

SECTIONS = ["Architecture", "Training", "Intended use", "Limits", "Reported results", "Use", "Citation"]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


NOT_PROSE = re.compile(r"```.*?```|`[^`\n]*`|https?://\S+|\]\([^)]*\)", re.DOTALL)


def written_numbers(data: Any) -> set[str]:
    """The numbers in JSON data as a card may write them: as they are, rounded, in percent, in millions."""
    if isinstance(data, dict | list):
        values = data.values() if isinstance(data, dict) else data
        return set().union(*(written_numbers(value) for value in values))
    if not isinstance(data, int | float) or isinstance(data, bool):
        return set()
    rounded = {f"{scale * data:.{digits}f}" for scale in (1, 100) for digits in (1, 2, 3, 4)}
    return rounded | {json.dumps(data), f"{data:g}", f"{data / 1e6:.1f}", f"{data / 1e6:.2f}"}


def measured_numbers(name: str) -> set[str]:
    """The figures of a recipe in the table of results."""
    path = shipped_dir("recipes").parent / "results" / "results.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == name]
    return {row[key] for row in rows for key in ("test_mean", "test_std", "valid_mean")}


@pytest.mark.parametrize("name", list_recipes())
def test_recipe_has_a_card_that_tells_all_and_no_number_without_record(name: str) -> None:
    recipe, text = read_recipe(recipe_path(name)), card_path(name).read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert re.match(r"# \S.*\n\n\S", text)
    parts = dict(zip(SECTIONS, re.split(r"^## .*$", text, flags=re.MULTILINE)[1:], strict=True))
    assert all(len(part.strip()) > 60 for part in parts.values())
    assert "```text" in parts["Architecture"]
    assert f'zoo.load("owner/{name}")' in parts["Use"]
    assert f"revgnn-zoo eval owner/{name}" in parts["Use"]
    assert "@inproceedings{li2021training," in parts["Citation"]
    model, train = recipe.model, recipe.train
    for fact in (f"{train.num_epochs} epochs", f"{train.optimizer.lr:g}", f"dropout is {model.dropout:g}"):
        assert fact in parts["Training"]
    assert f"{model.hidden_channels} channels" in parts["Architecture"]
    for reported in recipe.source.reported if recipe.source else ():
        deviation = "" if reported.std is None else f" ± {100 * reported.std:.2f}"
        row = f"| {reported.split} | {reported.metric} | {100 * reported.mean:.2f}{deviation} | {reported.protocol} |"
        assert row in parts["Reported results"]
    if recipe.source and recipe.source.num_parameters:
        assert f"It has {recipe.source.num_parameters:,} parameters." in parts["Architecture"]
        shape = known_shape(recipe)
        assert shape is not None
        assert model.num_parameters(shape) == recipe.source.num_parameters
    known = written_numbers(recipe.to_json()) | measured_numbers(name)
    prose = re.sub(r"\b\d{4}\.\d{5}\b", "", NOT_PROSE.sub(" ", text))
    assert [number for number in re.findall(r"\d+\.\d+", prose) if number not in known] == []


def test_every_card_belongs_to_a_recipe() -> None:
    assert {path.stem for path in shipped_dir("model_cards").glob("*.md")} == set(list_recipes())


@pytest.mark.parametrize("folder", sorted(shipped_dir("bundles").iterdir()), ids=lambda folder: folder.name)
def test_shipped_bundle_has_its_card(folder: Path) -> None:
    assert check_card(folder) == folder / "README.md"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert is_generated(text)
    assert all(f"## {section}" in text for section in [*SECTIONS, "These weights"])


def test_metadata_is_what_the_hub_accepts(hub: TestHub, bundle: Path) -> None:
    config = read_config(bundle)
    text = render_card(config, repo_id="alice/small", has_curves=True)
    api(hub, ALICE)._validate_yaml(text, repo_type="model")
    data = ModelCard(text).data
    assert (data.library_name, data.license, data.pipeline_tag) == ("revgnn-zoo", "mit", "graph-ml")
    assert "graph-neural-network" in data.tags
    values = {(r.dataset_split, r.metric_value) for r in data.eval_results}
    assert values == {(f.split, f.value) for f in config.results if f.split != "train"}
    assert 'zoo.load("alice/small")' in text
    assert "![" in text
    assert config.weights.sha256 in text
    assert f"torch {config.provenance.torch_version}" in text


def test_recipe_changed_from_the_shipped_one_gets_no_words_that_describe_another() -> None:
    config = read_config(shipped_dir("bundles") / "quickstart")
    assert "handwritten digits" in render_card(config)
    seeded = config.recipe.model_copy(update={"train": config.recipe.train.model_copy(update={"seed": 7})})
    assert "An edge carries five features" in render_card(config.model_copy(update={"recipe": seeded}))
    deeper = config.recipe.model_copy(update={"model": config.recipe.model.model_copy(update={"num_layers": 9})})
    assert "An edge carries five features" not in render_card(config.model_copy(update={"recipe": deeper}))


def test_weights_from_synthetic_data_boast_no_figure_on_the_real_ones(bundle: Path) -> None:
    real = read_config(bundle)
    data = real.recipe.data.model_copy(update={"dataset": "ogbn-arxiv", "path": ""})
    real = real.model_copy(update={"recipe": real.recipe.model_copy(update={"data": data})})
    provenance = real.provenance.model_copy(update={"data_is_synthetic": True})
    synthetic = real.model_copy(update={"provenance": provenance})
    told, honest = ModelCard(render_card(real)).data, ModelCard(render_card(synthetic)).data
    assert (told.datasets, {result.dataset_type for result in told.eval_results}) == (["ogbn-arxiv"], {"ogbn-arxiv"})
    assert (honest.datasets, honest.eval_results) == (None, None)
    assert "synthetic-data" in honest.tags
    assert "| data set | a synthetic stand-in for `ogbn-arxiv`, split 0 |" in render_card(synthetic)
    assert card_faults(render_card(synthetic), synthetic) == []
    # A card that somebody edited may have kept the claim.
    faults = card_faults(render_card(real), synthetic)
    assert "model-index states a figure on ogbn-arxiv, but the data were synthetic" in faults


def test_a_written_card_is_not_given_to_weights_from_synthetic_data() -> None:
    config = read_config(shipped_dir("bundles") / "quickstart")
    provenance = config.provenance.model_copy(update={"data_is_synthetic": True})
    assert "An edge carries five features" in render_card(config)
    assert "An edge carries five features" not in render_card(config.model_copy(update={"provenance": provenance}))


def test_metadata_state_no_number_that_the_configuration_lacks(bundle: Path) -> None:
    config = read_config(bundle)
    text = render_card(config)
    assert card_faults(text, config) == []
    (value,) = {f.value for f in config.results if f.split == "test"}
    boasting = text.replace(f"value: {value}", "value: 0.999", 1)
    assert card_faults(boasting, config) == ["model-index states accuracy 0.999, which config.json does not record"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# No metadata, but words enough to say what this model is about\n", "lacks license"),
        ("---\nlicense: [\n---\n# Words enough to say what this model is about, I think\n", "cannot be read"),
        ("---\n- a\n---\n# Words enough to say what this model is about, I think\n", "cannot be read"),
        ("---\nlicense: mit\nlibrary_name: timm\ntags: [a]\n---\n# Words enough to say what it is about\n", "'timm'"),
        ("---\nlicense: mit\nlibrary_name: revgnn-zoo\ntags: [a]\n---\n", "says nothing"),
    ],
)
def test_incomplete_card_is_named_in_full(bundle: Path, text: str, fault: str) -> None:
    faults = card_faults(text, read_config(bundle))
    assert any(fault in line for line in faults)


def test_edited_card_is_told_from_a_rendered_one(bundle: Path) -> None:
    text = render_card(read_config(bundle))
    assert is_generated(text)
    assert is_generated(text.replace("\n", "\r\n"))
    for edited in (text.replace("small", "Small", 1), text + "More.\n", "", "# Mine\n"):
        assert not is_generated(edited)


def test_card_command_renders_checks_and_respects_what_was_written(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = copy / "README.md"
    path.unlink()
    assert main(["card", str(copy), "--check"]) == 1
    assert not path.exists()
    assert main(["card", str(copy)]) == 0
    assert main(["card", str(copy), "--check"]) == 0
    assert "curves.png" in path.read_text()
    path.write_text(path.read_text().replace("# small", "# My own words"))
    assert main(["card", str(copy), "--check"]) == 0
    with pytest.raises(BundleError, match="written or edited by hand; --replace"):
        write_card(copy)
    write_card(copy, replace=True)
    assert "My own words" not in path.read_text()


def test_check_notices_a_card_of_other_weights(copy: Path) -> None:
    write_card(copy)
    config = parse_config((copy / "config.json").read_bytes(), where="x")
    results = [{**f.model_dump(), "value": 0.123} for f in config.results]
    (copy / "config.json").write_bytes(changed_config(copy, results=results))
    with pytest.raises(ZooError, match="out of date") as caught:
        check_card(copy)
    assert "model-index states" in str(caught.value)


def test_card_of_a_run_exports_it_with_its_curves(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(copy / "bundle")
    assert write_card(copy) == copy / "bundle" / "README.md"
    assert (copy / "bundle" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert check_card(copy) == copy / "bundle" / "README.md"
