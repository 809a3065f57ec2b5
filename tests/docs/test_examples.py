"""What the pages show works: their Python runs, and so do the commands that take no time; all others are understood."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from tests.docs.pages import DOCS, PAGES, ROOT, Command, blocks, commands
from tests.hub.server import TestHub
from tests.pyg import Data
from zoo.cli import cli, main

PYTHON = [page for page in PAGES if any(b.language == "python" or b.note == "run" for b in blocks(page))]
COMMANDS = [(page, command) for page in PAGES for command in commands(page)]
NOTES = {"", "run", "parse", "hub"}


def name(value: Any) -> str:
    if isinstance(value, Path):
        return str(value.relative_to(ROOT))
    return " ".join(value.words) if isinstance(value, Command) else ""


def own_data() -> Data:
    """The graph that README calls the reader's own."""
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    part = torch.arange(60) % 4
    return Data(
        x=x,
        edge_index=torch.randint(60, (2, 240)),
        y=(x[:, 0] > 0).long() + (x[:, 1] > 0).long(),
        train_mask=part < 2,
        val_mask=part == 2,
        test_mask=part == 3,
    )


def run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for key, value in command.environment.items():
            patch.setenv(key, value)
        assert main([*command.words, "-q"]) == 0, command


@pytest.mark.filterwarnings("ignore::zoo.errors.ZooWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")
@pytest.mark.parametrize("page", PYTHON, ids=name)
def test_the_code_of_a_page_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hub: TestHub,
    use_hub: Callable[..., None],
) -> None:
    monkeypatch.chdir(tmp_path)
    # What a page sets stays on the page.
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_hub(hub, hub.add_user("me"))
    names: dict[str, Any] = {}
    if page.name == "README.md":
        names = {"data": own_data(), "edge_index": torch.randint(60, (2, 240)), "h": torch.randn(60, 80)}
    for block in blocks(page):
        needed = block.note.removeprefix("needs ")
        if needed != block.note and importlib.util.find_spec(needed) is None:
            continue
        assert needed != block.note or block.note in NOTES
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        elif block.note == "run":
            for command in block.commands:
                run(command, monkeypatch)


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=name)
def test_a_command_is_understood(page: Path, command: Command) -> None:
    context = click.Context(cli)
    found = cli.get_command(context, command.words[0])
    assert found is not None
    # A name alone, in a sentence, is no command line.
    if len(command.words) > 1:
        found.make_context(command.words[0], list(command.words[1:]))


def test_there_are_commands_and_python_to_test() -> None:
    assert len(COMMANDS) > 30
    assert {page.name for page in PYTHON} >= {"README.md", "own_graph.md", "own_loop.md", "fine_tune.md", "proteins.md"}
    assert all(b.language in ("python", "sh", "text", "bibtex", "") or b.language for p in PAGES for b in blocks(p))


def test_every_tutorial_runs_something() -> None:
    for page in (DOCS / "tutorials").glob("*.md"):
        # The notebook has a test of its own.
        assert page in PYTHON or page.name == "notebook.md"
