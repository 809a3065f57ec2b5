"""The pages build without a warning, and the reference holds every public name."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import zoo
import zoo.layers
import zoo.ops
from tests.docs.pages import DOCS, ROOT
from zoo.cli import COMMANDS

pytest.importorskip("sphinx", reason="pages are built with the extra 'docs'")
PUBLIC = [f"{module.__name__}.{name}" for module in (zoo, zoo.layers, zoo.ops) for name in module.__all__]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages; a warning of Sphinx, such as a link that leads nowhere, is an error."""
    folder = tmp_path_factory.mktemp("docs")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        f"{folder}/trees",
        str(DOCS),
        f"{folder}/html",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


class _Links(HTMLParser):
    """Addresses and names of places of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.hrefs: set[str] = set()
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.hrefs.add(value)
            elif key == "id" and value:
                self.ids.add(value)


def test_every_page_is_built(built: Path) -> None:
    sources = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    pages = {page.relative_to(built) for page in built.rglob("*.html")}
    assert sources <= pages
    assert len(sources) >= 15


def test_links_between_pages_lead_somewhere(built: Path) -> None:
    pages = {page: _Links(page) for page in built.rglob("*.html") if page.parent.name != "_static"}
    dead = []
    for page, links in pages.items():
        for href in links.hrefs:
            address = urlsplit(href)
            if address.scheme or address.netloc or (not address.path and not address.fragment):
                continue
            target = page if not address.path else (page.parent / unquote(address.path)).resolve()
            if not target.exists() or (
                address.fragment and target in pages and unquote(address.fragment) not in pages[target].ids
            ):
                dead.append((page.relative_to(built), href))
    assert dead == []


def test_the_reference_holds_every_public_name(built: Path) -> None:
    inventory = (built / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert len(PUBLIC) > 40
    assert [name for name in PUBLIC if name not in names] == []


def test_the_reference_shows_signatures_and_docstrings(built: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (built / "reference" / "zoo.html").read_text(encoding="utf-8"))
    for function in (zoo.load, zoo.train, zoo.predict):
        first = (inspect.getdoc(function) or "").partition("\n")[0].replace("``", "")
        assert first in page
        assert all(parameter in page for parameter in inspect.signature(function).parameters)


def test_the_pages_from_the_package_have_all_of_it(built: Path) -> None:
    commands = (built / "reference" / "commands.html").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f'id="command-{name}"' not in commands] == []
    keys = (built / "reference" / "recipe_keys.html").read_text(encoding="utf-8")
    for place in (
        "recipe",
        "data",
        "model",
        "model.conv",
        "model.conv.aggr",
        "model.solver",
        "train.optimizer",
        "source.reported",
    ):
        assert f'id="key-{place.replace(".", "-")}"' in keys
    recipes = (built / "reference" / "recipes.html").read_text(encoding="utf-8")
    assert [name for name in zoo.list_recipes() if f">{name}<" not in recipes] == []
    assert "<!-- generated" not in commands + keys + recipes
