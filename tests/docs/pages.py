"""The pages, their blocks of code, and the commands that they show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
_BLOCK = re.compile(r"^(?:<!-- test: (?P<note>[\w ]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```", re.M | re.S)
_COMMAND = r"(?:[A-Z_]+=\S+ )*revgnn-zoo [a-z]"


class Block(NamedTuple):
    """A block of code of a page.

    Attributes:
        language: as written behind the fence.
        note: what the comment above it says to these tests: ``run``, ``hub`` or ``needs PACKAGE``.
        text: its lines.
    """

    language: str
    note: str
    text: str

    @property
    def commands(self) -> list[Command]:
        """The commands of the zoo in a block of shell lines."""
        if self.language != "sh":
            return []
        return [parse(line) for line in self.text.splitlines() if re.match(_COMMAND, line)]


class Command(NamedTuple):
    """A command line: variables set before it, and the words after the program's name."""

    environment: dict[str, str]
    words: list[str]


def parse(line: str) -> Command:
    """A line of a shell."""
    words = shlex.split(line, comments=True)
    start = words.index("revgnn-zoo")
    return Command(dict(word.split("=", 1) for word in words[:start]), words[start + 1 :])


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["language"], match["note"] or "", match["text"]) for match in found]


def commands(page: Path) -> list[Command]:
    """Every command that a page shows: in blocks, in indented lines, and inside sentences."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(rf"^ {{4}}({_COMMAND}.*)$", text, flags=re.M)
    lines += re.findall(rf"`({_COMMAND}[^`]*)`", _BLOCK.sub("", text))
    return [parse(line) for line in lines] + [command for block in blocks(page) for command in block.commands]
