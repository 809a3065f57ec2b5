"""The gallery shows every model that comes with the zoo, and no figure that is not measured or published."""

import csv
import hashlib
import json
import re
import shutil
import xml.etree.ElementTree as ET
from decimal import Decimal
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest

from gallery import catalog, pages, words
from gallery.__main__ import main
from gallery.card import read_card
from gallery.drawing import draw
from tests.site.page import Element, read_page
from zoo.hub.config import read_config
from zoo.spec.recipe import read_recipe
from zoo.spec.shape import known_shape
from zoo.spec.shipped import list_bundles, list_models, list_recipes, recipe_path, shipped_dir

with pages.RESULTS.open(newline="", encoding="utf-8") as _file:
    ROWS = list(csv.DictReader(_file))
MODELS = {row["model"]: row for row in ROWS if row["purpose"] == "model"}
COLUMNS = ["model", "family", "data", "layers", "parameters", "memory", "test", "published", "size", "load"]


def table(site: Path) -> dict[str, dict[str, Element]]:
    """The cells of the table of models, by model and column."""
    rows = read_page(site / "index.html").one("table", id="table").one("tbody").all("tr")
    cells = [[child for child in row.children if isinstance(child, Element)] for row in rows]
    return {row[0].text: dict(zip(COLUMNS, row, strict=True)) for row in cells}


def shown(cell: Element) -> str:
    """The figure of a cell, without its second line; empty for a dash, which must say why."""
    first = next(child for child in cell.children if isinstance(child, Element))
    if first.attributes.get("class") == "none":
        assert first.attributes["title"]
        assert first.text == f"– {first.attributes['title']}"
        return ""
    return first.text


def share(text: str, metric: str = "accuracy") -> Decimal:
    """The figure of a text: shares are shown in percent, errors as they are."""
    return Decimal(text).scaleb(0 if metric in ("mae", "rmse") else -2)


def test_every_recipe_and_bundle_has_a_row_and_a_page(site: Path) -> None:
    names = sorted({*list_recipes(), *list_bundles()})
    assert list(table(site)) == names
    assert sorted(path.stem for path in (site / "models").glob("*.html")) == names
    for name, cells in table(site).items():
        assert cells["model"].one("a").attributes["href"] == f"models/{name}.html"
        assert read_page(site / "models" / f"{name}.html").one("h1").text == name


def test_every_link_resolves(site: Path) -> None:
    ids = {path: {e.attributes["id"] for e in read_page(path).all() if "id" in e.attributes} for path in html(site)}
    choices = {
        key: {o.text for o in read_page(site / "index.html").one("select", id=key).all()} for key in ("family", "data")
    }
    for path in html(site):
        for element in read_page(path).all():
            for key in ("href", "src"):
                link = element.attributes.get(key, "")
                if not link or "://" in link:
                    continue
                place, _, fragment = link.partition("#")
                target = (path.parent / unquote(place)).resolve() if place else path
                assert target.is_file(), (path.name, link)
                assert target.is_relative_to(site.resolve()), (path.name, link)
                if "=" in fragment:
                    ((choice, (value,)),) = parse_qs(fragment).items()
                    assert value in choices[choice]
                elif fragment:
                    assert fragment in ids[target], (path.name, link)


def html(site: Path) -> list[Path]:
    return [site.resolve() / "index.html", *sorted((site.resolve() / "models").glob("*.html"))]


def test_nothing_is_loaded_from_another_place(site: Path) -> None:
    for path in html(site):
        for element in read_page(path).all():
            if element.tag != "a":
                loaded = [element.attributes.get(key, "") for key in ("src", "href", "srcset", "action", "data")]
                assert not any("//" in address for address in loaded), (path.name, loaded)
            assert not any(key.startswith("on") for key in element.attributes), (path.name, element.attributes)
    for path in site.rglob("*"):
        if path.suffix not in (".js", ".css", ".svg"):
            continue
        text = path.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not {a for a in addresses if "leeoniya/uPlot" not in a}, path.name
        assert not re.search(r"\bfetch\(|XMLHttpRequest|\bimport\s*\(|@import|url\(\s*[\"']?(?:https?:)?//", text), (
            path.name
        )


