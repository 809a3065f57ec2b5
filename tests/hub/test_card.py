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
from zoo.errors import ZooError
from zoo.hub.card import is_current, is_generated, render_card
from zoo.hub.config import parse_config, read_config
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import known_shape
from zoo.spec.shipped import card_path, list_recipes, recipe_path, shipped_dir
from zoo.workflows.publish import check_card, write_card

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
    assert ModelCard(text).data.license == "mit"
    assert all(f"## {section}" in text for section in [*SECTIONS, "These weights"])


def test_metadata_is_what_the_hub_accepts(hub: TestHub, bundle: Path) -> None:
    config = read_config(bundle)
    text = render_card(config, repo_id="alice/small", has_curves=True, license="mit")
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
    assert is_current(render_card(synthetic), synthetic, has_curves=False)
    # A card that somebody edited may have kept the claim.
    edited = render_card(real).replace("## Limits", "## My limits")
    assert not is_current(edited, synthetic, has_curves=False)
    merged = ModelCard(render_card(synthetic, old=edited)).data
    assert (merged.datasets, merged.eval_results) == (None, None)


def test_a_written_card_is_not_given_to_weights_from_synthetic_data() -> None:
    config = read_config(shipped_dir("bundles") / "quickstart")
    provenance = config.provenance.model_copy(update={"data_is_synthetic": True})
    assert "An edge carries five features" in render_card(config)
    assert "An edge carries five features" not in render_card(config.model_copy(update={"provenance": provenance}))


def test_metadata_state_no_number_that_the_configuration_lacks(bundle: Path) -> None:
    config = read_config(bundle)
    text = render_card(config)
    assert is_current(text, config, has_curves=False)
    (value,) = {f.value for f in config.results if f.split == "test"}
    boasting = text.replace(f"value: {value}", "value: 0.999", 1)
    assert not is_current(boasting, config, has_curves=False)
    assert "0.999" not in render_card(config, old=boasting)


@pytest.mark.parametrize(
    "text",
    [
        "# No metadata, but words enough to say what this model is about\n",
        "---\nlicense: mit\nlibrary_name: timm\ntags: [a]\n---\n# Words enough to say what it is about\n",
        "---\nlicense: mit\nlibrary_name: revgnn-zoo\ntags: [a]\n---\n",
    ],
)
def test_incomplete_card_is_completed_in_its_own_words(copy: Path, text: str) -> None:
    (copy / "README.md").write_text(text)
    with pytest.raises(
        ZooError, match=r"README\.md: does not say what config\.json says; renew it with: revgnn-zoo card"
    ):
        check_card(copy)
    renewed = ModelCard(write_card(copy).read_text())
    check_card(copy)
    assert (renewed.data.library_name, renewed.data.license) == ("revgnn-zoo", ModelCard(text).data.license)
    assert set(ModelCard(text).data.tags or ()) <= set(renewed.data.tags)
    assert ModelCard(text).text.strip() in renewed.text
    assert "## These weights" in renewed.text


@pytest.mark.parametrize("yaml", ["license: [", "- a", "a: b: c"])
def test_metadata_that_cannot_be_read_are_named_with_the_card(copy: Path, yaml: str) -> None:
    (copy / "README.md").write_text(f"---\n{yaml}\n---\n# Words enough to say what this model is about, I think\n")
    for work in (check_card, write_card):
        with pytest.raises(ZooError, match=rf"{copy}/README\.md: its metadata .* cannot be read"):
            work(copy)
    check_card(write_card(copy, replace=True).parent)


def test_words_and_license_of_the_owner_are_kept_and_the_rest_is_renewed(bundle: Path) -> None:
    config = read_config(bundle)
    better = config.model_copy(update={"results": tuple(f.model_copy(update={"value": 0.987}) for f in config.results)})
    owner = {
        "license: mit": "license: apache-2.0\nlanguage:\n- en",
        "- node-classification": "- node-classification\n- mine",
    }
    edited = render_card(config, repo_id="alice/small", license="mit")
    for before, after in owner.items():
        edited = edited.replace(before, after, 1)
    edited = edited.replace("## Limits\n", "## Limits\n\nOne paragraph of mine.\n") + "\nAnd one at the end.\n"
    merged = render_card(better, repo_id="alice/small", old=edited)
    card = ModelCard(merged)
    assert (card.data.license, card.data.language, card.data.tags[-1]) == ("apache-2.0", ["en"], "mine")
    assert {result.metric_value for result in card.data.eval_results} == {0.987}
    assert "One paragraph of mine." in merged
    assert merged.rstrip().endswith("And one at the end.")
    assert merged.count("## These weights") == 1
    assert merged.count("| 0.9870 |") == len(config.results), merged
    assert not is_generated(merged)
    # Once more changes nothing, and Windows' line ends are none of the words.
    assert render_card(better, repo_id="alice/small", old=merged) == merged
    assert render_card(better, repo_id="alice/small", old=merged.replace("\n", "\r\n")) == merged
    # Where nobody wrote words, all of them are renewed; the license stays.
    untouched = render_card(better, old=render_card(config, license="gpl-3.0"))
    assert untouched == render_card(better, license="gpl-3.0")
    only_metadata = render_card(better, old="---\nlicense: gpl-3.0\n---")
    assert only_metadata == untouched
    replaced = ModelCard(render_card(better, old=edited, replace=True))
    assert (replaced.data.license, "One paragraph of mine." in replaced.text) == ("apache-2.0", False)


