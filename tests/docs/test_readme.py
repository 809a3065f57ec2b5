"""README is short, its figures are those of the results, and its links work on the page of the package too."""

from __future__ import annotations

import csv
import json
import re
import sys
from typing import get_args

from benchmarks import tables
from tests.docs.pages import ROOT, blocks
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import GeneratedName

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = ROOT / "README.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com")
_NUMBER = r"\d+(?:[.,]\d+)*"


def table(name: str) -> str:
    """A generated table."""
    return TEXT.partition(f"<!-- table: {name} -->\n")[2].partition("\n<!-- end -->")[0]


def cells(name: str) -> list[list[str]]:
    """The rows of a generated table without its head."""
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table(name).splitlines()[2:]]


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 180
    assert len(re.findall(_NUMBER, TEXT)) <= 80


def test_tables_are_made_from_the_results_as_they_are_now() -> None:
    assert tables.filled(TEXT) == TEXT, "run python -m benchmarks.tables"


def test_only_generated_tables_hold_numbers() -> None:
    rest = re.sub(r"<!-- table: \w+ -->\n.*?<!-- end -->", "", TEXT, flags=re.S)
    rows = [line for line in rest.splitlines() if line.startswith("|")]
    assert rows
    assert [line for line in rows if re.search(_NUMBER, line)] == []


def test_each_figure_of_a_model_is_in_the_table_of_results() -> None:
    with (ROOT / "results" / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["purpose"] == "model"]
    assert {row[1] for row in cells("models")} == {row["data"] for row in rows} - set(get_args(GeneratedName))
    for _, data, model, family, test in cells("models"):
        (row,) = [row for row in rows if row["model"] == model]
        assert row["data"] == data
        assert re.findall(_NUMBER, family) == [row["layers"]]
        assert re.findall(_NUMBER, test) == [row[key] for key in ("test_mean", "test_std") if row[key]]
        others = [float(other["valid_mean"]) for other in rows if other["data"] == data]
        assert float(row["valid_mean"]) in (min(others), max(others))


def test_each_published_figure_is_that_of_its_recipe() -> None:
    for name, data, _, sizes, published in cells("paper"):
        recipe = read_recipe(name)
        assert recipe.source
        assert data == recipe.data.dataset
        assert re.findall(_NUMBER, sizes)[-1] == str(recipe.model.hidden_channels)
        assert len(re.findall(_NUMBER, sizes)) == 1 or str(recipe.model.num_layers) in sizes
        figures = {f"{100 * r.mean:.2f}" for r in recipe.source.reported}
        assert re.findall(_NUMBER, published)[0] in figures


def test_each_second_was_measured() -> None:
    files = sorted((ROOT / "benchmarks" / "results").glob("turns_*.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    for contender, *found in cells("speed"):
        for result, cell in zip(results, found, strict=True):
            measured = [row for row in result["rows"] if row["contender"] == contender]
            if cell == "not measured":
                assert measured == []
                continue
            (row,) = measured
            seconds, *ratio = re.findall(_NUMBER, cell)
            assert abs(float(seconds) - row["processor"]["median_s"]) <= 0.0051
            assert [abs(float(r) - row["processor"]["ratio"]) <= 0.051 for r in ratio] in ([], [True])


def test_links_and_pictures_are_absolute_and_those_of_the_repository_lead_somewhere() -> None:
    addresses = re.findall(r"\]\(([^)\s]+)\)", TEXT)
    assert len(addresses) > 10
    assert [each for each in addresses if not each.startswith("https://")] == []
    own = [each for each in addresses if each.startswith((REPOSITORY, RAW))]
    for each in own:
        path = re.fullmatch(rf"(?:{REPOSITORY}/(?:blob|tree)|{RAW})/main/(.+)", each)
        assert path, each
        assert (ROOT / path[1]).exists(), each


def test_its_first_screen_loads_and_trains() -> None:
    first = TEXT.partition("\n## ")[0]
    assert len(first.splitlines()) <= 50
    assert "pip install" in first
    code = [block.text for block in blocks(PAGE) if block.language == "python"][:2]
    assert all(block in first for block in code)
    assert "zoo.load(" in code[0]
    assert "zoo.train(" in code[1]


def test_badges_tell_the_truth() -> None:
    assert f"badge/license-{PROJECT['license']}-" in TEXT
    (status,) = [each for each in PROJECT["classifiers"] if each.startswith("Development Status")]
    assert f"badge/status-{status.rpartition(' ')[2].lower()}-" in TEXT
    assert f"Python {PROJECT['requires-python'].removeprefix('>=')} or newer" in TEXT


def test_the_citation_is_of_this_version_and_repository() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in text
    assert f"\nrepository-code: {REPOSITORY}\n" in text
    assert f"\nlicense: {PROJECT['license']}\n" in text
