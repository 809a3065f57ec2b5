"""One line gives a model: from the Hub, from a folder, from what comes with the package; and what is listed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import zoo
from tests.hub.bundles import REPO, content, outputs, with_weights
from tests.hub.server import TestHub
from zoo.cli import main
from zoo.data.download import data_root
from zoo.errors import NotFoundError, ZooError, ZooWarning
from zoo.hub.client import connect
from zoo.hub.reference import Reference, ReferenceFormatError, parse_reference
from zoo.spec.results import Measured
from zoo.spec.shape import GeneratedName
from zoo.spec.shipped import recipe_path, shipped_dir
from zoo.workflows.evaluate import compare_with_published, evaluate

UseHub = Callable[..., None]


@pytest.fixture
def full_hub(hub: TestHub, use_hub: UseHub, bundle: Path) -> TestHub:
    hub.put_raw(REPO, content(bundle))
    use_hub(hub)
    return hub


def test_model_knows_where_it_comes_from(full_hub: TestHub, bundle: Path) -> None:
    commit = full_hub.repo(REPO).head.id
    full_hub.repo(REPO).refs["refs/tags/v1"] = full_hub.repo(REPO).head
    model = zoo.load(f"{REPO}@v1")
    info = model.zoo_info
    assert (info.repo_id, info.revision, info.commit) == (REPO, "v1", commit)
    assert info.sha256 == json.loads((bundle / "config.json").read_bytes())["weights"]["sha256"]
    assert info.recipe.name == "small"
    assert {figure.split for figure in info.results} == {"train", "valid", "test"}
    assert not model.training
    assert outputs(model).equal(outputs(zoo.load(bundle)))
    assert zoo.load(bundle).zoo_info.commit == ""


def test_second_load_by_commit_needs_nothing(full_hub: TestHub) -> None:
    commit = full_hub.repo(REPO).head.id
    first = zoo.load(f"{REPO}@{commit}")
    full_hub.requests.clear()
    second = zoo.load(f"{REPO}@{commit}")
    assert len(full_hub.requests) == 0
    full_hub.stop()
    third = zoo.load(f"{REPO}@{commit}")
    assert outputs(first).equal(outputs(second))
    assert outputs(first).equal(outputs(third))


def test_load_fetches_no_more_than_it_reads(full_hub: TestHub) -> None:
    zoo.load(REPO)
    names = {r.path.rsplit("/", 1)[1] for r in full_hub.requests.select("GET", "/resolve/")}
    assert names == {"config.json", "model.safetensors", "probe.safetensors"}


def test_weights_changed_after_they_were_fetched_are_noticed(full_hub: TestHub, bundle: Path) -> None:
    model = zoo.load(REPO)
    blob = (model.zoo_info.folder / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x01")
    assert outputs(zoo.load(REPO)).equal(outputs(zoo.load(bundle)))


def test_new_head_is_asked_for_and_only_the_head_is_new(full_hub: TestHub) -> None:
    whole = zoo.load(REPO)
    for num_tasks in (5, 3):
        torch.manual_seed(1)
        with pytest.warns(ZooWarning, match=r"small: new and untrained: head\.weight, head\.bias; the other \d+ of"):
            model = zoo.load(REPO, num_tasks=num_tasks)
        assert outputs(model).shape == (20, num_tasks)
        state, kept = model.state_dict(), whole.state_dict()
        changed = {name for name in state if not state[name].equal(kept[name])}
        assert changed == {"head.weight", "head.bias"}
        assert (model.zoo_info.shape.num_tasks, model.zoo_info.results) == (num_tasks, ())
        assert not model.training
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ZooError, match="num_tasks: expected an integer"):
            zoo.load(REPO, num_tasks=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("a/b", Reference("a/b")),
        ("A_1/b.c-d@v1.0", Reference("A_1/b.c-d", "v1.0")),
        ("a/b@refs/pr/3", Reference("a/b", "refs/pr/3")),
        ("a/b@" + "0" * 40, Reference("a/b", "0" * 40)),
    ],
)
def test_references_are_read(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a/", "/b", "a/b/c", "../b", "a/..", "a--b/c", "a/b.git", "a b/c", "a\\b/c", "ä/b"),
        *("a/b@", "a/b@../x", "a/b@x..y", "a/b@/x", "a/b@x//y", "a/b@x/", "a/b@-x", "a/b@x y", "a/b@x@y"),
        *("a/b@x\n", "a/b@x\0", "a/b@" + "x" * 201),
    ],
)
def test_what_is_no_reference_is_refused_without_asking(hub: TestHub, use_hub: UseHub, text: str) -> None:
    use_hub(hub)
    with pytest.raises(ReferenceFormatError) as caught:
        parse_reference(text)
    assert caught.value.exit_code == 2
    with pytest.raises((ReferenceFormatError, NotFoundError)):
        zoo.load(text)
    assert len(hub.requests) == 0


def test_weights_carry_one_metadata_key_and_equal_weights_give_equal_bytes(run: Path, tmp_path: Path) -> None:
    from zoo.workflows.export import export

    paths = [export(run, tmp_path / name)[0] / "model.safetensors" for name in ("one", "two")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with safe_open(paths[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert load_file(paths[0]).keys() == zoo.load(tmp_path / "one").state_dict().keys()


# The models that come with the package.


SHIPPED = sorted(path.name for path in shipped_dir("bundles").iterdir())


def test_shipped_model_loads_and_evaluates_without_a_network(
    hf_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    model = zoo.load("quickstart")
    size = sum(path.stat().st_size for path in model.zoo_info.folder.iterdir())
    assert size < 1_000_000
    assert main(["eval", "quickstart", "--json", "-q"]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    figures = {figure["split"]: figure for figure in json.loads(told.out)}
    assert figures["test"]["published"] > 0.9
    assert abs(figures["test"]["value"] - figures["test"]["published"]) <= figures["test"]["tolerance"]


def test_shipped_models_are_small_together() -> None:
    folder = shipped_dir("bundles")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 12_000_000


@pytest.mark.filterwarnings("ignore:a forward solve stopped")
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_repeats_its_figures_where_its_data_are_at_hand(name: str) -> None:
    dataset = zoo.read_recipe(recipe_path(name)).data.dataset
    always = ("digits", *get_args(GeneratedName))
    if dataset not in always and not (data_root() / f"{dataset}.npz").is_file():
        pytest.skip(f"{dataset} is not at hand; ZOO_DATA names the folder of all data")
    for compared in evaluate(name, device="cpu", quiet=True):
        assert compared.origin == "config.json"
        assert compared.is_within, compared


# Evaluation beside the published figures.


def test_eval_of_a_hub_model_stands_beside_the_published_figures(
    full_hub: TestHub, run: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", REPO, "--data", str(run.parent / "multiclass.npz"), "-q"]
    assert main(arguments) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[0].split() == ["split", "metric", "value", "published", "tolerance", "protocol", "published", "in"]
    assert re.fullmatch(rf"{REPO}: commit [0-9a-f]{{40}}", told[-1])
    # Other weights than those that were measured: their figures are further off than the tolerance.
    state = load_file(bundle / "model.safetensors")
    from safetensors.torch import save

    weights = save({name: -tensor for name, tensor in state.items()}, {"format": "pt"})
    full_hub.put_raw(REPO, with_weights(content(bundle), weights))
    assert main([*arguments, "--json"]) == 1
    told_apart = capfd.readouterr()
    figures = json.loads(told_apart.out)
    assert all(figure["published_in"] == "config.json" and len(figure["commit"]) == 40 for figure in figures)
    assert "further from the figure in config.json than the tolerance" in told_apart.err


def test_eval_of_somebody_elses_graph_says_how_to_name_it(
    full_hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["eval", REPO]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "multiclass.npz" in line
    assert "say where it is by --data (eval)" in line


def test_quiet_eval_downloads_quietly(full_hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("zoo.workflows.pull.connect", lambda **options: asked.append(options["quiet"]) or connect())
    main(["eval", REPO, "-q"])
    main(["eval", REPO])
    assert asked == [True, False]


def test_a_figure_of_the_paper_is_shown_and_decides_nothing(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    data = json.loads((folder / "recipe.json").read_text())
    figure = {
        "split": "test",
        "metric": "accuracy",
        "mean": 0.01,
        "num_views": 3,
        "num_parts": 2,
        "source": "a paper",
    }
    data["source"] = {"paper": "https://example.org", "reported": [figure]}
    (folder / "recipe.json").write_text(json.dumps(data))
    assert main(["eval", str(folder), "--split", "test", "--json", "-q"]) == 0
    (told,) = json.loads(capfd.readouterr().out)
    assert (told["published"], told["published_in"]) == (0.01, "a paper")
    assert told["value"] - told["published"] > told["tolerance"]


def test_published_figures_count_only_under_the_same_protocol() -> None:
    recipe = zoo.read_recipe(recipe_path("rev_deep"))

    def figure(value: float, num_views: int = 10, num_parts: int = 3) -> Measured:
        return Measured(split="test", metric="rocauc", value=value, num_views=num_views, num_parts=num_parts)

    def compared(measured: Measured, *recorded: Measured) -> tuple[float | None, bool]:
        (comparison,) = compare_with_published([measured], recorded, recipe, {"test": 10_000})
        return comparison.published, comparison.is_within

    # The paper: 87.74 +- 0.13, two deviations.
    assert compared(figure(0.8750)) == (0.8774, True)
    assert compared(figure(0.8745)) == (0.8774, False)
    # The same weights on the same parts give the recorded figure again, but for rounding.
    assert compared(figure(0.8750), figure(0.8753)) == (0.8753, True)
    assert compared(figure(0.8750), figure(0.8760)) == (0.8760, False)
    assert compared(figure(0.8750), figure(0.9, num_views=1)) == (0.8774, True)
    assert compared(figure(0.5, num_views=7)) == (None, True)
    # "whole graph, 10 runs": 83.07 +- 0.30.
    products = zoo.read_recipe(recipe_path("rev_sage_products"))
    whole = Measured(split="test", metric="accuracy", value=0.8248, num_views=1, num_parts=1)
    (comparison,) = compare_with_published([whole], [], products, {"test": 2_000_000})
    assert (comparison.published, comparison.is_within) == (0.8307, True)


# Lists.


def test_list_of_the_hub_shows_the_models_of_this_library(
    full_hub: TestHub, bundle: Path, capfd: pytest.CaptureFixture[str], quick_retries: None
) -> None:
    full_hub.put_raw("bob/other", content(bundle))
    full_hub.put_raw("bob/alien", {"README.md": b"---\nlibrary_name: else\n---\n"})
    assert main(["list", "--remote", "--json"]) == 0
    assert {row["repository"] for row in json.loads(capfd.readouterr().out)} == {REPO, "bob/other"}
    assert main(["list", "--remote", "--author", "bob"]) == 0
    assert capfd.readouterr().out.splitlines()[1].split()[0] == "bob/other"
    assert main(["list", "--remote", "--search", "OTH"]) == 0
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()] == ["model", "bob/other"]
    full_hub.put_raw("bob/digits", {"README.md": b"---\nlibrary_name: revgnn-zoo\ndatasets: [digits]\n---\n"})
    assert main(["list", "--remote", "--dataset", "digits", "--json"]) == 0
    assert [row["repository"] for row in json.loads(capfd.readouterr().out)] == ["bob/digits"]
    for arguments in (["--search", "x"], ["--cached", "--search", "x"], ["--cached", "--dataset", "digits"]):
        assert main(["list", *arguments]) == 2
    capfd.readouterr()
    full_hub.stop()
    assert main(["list", "--remote"]) == 6
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_list_of_the_cache_shows_whole_bundles(full_hub: TestHub, capfd: pytest.CaptureFixture[str]) -> None:
    full_hub.put_raw("bob/half", {"config.json": full_hub.files(REPO)["config.json"]})
    assert main(["list", "--cached"]) == 0
    assert "no models in the cache" in capfd.readouterr().out
    assert main(["pull", REPO, "-q"]) == 0
    assert main(["pull", "bob/half"]) == 5
    folder = capfd.readouterr().out.strip()
    full_hub.stop()
    assert main(["list", "--cached", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert (row["repository"], row["revisions"], row["recipe"]) == (REPO, ["main"], "small")
    assert (row["commit"], row["folder"]) == (full_hub.repo(REPO).head.id, folder)


def test_info_reads_the_header_and_leaves_the_weights_there(
    full_hub: TestHub, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", REPO]) == 0
    said = capfd.readouterr().out
    num_parameters = sum(tensor.numel() for tensor in zoo.load(REPO).parameters())
    assert f"{num_parameters:,} F32" in said
    assert full_hub.repo(REPO).head.id in said
    shutil.rmtree(os.environ["HF_HOME"])
    full_hub.requests.clear()
    assert main(["info", REPO, "--json"]) == 0
    said_as_json = json.loads(capfd.readouterr().out)
    assert said_as_json["weights"] == {"F32": num_parameters}
    assert main(["info", str(bundle), "--json"]) == 0
    of_folder = json.loads(capfd.readouterr().out)
    # One shape for models here and there.
    assert {key: said_as_json[key] for key in of_folder} == of_folder
    asked = full_hub.requests.select("GET", "safetensors")
    assert all("range" in r.headers for r in asked)
    assert main(["info", "alice/nothing"]) == 3


def test_a_folder_is_never_asked_of_the_hub(full_hub: TestHub, run: Path) -> None:
    assert outputs(zoo.load(run)).equal(outputs(zoo.load(str(run))))
    with pytest.raises(NotFoundError, match="no such folder"):
        zoo.load(f"{run}x")
    assert len(full_hub.requests) == 0
