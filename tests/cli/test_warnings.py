"""Warnings of the library on the command line."""

import warnings

import click
import pytest

import zoo.cli
from zoo.errors import ZooWarning


@pytest.fixture
def warning_command(monkeypatch):
    """A command "check" that warns, twice from one line, as the library does."""

    @click.command("check")
    def command():
        for _ in range(2):
            warnings.warn("one thing\nand \x1b[31manother", ZooWarning, stacklevel=1)

    monkeypatch.setattr(zoo.cli._Commands, "get_command", lambda self, ctx, name: command)


@pytest.mark.usefixtures("warning_command")
def test_each_warning_is_one_line_on_stderr(zoo_command):
    result = zoo_command("check")
    assert (result.code, result.out) == (0, "")
    assert result.err == ["Warning: one thing and \\x1b[31manother"] * 2


@pytest.mark.usefixtures("warning_command")
def test_a_closed_stderr_and_other_filters_do_not_matter(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert zoo.cli.main(["check"]) == 0


@pytest.mark.usefixtures("warning_command")
def test_pythons_own_way_to_show_warnings_is_restored(zoo_command):
    before = warnings.showwarning
    zoo_command("check")
    assert warnings.showwarning is before


def test_a_warning_of_a_workflow_reaches_the_terminal(zoo_command, finished):
    result = zoo_command("train", finished / "small.json", "--capture", "--device", "cpu", "-q", "--out", "run")
    assert result.code == 0
    assert [line for line in result.err if "CUDA graphs need a GPU" in line and line.startswith("Warning: ")]
