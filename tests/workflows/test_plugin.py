"""The package in examples/plugin adds parts: recipes name them, and bundles name the package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"
USE = """
import sys
from pathlib import Path
from zoo.models.factory import build_model
from zoo.spec.recipe import parse_recipe, read_recipe
from zoo.spec.shape import known_shape
from zoo.workflows.export import export
from zoo.workflows.load import load
from zoo.workflows.train import train

recipe, out = read_recipe(Path(sys.argv[1])), Path(sys.argv[2])
assert parse_recipe(recipe.to_json(), where="again") == recipe
assert "zoo_example.parts" not in sys.modules, "a recipe is read without the code of its parts"
shape = known_shape(recipe)
count = sum(parameter.numel() for parameter in build_model(recipe.model, shape).parameters())
assert count == recipe.model.num_parameters(shape)
results = train(recipe, out / "run", device="cpu", quiet=True)
assert {figure.metric for figure in results.results} == {"balanced_accuracy"}
assert max(figure.value for figure in results.results) > 0.6, results.results
bundle, config = export(out / "run")
load(str(bundle))
other = read_recipe(Path(sys.argv[1]), ['model={"type": "smooth", "num_layers": 3}'])
results = train(other, out / "family", device="cpu", quiet=True)
assert results.num_parameters == other.model.num_parameters(shape)
assert export(out / "family")[1].recipe.model == other.model
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the example in it, as pip installs it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    copy = tmp_path_factory.mktemp("source") / "plugin"
    subprocess.run(["cp", "-r", str(PLUGIN), str(copy)], check=True)
    subprocess.run([*command, "--target", str(folder), str(copy)], check=True, timeout=120)
    return folder


def run(*arguments: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *([] if site is None else [str(site)])])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a run of the example's recipe."""
    out = tmp_path_factory.mktemp("out")
    done = run("-c", USE, str(PLUGIN / "rings.json"), str(out), site=site)
    assert done.returncode == 0, done.stderr
    return out / "run" / "bundle"


def test_a_bundle_names_the_package_and_its_version(trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    assert config["packages"] == {"zoo-example": "0.1.0"}


def test_the_commands_know_the_parts(trained: Path, site: Path) -> None:
    for command in (["check", str(PLUGIN / "rings.json")], ["info", str(trained)]):
        done = run("-m", "zoo", *command, site=site)
        assert done.returncode == 0, done.stderr


def test_the_schema_knows_what_is_installed(site: Path) -> None:
    names = ('"multi_hop"', '"smooth"', '"focal"', '"balanced_accuracy"', '"rings"')
    code = "import json, zoo.spec.recipe as recipe; print(json.dumps(recipe.recipe_schema()))"
    schema = run("-c", code, site=site).stdout
    assert [name for name in names if name not in schema] == []
    assert [name for name in names if name in run("-c", code).stdout] == []


def test_a_bundle_without_its_package_is_refused_in_one_line(trained: Path) -> None:
    done = run("-m", "zoo", "eval", str(trained))
    assert done.returncode == 5
    (line,) = done.stderr.strip().splitlines()
    assert line.endswith(
        "needs a package that is not installed here; if you trust it: pip install 'zoo-example==0.1.0'"
    )


def test_a_recipe_without_its_package_names_what_there_is() -> None:
    done = run("-m", "zoo", "check", str(PLUGIN / "rings.json"))
    assert done.returncode == 1
    assert "model.conv.type: expected one of gen, gcn" in done.stderr
    assert "eval.metric: expected one of rocauc" in done.stderr


def test_faults_inside_a_part_have_their_place(site: Path, tmp_path: Path) -> None:
    data = json.loads((PLUGIN / "rings.json").read_text(encoding="utf-8"))
    data["model"]["conv"]["num_hops"] = "3"
    (tmp_path / "rings.json").write_text(json.dumps(data))
    done = run("-m", "zoo", "check", str(tmp_path / "rings.json"), site=site)
    assert done.returncode == 1
    assert "model.conv.num_hops: expected an integer, got " in done.stderr


def test_recipes_of_this_package_alone_scan_no_packages() -> None:
    code = (
        "import sys; from zoo.spec.recipe import read_recipe; from zoo.spec.shipped import recipe_path\n"
        "read_recipe(recipe_path('quickstart')); from zoo.spec import plugins\n"
        "assert plugins._entry_points.cache_info().currsize == 0"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