def test_figures_of_the_table_equal_results_csv(site: Path) -> None:
    assert MODELS
    for name, cells in table(site).items():
        row = MODELS.get(name)
        if row is None:
            assert shown(cells["memory"]) == ""
            continue
        mean, _, std = shown(cells["test"]).partition(" ± ")
        assert share(mean, row["metric"]) == Decimal(row["test_mean"])
        assert share(std, row["metric"]) == Decimal(row["test_std"]) if row["test_std"] else not std
        assert Decimal(shown(cells["memory"])) == Decimal(row["step_peak_mib"])
        assert shown(cells["layers"]).removeprefix("≤ ").replace(",", "") == row["layers"]
        assert shown(cells["parameters"]).replace(",", "") == row["parameters"]
        assert cells["data"].text == row["data"]


def test_without_a_row_the_test_figure_is_that_of_the_weights_or_a_dash(site: Path) -> None:
    cells = table(site)
    for name in set(list_models()) - set(MODELS):
        text = shown(cells[name]["test"])
        if name in list_bundles():
            figures = read_config(shipped_dir("bundles") / name).results
            (value,) = (figure.value for figure in figures if figure.split == "test")
            assert share(text) == Decimal(f"{value:.4f}")
        else:
            assert text == ""


def test_parameters_and_sizes_are_those_of_recipe_and_bundle(site: Path) -> None:
    for name, cells in table(site).items():
        recipe = read_recipe(name)
        shape = known_shape(recipe)
        count = "" if shape is None else f"{recipe.model.num_parameters(shape):,}"
        assert shown(cells["parameters"]) == count
        weights = shipped_dir("bundles") / name / "model.safetensors"
        size = str(weights.stat().st_size) if weights.is_file() else ""
        assert cells["size"].attributes["data-sort"] == size
        assert bool(shown(cells["size"])) == bool(size)
        line = f'model = zoo.load("{name}")' if size else f'model = zoo.create_model("{name}", data)'
        assert cells["load"].one("button").attributes["data-copy"] == line


def test_published_figures_are_the_best_of_source_or_data_set(site: Path) -> None:
    for name, cells in table(site).items():
        recipe = read_recipe(name)
        own = [f for f in (recipe.source.reported if recipe.source else ()) if f.split == "test"]
        known = own or catalog.published_on(recipe.data.dataset, recipe.metric)
        if not known:
            assert shown(cells["published"]) == ""
            continue
        best = max(known, key=lambda figure: figure.mean)
        mean, _, std = shown(cells["published"]).partition(" ± ")
        assert share(mean) == Decimal(str(best.mean))
        assert (share(std) if std else None) == (None if best.std is None else Decimal(str(best.std)))


def test_pages_of_models_show_every_row_of_results_csv(site: Path) -> None:
    for name in list_models():
        page = read_page(site / "models" / f"{name}.html")
        commands = [e.attributes["data-copy"] for e in page.all("button") if e.attributes.get("data-copy")]
        rows = [row for row in ROWS if row["model"] == name]
        assert commands == [commands[0], f"revgnn-zoo train {name}", *(row["command"] for row in rows)]
        if not rows:
            continue
        body = page.all("table")[0].one("tbody").all("tr")
        for row, line in zip(rows, body, strict=True):
            cells = {
                cell.attributes["data-label"]: cell.text for cell in line.all("td") if "data-label" in cell.attributes
            }
            assert share(cells["Valid"], row["metric"]) == Decimal(row["valid_mean"])
            assert cells["Memory, MiB"] == row["step_peak_mib"]
            assert cells["Training, s"].replace(",", "") == row["train_s"]
            assert cells["Layers"].replace(",", "") == row["layers"]
            assert cells["Parameters"].replace(",", "") == row["parameters"]
            assert cells["Commit"] == row["commit"]


