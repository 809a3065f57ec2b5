"""The parts of a model card that a page shows, as HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt

# Figures stand in tables of the page, the load line at its top, and a drawing takes the place of the one in the card.
_LEFT_OUT = {"Reported results", "Use"}


@dataclass(frozen=True)
class Card:
    """A model card.

    Attributes:
        title: its heading; empty if there is no card.
        introduction: what stands above the first section, as HTML.
        sections: heading and HTML of each section.
    """

    title: str
    introduction: str
    sections: tuple[tuple[str, str], ...]


def read_card(text: str) -> Card:
    """Cut a card into its parts and render them; HTML in the Markdown is shown as text."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    title = re.match(r"# (.*)\n", head)
    found = []
    for section in sections:
        heading, _, body = section.partition("\n")
        if heading in _LEFT_OUT:
            continue
        if heading == "Architecture":
            body = re.sub(r"```text\n.*?```\n", "", body, flags=re.DOTALL)
        found.append((heading, _scrollable(markdown.render(body))))
    introduction = markdown.render(head[title.end() :] if title else head)
    return Card(title[1] if title else "", introduction, tuple(found))


def _scrollable(html: str) -> str:
    """Let the keyboard reach code that is wider than a phone."""
    return html.replace("<pre>", '<pre tabindex="0">')
