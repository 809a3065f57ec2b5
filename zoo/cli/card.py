"""``revgnn-zoo card``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import echo, zoo_command


@zoo_command("card", "revgnn-zoo card runs/quickstart", "revgnn-zoo card ./bundle --check")
@click.argument("source", metavar="RUN_OR_BUNDLE", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; report what README.md lacks.")
@click.option("--license", default="", help="License of the model, such as apache-2.0. [default: what README.md says]")
@click.option("--replace", is_flag=True, help="Render README.md anew even if somebody wrote its words.")
def command(*, source: Path, check: bool, license: str, replace: bool, quiet: bool) -> None:
    """Render README.md of a bundle from its configuration, the recipe's card and the learning curves.

    Words that somebody wrote are kept.
    """
    if check and replace:
        raise click.UsageError("give either --check or --replace")
    from zoo.workflows.publish import check_card, write_card

    if check:
        path = check_card(source)
        if not quiet:
            echo(f"{path}: ok")
    else:
        echo(f"card: {write_card(source, license=license, replace=replace)}")