def test_points_of_the_plot_are_the_rows_of_results_csv_and_the_published_figures(site: Path) -> None:
    page = read_page(site / "index.html")
    data = json.loads(page.one("script", id="plot-json").children[0])  # type: ignore[arg-type]
    points = [point for plot in data["plots"] for point in plot["points"]]
    measured = [point for point in points if point["kind"] != "published"]
    keys = ("layers", "parameters", "memory", "seconds", "value")
    expected = [
        (
            row["model"],
            *(float(row[key]) for key in ("layers", "parameters", "step_peak_mib", "train_s")),
            float(row["test_mean"]) if row["metric"] == "mae" else float(share(row["test_mean"]).scaleb(4)),
        )
        for row in ROWS
    ]
    assert sorted((p["model"], *(p[key] for key in keys)) for p in measured) == sorted(expected)
    published = {point["model"] for point in points if point["kind"] == "published"}
    assert published == {name for name in list_recipes() if (read_recipe(name).source)}
    # The plot that is shown first is the one with the most depths.
    depths = [len({p["layers"] for p in plot["points"] if p["kind"] != "published"}) for plot in data["plots"]]
    assert depths[data["first"]] == max(depths)


def test_a_line_of_the_plot_joins_runs_that_differ_in_depth_alone() -> None:
    points = [point for entry in catalog.read_catalog(pages.RESULTS) for point in catalog._measured_points(entry)]
    for line in {point["line"] for point in points if point["line"]}:
        joined = [point for point in points if point["line"] == line]
        assert len({point["model"] for point in joined}) == 1
        assert len({point["layers"] for point in joined}) == len(joined)
    assert any(len([p for p in points if p["line"] == point["line"]]) > 2 for point in points if point["line"])


def test_the_page_shows_the_recipe_file(site: Path) -> None:
    for name in list_recipes():
        text = read_page(site / "models" / f"{name}.html").one("pre", id="recipe").text
        written = json.loads(recipe_path(name).read_text(encoding="utf-8"))
        written.pop("$schema", None)
        assert json.loads(text) == written


@pytest.mark.parametrize("name", list_models())
def test_the_drawing_says_what_the_recipe_says(name: str) -> None:
    recipe = read_recipe(name)
    shape = known_shape(recipe)
    drawing = ET.fromstring(draw(name, recipe.model, shape))
    texts = ["".join(e.itertext()) for e in drawing.iter("text")]
    model = recipe.model
    tasks = "T" if shape is None else f"{shape.num_tasks:,}"
    assert f"[N, {tasks}]" in texts
    assert any(f"→ {model.hidden_channels:,}" in text for text in texts)
    inside = model.num_layers - 2 if model.type == "rev_gat" else model.num_layers
    assert (f"≤ {model.solver.max_iters:,} iterations" if model.type == "deq" else f"× {inside:,}") in texts
    if model.dropout:
        assert any(f"dropout {model.dropout:g}" in text for text in texts)
    reads_edges = model.reads_edges and (shape is None or shape.num_edge_features > 0)
    assert ("edge features" in texts) == reads_edges
    assert drawing.findtext("title") == f"Architecture of {name}"


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("small_rev", {"model.num_groups": 4}, ["x₄", "f₄", "sum of the others"]),
        ("small_rev", {"model.num_groups": 8}, ["⋯", "xɢ", "fɢ"]),
        ("small_rev", {"model.reversible": False}, ["plain autograd, for comparison"]),
        ("small_res", {"model.checkpoint": True}, ["backward computes the insides of each layer again"]),
        ("small_res", {"model.norm_position": "post"}, ["linear", "LayerNorm → ReLU"]),
        ("small_wt_rev", {"model.num_distinct_layers": 1}, ["one set of weights for all of them"]),
        (
            "small_deq",
            {"model.solver": {"type": "picard", "backward": {"type": "phantom"}}},
            ["solver: plain iteration", "phantom gradient of 5 terms"],
        ),
    ],
)
def test_options_of_a_recipe_change_its_drawing(name: str, changes: dict[str, object], expected: list[str]) -> None:
    recipe = read_recipe(name, changes)
    texts = {e.text for e in ET.fromstring(draw(name, recipe.model, known_shape(recipe))).iter("text")}
    assert set(expected) <= texts
    unchanged = read_recipe(name)
    assert not set(expected) <= {
        e.text for e in ET.fromstring(draw(name, unchanged.model, known_shape(unchanged))).iter("text")
    }


