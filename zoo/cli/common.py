"""Options, output and references that several commands share."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zoo.errors import NotFoundError
from zoo.spec.shipped import list_recipes

if TYPE_CHECKING:
    from zoo.spec.results import Measured
    from zoo.workflows.evaluate import Comparison

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def zoo_command(name: str, *examples: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command with ``-q`` and ``--debug``, whose help ends with examples."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        command = click.command(name, epilog=example(*examples))(function)
        command.params += [
            # Read by main() itself.
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."),
            click.Option(["-q", "--quiet"], is_flag=True, help="No progress and no remarks."),
        ]
        return command

    return decorate


def device_options(function: CommandT, *names: str, several: str = "") -> CommandT:
    """``--device``, perhaps by other names and for several, and ``--threads``, of every command that computes."""
    threads = "CPU threads. [default: as PyTorch chooses]"
    function = click.option("--threads", "num_threads", type=click.IntRange(1, 4096), help=threads)(function)
    device = f"cpu, cuda or cuda:N{several}. [default: cuda if there is a GPU, else cpu]"
    return click.option(*names, "--device", "device", metavar="DEVICE", help=device)(function)


def many_options(function: CommandT) -> CommandT:
    """``--devices`` with ``--threads``, and ``--splits``, of the commands that train several runs."""
    several = ", or several, such as cuda:0,cuda:1 or cpu,cpu: a run at a time on each"
    splits = "The first N splits of the data, or all."
    function = click.option("--splits", "num_splits", callback=_splits, metavar="N|all", help=splits)(function)
    return device_options(function, "--devices", several=several)


def _splits(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    """A number of splits, or "all"."""
    if value in (None, "all"):
        return value
    if not value.isdecimal() or not int(value):
        raise click.BadParameter(f"{value!r}: expected a number from 1 on, or all")
    return int(value)


# Of every command that prints results.
json_option = click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
# Of every command that puts a graph on a device.
edge_precision_option = click.option(
    "--edge-precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the edge features on a GPU; fp16 halves their memory.",
)
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, such as train.num_epochs=5; may be repeated.",
)


def training_options(function: CommandT) -> CommandT:
    """The options of every command that takes training steps, but for its device."""
    capture = click.option("--capture", is_flag=True, help="Replay CUDA graphs of one reversible layer, on a GPU.")
    return set_option(capture(edge_precision_option(function)))


def check_free_split(assignments: Sequence[str], num_splits: int | str | None) -> None:
    """Refuse an override of the split where ``--splits`` says which there are."""
    for assignment in assignments:
        if num_splits is not None and assignment.partition("=")[0] == "data.split":
            raise click.UsageError(f"--set {assignment}: every run has a split of its own; --splits says how many")


def example(*lines: str) -> str:
    """The end of a command's help."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


def printable(text: str) -> str:
    """Escape control characters, so that foreign text cannot move the cursor or change colors of a terminal."""
    return "".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Cs") else ascii(c)[1:-1] for c in text)


def echo(text: str = "", *, wrap: bool = False) -> None:
    """A line on stdout; a sentence to be wrapped breaks between words, on a terminal."""
    if wrap and on_terminal():
        text = textwrap.fill(text, shutil.get_terminal_size().columns, break_on_hyphens=False)
    click.echo("\n".join(printable(line) for line in text.split("\n")))


def echo_json(data: Any) -> None:
    """Results for machines on stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def on_terminal() -> bool:
    """True if stdout is a terminal that can show colors; pipes and files get plain text."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _styled(text: str, **style: Any) -> str:
    return click.style(text, **style) if on_terminal() and "NO_COLOR" not in os.environ else text


def echo_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), optional: Sequence[int] = ()
) -> None:
    """A table on stdout: fitted to the width of a terminal; elsewhere a line for each row.

    Of the columns, ``right`` are aligned to the right, and a terminal may be too narrow for ``optional``, the first
    first.
    """
    table = [[printable(cell) for cell in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    shown = list(range(len(head)))
    for column in optional if on_terminal() else ():
        if sum(widths[i] + 2 for i in shown) - 2 > shutil.get_terminal_size().columns:
            shown.remove(column)
    for row in table:
        cells = [row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in shown]
        text = "  ".join(cells).rstrip()
        click.echo(_styled(text, bold=True) if row is table[0] else text)


def echo_facts(facts: Mapping[str, object], *, width: int = 12) -> None:
    """Names and values on stdout, a line each; on a terminal, long values are wrapped beside their names."""
    for key, value in facts.items():
        text, room = printable(str(value)), shutil.get_terminal_size().columns - width - 1
        lines = textwrap.wrap(text, max(room, 20)) if on_terminal() else [text]
        click.echo(_styled(f"{key:{width}}", fg="cyan") + " " + ("\n" + " " * (width + 1)).join(lines))


def echo_figures(figures: Sequence[Measured], baseline: Mapping[str, float] | None = None) -> None:
    """Measured figures as a table, a baseline's beside them."""
    head = ["split", "metric", "value", "protocol"]
    rows = [[figure.split, figure.metric, f"{figure.value:.4f}", figure.protocol] for figure in figures]
    if baseline is not None:
        from zoo.spec.results import baseline_in_words

        head.insert(3, baseline_in_words(figures[0].metric))
        for row in rows:
            row.insert(3, f"{baseline[row[0]]:.4f}" if row[0] in baseline else "-")
    echo_table(head, rows, right=range(2, len(head) - 1))


def echo_compared(compared: Sequence[Comparison]) -> None:
    """Measured figures as a table, the published ones beside them if there are any."""
    if all(comparison.published is None for comparison in compared):
        echo_figures([comparison.figure for comparison in compared])
        _echo_elsewhere(compared)
        return
    rows = []
    for comparison in compared:
        figure, published = comparison.figure, comparison.published
        value, tolerance, origin = "-", "-", "-"
        if published is not None:
            value, tolerance, origin = f"{published:.4f}", f"{comparison.tolerance:.4f}", comparison.origin
        measured = f"{figure.value:.4f}"
        rows.append([figure.split, figure.metric, measured, value, tolerance, figure.protocol, origin])
    head = ["split", "metric", "value", "published", "tolerance", "protocol", "published in"]
    echo_table(head, rows, right=(2, 3, 4))
    _echo_elsewhere(compared)


def _echo_elsewhere(compared: Sequence[Comparison]) -> None:
    """A line for each figure that was published under another protocol than the measured one."""
    for comparison in compared:
        for other in comparison.elsewhere:
            value = f"{other.split} {other.metric} {other.mean:.4f}"
            echo(f"published under another protocol: {value}, {other.protocol} ({printable(other.source)})")


def reference(text: str) -> str | Path:
    """The folder or the name that a model's reference on the command line means.

    It is a folder if the text starts with ``.``, ``/`` or ``~``, or if there is such a folder.
    """
    path = Path(text).expanduser()
    return path if text.startswith((".", "/", "~")) or path.is_dir() else text


def run_or_bundle(text: str) -> Path:
    """The folder that a command is given which does not take names; a NotFoundError if it is one."""
    if not Path(text).exists() and text in list_recipes():
        raise NotFoundError(f"{text}: a shipped name; this takes the folder of a run, such as runs/{text}, or a bundle")
    return Path(text)
