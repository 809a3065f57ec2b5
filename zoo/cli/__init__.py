"""The command ``revgnn-zoo``: each command a thin shell around one workflow.

No file here imports anything heavy at its top, so that help, lists and checks answer at once. Options that a command
does not look at itself have the names of its workflow's arguments and are passed on as ``**options``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import click

import zoo
from zoo.cli.common import example, printable
from zoo.errors import ZooError, ZooWarning, nearest
from zoo.workflows.launched import end_with_launcher, is_shared

# Name to the module that holds it as ``NAME_command``.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "list": "zoo.cli.models",
        "info": "zoo.cli.models",
        "check": "zoo.cli.recipe",
        "new": "zoo.cli.recipe",
        "train": "zoo.cli.train",
        "eval": "zoo.cli.evaluate",
        "predict": "zoo.cli.evaluate",
        "plot": "zoo.cli.train",
        "export": "zoo.cli.bundle",
        "push": "zoo.cli.hub",
        "pull": "zoo.cli.hub",
        "verify": "zoo.cli.bundle",
        "card": "zoo.cli.bundle",
        "convert": "zoo.cli.bundle",
        "synth": "zoo.cli.synth",
        "compare": "zoo.cli.compare",
        "bench": "zoo.cli.compare",
    }
)
_BROKEN_PIPE = 141
_COMPLETE = "_REVGNN_ZOO_COMPLETE"
_INTERRUPTED = 130


class _Commands(click.Group):
    """The commands, each imported when it is asked for."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and (hint := nearest(args[0], COMMANDS)):
            ctx.fail(f"no such command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Like click's own, but sentences are wrapped, not cut.
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(1000)) for name, command in commands if command])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name]), f"{cmd_name}_command")
        return command


@click.command(
    cls=_Commands,
    epilog=example(
        "revgnn-zoo list",
        "revgnn-zoo train quickstart",
        'eval "$(_REVGNN_ZOO_COMPLETE=bash_source revgnn-zoo)"  # complete in bash',
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(zoo.__version__, prog_name="revgnn-zoo")
def cli() -> None:
    """Very deep graph neural networks: train from a recipe, evaluate, share, load in one line."""


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show each warning of the zoo as one line on stderr, without the line of code that Python would add."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if not issubclass(category, ZooWarning):
            show_other(message, category, *place, **options)
        elif sys.stderr is not None:
            # A reader of stderr that went away must not end a run.
            with contextlib.suppress(OSError):
                print(f"Warning: {printable(' '.join(str(message).split()))}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        # Python shows a warning with the same text from the same line of code only once.
        warnings.simplefilter("always", ZooWarning)
        show_other, warnings.showwarning = warnings.showwarning, show
        yield


def _echo_error(line: str) -> None:
    """A line on stderr that begins with "Error: ", in red on a terminal."""
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {printable(line)}", err=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None: those of the process.

    Returns:
        0 done, 1 or higher the exit code of a ZooError, 2 wrong usage, 128 + N stopped by signal N.
    """
    # Threads that spin while they wait would take cores from threads that have work. OpenMP reads this when torch is
    # loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if _COMPLETE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "revgnn-zoo", _COMPLETE, os.environ[_COMPLETE])
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    _open_closed_streams()
    # It would say in two lines that a home without a folder for its cache makes it slower.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        with _warnings_as_lines(), _joined(arguments), cli.make_context("revgnn-zoo", arguments) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "revgnn-zoo"
        message = " ".join(error.format_message().split()).removesuffix(".")
        _echo_error(f"{message}; see {command} --help")
        return 2
    except ZooError as error:
        if debug:
            raise
        for line in error.lines:
            _echo_error(line)
        return error.exit_code
    except ModuleNotFoundError as error:
        if debug or error.name is None or error.name.startswith("zoo"):
            raise
        _echo_error(f"this needs the package {error.name!r}, which is not installed; try: pip install {error.name}")
        return 1
    except KeyboardInterrupt:
        if debug:
            raise
        # Pressing Ctrl-C again must not interrupt the last message.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("Interrupted", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        if debug:
            raise
        if error.errno != errno.EPIPE:
            place = f"{error.filename}: " if error.filename else ""
            print(f"Error: {printable(f'{place}{error.strerror or error}')}", file=sys.stderr)
        # The reader has closed the pipe, or the disk is full. Python flushes stdout at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _BROKEN_PIPE if error.errno == errno.EPIPE else 1
    return 0


@contextlib.contextmanager
def _joined(arguments: list[str]) -> Iterator[None]:
    """Join the other processes that torchrun has started; only the first of them prints."""
    end_with_launcher()
    if not is_shared():
        yield
        return
    if int(os.environ.get("RANK", "0")) > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - stays open
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command in COMMANDS and command not in ("train", "eval", "predict"):
        raise click.UsageError(f"{command}: start it without torchrun")
    # An import may swallow a Ctrl-C, and the process would then wait for others that are gone.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from zoo.workflows.distributed import process_group

    with process_group():
        signal.signal(signal.SIGINT, before)
        yield


def _open_closed_streams() -> None:
    """Open what a daemon was started without, so that no file of a run takes its number and its messages."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open