def test_a_family_without_a_drawing_of_its_own_is_drawn_as_a_named_layer() -> None:
    model = read_recipe("small_rev").model.model_copy(update={"type": "mystery"})
    texts = [e.text for e in ET.fromstring(draw("small_rev", model, None)).iter("text")]
    assert {"mystery layer", "× 8", "64 channels"} <= set(texts)


def test_html_in_a_card_is_shown_as_text() -> None:
    card = read_card(
        "# A\n\n<script>alert(1)</script>\n\n## Limits\n\n<b>x</b> and [y](javascript:alert(1))\n\n## Use\n\nz\n"
    )
    ((heading, body),) = card.sections
    assert (card.title, heading) == ("A", "Limits")
    assert "&lt;script&gt;" in card.introduction
    assert "<script" not in card.introduction
    assert "<b>" not in body
    assert "href" not in body


def test_data_cannot_end_the_element_that_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "plot_data", lambda entries: {"plots": [{"data": "</script><script>alert(1)"}]})
    data = str(pages._index([])["plot_data"])
    assert "</script" not in data
    assert json.loads(data)["plots"][0]["data"] == "</script><script>alert(1)"


def test_values_are_shown_with_the_digits_of_results_csv() -> None:
    assert words.value_in_words("rocauc", "0.9950") == "99.50"
    assert words.value_in_words("accuracy", 0.123456) == "12.35"
    assert words.value_in_words("mae", "12.5000") == "12.5000"
    assert words.mean_in_words("accuracy", "0.5", "") == "50"
    assert [words.bytes_in_words(n) for n in (0, 999, 1000, 99_950, 1_662_500, 2 * 10**9)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "100 kB",
        "1.7 MB",
        "2.0 GB",
    ]


def test_a_second_build_removes_pages_of_models_that_are_gone_and_nothing_else(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    shutil.copytree(site, out)
    (out / "models" / "gone.html").write_text("old")
    (out / "CNAME").write_text("kept")
    pages.write_site(out)
    assert not (out / "models" / "gone.html").exists()
    assert (out / "CNAME").read_text() == "kept"
    assert sorted(p.relative_to(out) for p in out.rglob("*") if p.name != "CNAME") == sorted(
        p.relative_to(site) for p in site.rglob("*")
    )


def test_the_command_writes_the_site_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gallery", "--out", str(tmp_path / "out")])
    main()
    assert capsys.readouterr().out.startswith(f"{len(list_models()) + 1} pages, ")
    assert (tmp_path / "out" / "index.html").is_file()


def test_what_is_vendored_has_its_license_and_is_the_version_that_the_notes_name(site: Path) -> None:
    notes = (pages.SOURCE / "README.md").read_text(encoding="utf-8")
    for library, file in (("uplot", "uPlot.iife.min.js"), ("sortable", "sortable.min.js")):
        assert (site / "assets" / "vendor" / library / "LICENSE").read_text(encoding="utf-8").strip()
        digest = hashlib.sha256((pages.SOURCE / "vendor" / library / file).read_bytes()).hexdigest()
        assert digest in notes
