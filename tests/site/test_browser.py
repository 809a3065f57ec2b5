"""The gallery in a real browser: headless Chromium opens it as a folder of files, and clicks, types and looks.

``make site-test`` installs what these tests need. Whatever a test does, no page may write an error to the console and
nothing may be loaded that is not a file of the site.
"""

from __future__ import annotations

import csv
import functools
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gallery import pages
from zoo.spec.shipped import list_bundles, list_models

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Request

pytestmark = pytest.mark.browser

AXE = Path(__file__).parent / "axe" / "axe.min.js"
DESKTOP, PHONE = (1280, 900), (390, 844)
with pages.RESULTS.open(newline="", encoding="utf-8") as _file:
    ROWS = list(csv.DictReader(_file))
# One page of each kind: with weights and runs, of the paper.
PAGES = ["minesweeper_rev_deq", "rev_deep", "rev_gat_arxiv", "small_res"]

Open = Callable[..., "Page"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    # Only these tests need it, and plain pytest collects this file.
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert path, "no Chromium on this machine: apt-get install chromium, or name it in CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


def not_loaded(request: Request) -> list[str]:
    # A page that is left while it loads gives up what it still waits for; a file that is not there fails otherwise.
    return [] if request.failure == "net::ERR_ABORTED" else [f"not loaded: {request.url}: {request.failure}"]


@pytest.fixture
def visit(browser: Browser, site: Path) -> Iterator[Open]:
    """Open a page of the site; what goes wrong on it fails the test."""
    faults: list[str] = []
    contexts = []

    def visit(path: str = "index.html", *, size: tuple[int, int] = DESKTOP, base: str = "", **options: Any) -> Page:
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        start = base or site.as_uri() + "/"
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.extend(not_loaded(request)))
        page.on("request", lambda request: None if request.url.startswith(start) else faults.append(request.url))
        page.goto(start + path)
        if "models/" not in path and options.get("java_script_enabled", True):
            plotted(page)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


def plotted(page: Page) -> None:
    """Wait for the points, which are drawn a frame after the axes."""
    page.wait_for_function("document.querySelectorAll('#chart a.mark').length > 0")


def shown(page: Page) -> list[str]:
    return page.locator("#table tbody tr:visible th").all_inner_texts()


def column(page: Page, label: str) -> list[str]:
    """The keys of a column from top to bottom."""
    cells = page.locator(f"#table tbody td[data-label='{label}']")
    return [cell or "" for cell in cells.evaluate_all("cells => cells.map(cell => cell.dataset.sort)")]


def head(page: Page, name: str) -> Locator:
    return page.locator("#table thead button", has_text=name)


def marks(page: Page) -> Locator:
    return page.locator("#chart a.mark")


def mark(page: Page, model: str, *, kind: str = "model") -> Locator:
    return page.locator(f"#chart a.mark.{kind}[aria-label^='{model}, ']")


