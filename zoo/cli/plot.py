"""``revgnn-zoo plot``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import echo, zoo_command


@zoo_command("plot", "revgnn-zoo plot runs/quickstart")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The PNG file. [default: RUN/curves.png]")
def plot_command(*, run: Path, out: Path | None, quiet: bool) -> None:
    """Plot the learning curves of a run, finished or not."""
    from zoo.workflows.plot import plot
    from zoo.workflows.run_dir import RunDir

    echo(f"curves: {plot(RunDir(run), out)}")
