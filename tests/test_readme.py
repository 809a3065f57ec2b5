"""What README shows works: its Python runs, and its commands have these names, arguments and options."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch

from tests.pyg import Data
from zoo.cli import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    shlex.split(command, comments=True)[1:]
    for command in re.findall(r"^    (revgnn-zoo .*)$", README, flags=re.MULTILINE)
    + re.findall(r"`(revgnn-zoo [a-z][^`]*)`", README)
]


def own_data() -> Data:
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


@pytest.mark.filterwarnings("ignore:.*directed")
def test_the_python_of_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"data": own_data(), "edge_index": torch.randint(60, (2, 240)), "h": torch.randn(60, 80)}
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        exec(block, names)
    assert names["logits"].shape == (1797, 10)
    assert names["model"](names["data"]).shape == (60, 3)
    assert names["h"].shape == (60, 80)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_commands_of_readme_are_understood(words: list[str]) -> None:
    context = click.Context(cli)
    command = cli.get_command(context, words[0])
    assert command is not None
    command.make_context(words[0], list(words[1:]))