def has_no_horizontal_scroll(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_the_page_opens_from_a_folder_with_a_row_for_each_model(visit: Open) -> None:
    page = visit()
    assert page.url.startswith("file://")
    assert page.title() == "revgnn-zoo: models"
    assert shown(page) == list_models()
    assert page.locator("#count").inner_text() == f"{len(list_models())} models"
    assert marks(page).count() > 0


@pytest.mark.parametrize("name", ["Layers", "Parameters", "Memory, MiB", "Test", "Published", "Size"])
def test_numbers_are_sorted_as_numbers_both_ways_and_dashes_stand_last(visit: Open, name: str) -> None:
    page = visit()
    before = column(page, name)
    numbers = sorted((float(text) for text in before if text), reverse=True)
    assert len(set(numbers)) > 1
    for order, expected in (("descending", numbers), ("ascending", numbers[::-1])):
        head(page, name).click()
        page.wait_for_selector(f"#table th[aria-sort={order}]:has-text('{name}')")
        keys = column(page, name)
        assert [float(text) for text in keys if text] == expected
        assert keys[len(expected) :] == [""] * (len(before) - len(expected))


def test_names_are_sorted_as_words_both_ways(visit: Open) -> None:
    page = visit()
    head(page, "Model").click()
    page.wait_for_selector("#table th[aria-sort=descending]")
    assert shown(page) == list_models()[::-1]
    head(page, "Data").click()
    page.wait_for_selector("#table th[aria-sort=ascending]:has-text('Data')")
    names = page.locator("#table tbody td[data-label=Data]").all_inner_texts()
    assert names == sorted(names)


def test_the_search_finds_words_of_name_summary_and_convolution(visit: Open) -> None:
    page = visit()
    page.get_by_label("Search").fill("REV_gat")
    assert shown(page) == [name for name in list_models() if "rev_gat" in name]
    page.get_by_label("Search").fill("small gatv2")
    assert shown(page) == ["small_rev_gatv2"]
    page.get_by_label("Search").fill("1001 layers")
    assert "rev_deep" in shown(page)
    count = page.locator("#count").inner_text()
    assert count == f"{len(shown(page))} of {len(list_models())} models"


def test_filters_of_family_and_data_set_go_together_and_stand_in_the_address(visit: Open) -> None:
    page = visit()
    page.locator("#family").select_option("equilibrium")
    page.locator("#data").select_option("digits")
    assert shown(page) == ["small_deq", "small_rev_deq"]
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    assert shown(page) == ["small_deq", "small_rev_deq"]
    assert page.locator("#family").input_value() == "equilibrium"


def test_models_with_weights_can_be_shown_alone(visit: Open) -> None:
    page = visit()
    page.get_by_label("with weights").check()
    assert shown(page) == list_bundles()


def test_when_nothing_fits_all_can_be_shown_again(visit: Open) -> None:
    page = visit()
    page.get_by_label("Search").fill("no such model")
    assert shown(page) == []
    assert not page.locator("#table").is_visible()
    page.get_by_role("button", name="Show all").click()
    assert shown(page) == list_models()
    assert page.get_by_label("Search").input_value() == ""


def test_a_row_leads_to_the_page_of_its_model_and_back(visit: Open) -> None:
    page = visit()
    page.get_by_role("link", name="rev_deep", exact=True).click()
    page.wait_for_url("**/models/rev_deep.html")
    assert page.get_by_role("heading", level=1).inner_text() == "rev_deep"
    assert page.get_by_role("img", name="Architecture of rev_deep").is_visible()
    page.get_by_role("link", name="ogbn-proteins").click()
    page.wait_for_url("**/index.html#data=ogbn-proteins")
    assert "rev_deep" in shown(page)
    assert "small_rev" not in shown(page)


@pytest.mark.parametrize("path", ["index.html", "models/small_rev.html"])
def test_the_load_line_is_copied(visit: Open, path: str) -> None:
    page = visit(path)
    name = "Copy the line that loads small_rev" if path == "index.html" else "Copy the line that loads the model"
    page.get_by_role("button", name=name, exact=True).click()
    page.wait_for_selector("button.copy:text-is('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == 'model = zoo.load("small_rev")'
    assert page.locator("#said").inner_text() == 'Copied: model = zoo.load("small_rev")'


def test_the_load_line_is_copied_where_the_page_may_not_use_the_clipboard(visit: Open) -> None:
    page = visit("models/rev_deep.html")
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    page.get_by_role("button", name="Copy the line that creates the model").click()
    page.wait_for_selector("button.copy:text-is('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == 'model = zoo.create_model("rev_deep", data)'


def test_the_recipe_is_copied_whole(visit: Open) -> None:
    page = visit("models/small_rev.html")
    page.get_by_role("button", name="Copy the recipe").click()
    page.wait_for_selector("button.copy:text-is('Copied')")
    assert json.loads(page.evaluate("navigator.clipboard.readText()"))["name"] == "small_rev"


def test_the_plot_names_the_point_under_the_pointer(visit: Open) -> None:
    page = visit()
    page.locator("#plot-data-set").select_option(label="minesweeper")
    point = mark(page, "minesweeper_rev_deq")
    point.hover()
    row = next(row for row in ROWS if row["model"] == "minesweeper_rev_deq" and row["purpose"] == "model")
    tip = page.locator("#tip").inner_text()
    assert tip.splitlines()[0] == "minesweeper_rev_deq"
    assert f"ROC-AUC {100 * float(row['test_mean']):.2f} ± {100 * float(row['test_std']):.2f} %" in tip
    assert f"{int(row['parameters']):,} parameters" in tip
    assert f"{row['step_peak_mib']} MiB" in tip
    # A pointer near a point is enough, one far from all points shows nothing.
    box = point.locator(".shape").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 18, box["y"] + 4)
    assert page.locator("#tip").is_visible()
    page.mouse.move(box["x"], box["y"] + 400)
    assert not page.locator("#tip").is_visible()


def test_the_tooltip_stays_on_the_page(visit: Open) -> None:
    for size in (DESKTOP, PHONE):
        page = visit(size=size)
        for index in range(marks(page).count()):
            marks(page).nth(index).hover(force=True)
            tip = page.locator("#tip").bounding_box()
            assert tip is not None
            assert tip["x"] >= 0
            assert tip["x"] + tip["width"] <= size[0]


def test_a_click_on_a_point_opens_the_page_of_its_model(visit: Open) -> None:
    page = visit()
    page.locator("#plot-data-set").select_option(label="minesweeper")
    mark(page, "minesweeper_rev_deq").click()
    page.wait_for_url("**/models/minesweeper_rev_deq.html")


def test_a_touch_shows_what_a_point_is_and_a_second_one_opens_its_page(visit: Open) -> None:
    page = visit(size=PHONE, has_touch=True)
    page.locator("#plot-data-set").select_option(label="minesweeper")
    mark(page, "minesweeper_rev_deq").tap()
    assert page.locator("#tip .tip-name").inner_text() == "minesweeper_rev_deq"
    assert page.url.endswith("index.html")
    mark(page, "minesweeper_rev_deq").tap()
    page.wait_for_url("**/models/minesweeper_rev_deq.html")


def test_a_click_beside_a_point_that_is_shown_opens_its_page(visit: Open) -> None:
    page = visit()
    page.locator("#plot-data-set").select_option(label="minesweeper")
    box = mark(page, "minesweeper_rev_deq").locator(".shape").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2 + 18, box["y"] + box["height"] / 2)
    page.wait_for_url("**/models/minesweeper_rev_deq.html")


def place(point: Locator) -> float:
    box = point.locator(".shape").bounding_box()
    assert box is not None
    return box["x"]


def test_the_axis_can_be_changed(visit: Open) -> None:
    page = visit()
    page.locator("#plot-data-set").select_option(label="digits")
    rows = {row["model"]: row for row in ROWS if row["data"] == "digits" and row["purpose"] == "model"}
    for label, key in (
        ("depth", "layers"),
        ("parameters", "parameters"),
        ("memory", "step_peak_mib"),
        ("time", "train_s"),
    ):
        page.get_by_text(label, exact=True).click()
        page.wait_for_function(f"document.querySelectorAll('#chart a.mark.model').length === {len(rows)}")
        places = {name: place(mark(page, name)) for name in rows}
        values = {name: float(row[key]) for name, row in rows.items()}
        for one in rows:
            for other in rows:
                if values[one] < values[other]:
                    assert places[one] < places[other], (key, one, other)


def test_what_was_not_measured_is_not_plotted_but_said(visit: Open) -> None:
    page = visit()
    page.locator("#plot-data-set").select_option(label="ogbn-proteins (published)")
    plotted(page)
    for name in ("rev_deep", "rev_wide", "rev_64", "res_64", "deq_64"):
        assert mark(page, name, kind="published").count() == 1
    page.get_by_text("memory", exact=True).click()
    assert (
        page.locator("#plot-empty")
        .inner_text()
        .startswith("The memory of models on ogbn-proteins has not been measured")
    )
    assert marks(page).count() == 0
    page.get_by_text("parameters", exact=True).click()
    plotted(page)
    assert place(mark(page, "rev_64", kind="published")) < place(mark(page, "rev_wide", kind="published"))


def test_names_in_the_plot_cover_neither_each_other_nor_the_frame(visit: Open) -> None:
    boxes = "all => all.map(e => e.getBoundingClientRect()).map(r => [r.left, r.right, r.top, r.bottom])"
    for size in (DESKTOP, PHONE):
        page = visit(size=size)
        for index in range(page.locator("#plot-data-set option").count()):
            page.locator("#plot-data-set").select_option(index=index)
            plotted(page)
            names = page.locator("#chart .name, #chart .reference-text").evaluate_all(boxes)
            (frame,) = page.locator("#chart .u-over").evaluate_all(boxes)
            for number, (left, right, top, bottom) in enumerate(names):
                assert left >= frame[0] - 1
                assert right <= frame[1] + 1
                for other in names[:number]:
                    assert right <= other[0] or left >= other[1] or bottom <= other[2] + 3 or top >= other[3] - 3


def test_everything_is_reached_by_keyboard(visit: Open) -> None:
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    # A head sorts by Enter and by the space bar.
    head(page, "Layers").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#table th[aria-sort=descending]:has-text('Layers')")
    page.keyboard.press(" ")
    page.wait_for_selector("#table th[aria-sort=ascending]:has-text('Layers')")
    # Arrow keys change the axis; points are reached by Tab, tell what they are, and open by Enter.
    page.locator("input[name=axis]:checked").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("input[name=axis]:checked").input_value() == "parameters"
    plotted(page)
    page.keyboard.press("Tab")
    model = page.evaluate("document.activeElement.getAttribute('aria-label')").split(",")[0]
    assert page.locator("#tip .tip-name").inner_text() == model
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/models/{model}.html")


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_theme_is_that_of_the_system_until_another_is_chosen_and_then_kept(visit: Open) -> None:
    for scheme, ground, other in (("light", "rgb(255, 255, 255)", "dark"), ("dark", "rgb(20, 23, 27)", "light")):
        page = visit(color_scheme=scheme)
        assert background(page) == ground
        page.get_by_role("button", name=f"Switch to the {other} theme").click()
        assert background(page) != ground
        plotted(page)
        page.get_by_role("link", name="small_rev", exact=True).click()
        page.wait_for_url("**/models/small_rev.html")
        assert background(page) != ground
        page.get_by_role("button", name=f"Switch to the {scheme} theme").click()
        assert background(page) == ground


def test_the_plot_has_the_colors_of_the_theme(visit: Open) -> None:
    colors = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        fill = "getComputedStyle(document.querySelector('#chart a.mark.model .shape')).fill"
        # The brightest pixel of the axes: text on the dark page is lighter than its ground, on the light one darker.
        pixels = (
            "(() => { const c = document.querySelector('#chart canvas');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const seen = [];"
            "for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 250) seen.push(d[i] + d[i + 1] + d[i + 2]);"
            "return [seen.length, Math.min(...seen), Math.max(...seen)]; })()"
        )
        colors[scheme] = (page.evaluate(fill), *page.evaluate(pixels))
    (light, many, darkest, _), (dark, _, _, brightest) = colors["light"], colors["dark"]
    assert light != dark
    assert many > 100
    assert darkest < 350
    assert brightest > 450


def test_no_page_scrolls_sideways_on_a_phone(visit: Open) -> None:
    page = visit(size=PHONE)
    start = page.url.removesuffix("index.html")
    for path in ["index.html", *(f"models/{name}.html" for name in list_models())]:
        page.goto(start + path)
        assert has_no_horizontal_scroll(page), path


def test_a_phone_shows_cards_that_a_list_sorts(visit: Open) -> None:
    page = visit(size=PHONE)
    row = page.locator("#table tbody tr").first.bounding_box()
    assert row is not None
    assert row["height"] > 100
    assert row["width"] <= PHONE[0]
    page.get_by_label("Sort by").select_option(label="Parameters, high first")
    page.wait_for_selector("#table th[aria-sort=descending]:has-text('Parameters')", state="attached")
    keys = [float(text) for text in column(page, "Parameters") if text]
    assert keys == sorted(keys, reverse=True)
    page.get_by_label("Sort by").select_option(label="Model, A–Z")
    page.wait_for_selector("#table th[aria-sort=ascending]:has-text('Model')", state="attached")
    assert shown(page) == list_models()


def test_no_text_of_a_drawing_is_cut_off_or_covered(visit: Open) -> None:
    page = visit("index.html")
    start = page.url.removesuffix("index.html")
    cut = """() => {
      const svg = document.querySelector(".arch"), { width, height } = svg.viewBox.baseVal;
      const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBBox()]);
      const frame = svg.querySelector(".frame").getBBox(), faults = [];
      for (const [words, box] of boxes) {
        const isInside = box.y > frame.y && box.y < frame.y + frame.height;
        const [low, high] = isInside ? [frame.x, frame.x + frame.width] : [0, width];
        const isWide = box.x < low + 2 || box.x + box.width > high - 2;
        if (isWide || box.y < 0 || box.y + box.height > height) faults.push(words);
        for (const [other, area] of boxes) {
          if (other === words) continue;
          const x = Math.min(box.x + box.width, area.x + area.width) - Math.max(box.x, area.x);
          const y = Math.min(box.y + box.height, area.y + area.height) - Math.max(box.y, area.y);
          if (x > 1 && y > 4) faults.push(`${words} | ${other}`);
        }
      }
      return faults;
    }"""
    for name in list_models():
        page.goto(f"{start}models/{name}.html")
        assert page.evaluate(cut) == [], name


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_accessibility_check_finds_nothing(visit: Open, scheme: str, size: tuple[int, int]) -> None:
    page = visit(color_scheme=scheme, size=size)
    start = page.url.removesuffix("index.html")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    # Style sheets are not read again: that takes a request, which a page from a folder may not make.
    rules = {"runOnly": tags, "preload": False}
    for path in ["index.html", *(f"models/{name}.html" for name in PAGES)]:
        page.goto(start + path)
        if path == "index.html":
            plotted(page)
        page.evaluate(AXE.read_text(encoding="utf-8"))
        report = page.evaluate("rules => axe.run(document, rules)", rules)
        found = [
            (fault["id"], node["html"][:160], node.get("failureSummary"))
            for fault in report["violations"]
            for node in fault["nodes"]
        ]
        assert found == [], path
        assert len(report["passes"]) > 20


def test_every_page_loads_all_of_its_files_without_an_error(visit: Open) -> None:
    page = visit()
    start = page.url.removesuffix("index.html")
    for name in list_models():
        page.goto(f"{start}models/{name}.html")
        page.evaluate("for (const image of document.images) image.loading = 'eager'")
        page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.locator("img").count() == (name in list_bundles())


def test_without_javascript_the_table_and_the_pages_are_there(visit: Open) -> None:
    page = visit(java_script_enabled=False)
    assert page.locator("#table tbody tr").count() == len(list_models())
    assert not page.locator("#filters").is_visible()
    page.get_by_role("link", name="small_rev", exact=True).click()
    assert page.locator("svg.arch").is_visible()


@pytest.fixture
def server(site: Path, tmp_path: Path) -> Iterator[str]:
    """The site below a folder of a web server, as on GitHub Pages."""
    (tmp_path / "project").symlink_to(site)
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/project/"
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_the_site_works_below_a_folder_of_a_server(visit: Open, server: str) -> None:
    page = visit("", base=server)
    assert shown(page) == list_models()
    plotted(page)
    page.get_by_role("link", name="small_rev", exact=True).click()
    page.wait_for_url(re.compile(r"/project/models/small_rev\.html$"))
    assert page.get_by_role("heading", level=1).inner_text() == "small_rev"
    page.get_by_role("link", name="All models").click()
    page.wait_for_url(re.compile(r"/project/index\.html#models$"))