def test_no_license_is_chosen_for_a_stranger(bundle: Path) -> None:
    assert ModelCard(render_card(read_config(bundle))).data.license is None


def test_graph_of_ones_own_is_named_as_its_owner_named_it(bundle: Path) -> None:
    config = read_config(bundle)
    assert config.recipe.data.path == "multiclass.npz"
    text = render_card(config, repo_id="alice/my-model")
    results = ModelCard(text).data.eval_results
    assert {(result.dataset_name, result.dataset_type) for result in results} == {("multiclass", "multiclass")}
    assert "Prediction of node labels on `multiclass`" in text
    assert "revgnn-zoo eval alice/my-model --data multiclass.npz" in text
    assert "\n# my-model\n" in text
    data = config.recipe.data.model_copy(update={"name": "Trains of Spain"})
    named = config.model_copy(update={"recipe": config.recipe.model_copy(update={"data": data})})
    text = render_card(named, repo_id="alice/my-model")
    assert {result.dataset_name for result in ModelCard(text).data.eval_results} == {"Trains of Spain"}
    assert "Prediction of node labels on `Trains of Spain`" in text
    # The owner may say where the data are published.
    told = text.replace("library_name:", "datasets:\n- alice/graphs\nlibrary_name:", 1)
    assert ModelCard(render_card(config, old=told)).data.datasets == ["alice/graphs"]


# One of each family: examples differ in the shape of the graph alone.
@pytest.mark.parametrize("name", ["cora_gcnii", "quickstart", "small_deq", "small_rev_gat", "small_res", None])
def test_example_of_a_card_runs_as_it_stands(name: str | None, bundle: Path) -> None:
    folder = shipped_dir("bundles") / name if name else bundle
    config = read_config(folder)
    text = render_card(config)
    assert "```bash\npip install revgnn-zoo\n```" in text
    (example,) = re.findall(r"```python\n(import torch\n.*?)```", text, re.DOTALL)
    known: dict[str, Any] = {}
    exec(example.replace(f"owner/{config.recipe.name}", str(folder)), known)
    assert known["logits"].shape == (4, config.shape.num_tasks)


def test_foreign_text_is_no_markup_of_the_card(bundle: Path) -> None:
    config = read_config(bundle)
    evil = "# Title\n\n---\n<script>x</script> ![x](https://example.org/x.png) [here](x) | a | `b"
    data = config.recipe.data.model_copy(update={"path": "a`\n```\n# Title.npz"})
    recipe = config.recipe.model_copy(update={"summary": evil, "data": data})
    provenance = config.provenance.model_copy(update={"device": evil, "torch_version": evil})
    text = render_card(config.model_copy(update={"recipe": recipe, "provenance": provenance}))
    inert = re.sub(r"\\.", "", text)
    assert "<script" not in inert
    assert "![x" not in inert
    assert "[here" not in inert
    assert "\n# Title" not in text
    (row,) = [line for line in inert.splitlines() if line.startswith("| device |")]
    assert row.count("|") == 3


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
    assert main(["card", str(copy), "--license", "gpl-3.0"]) == 0
    assert "license: gpl-3.0\n" in path.read_text()
    assert "# My own words" in path.read_text()
    assert main(["card", str(copy), "--replace"]) == 0
    assert "license: gpl-3.0\n" in path.read_text()
    assert "My own words" not in path.read_text()


def test_check_notices_a_card_of_other_weights(copy: Path) -> None:
    write_card(copy)
    config = parse_config((copy / "config.json").read_bytes(), where="x")
    results = [{**f.model_dump(), "value": 0.123} for f in config.results]
    (copy / "config.json").write_bytes(changed_config(copy, results=results))
    with pytest.raises(ZooError, match=r"does not say what config\.json says"):
        check_card(copy)


def test_card_of_a_run_exports_it_with_its_curves(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(copy / "bundle")
    assert write_card(copy) == copy / "bundle" / "README.md"
    assert (copy / "bundle" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert check_card(copy) == copy / "bundle" / "README.md"
