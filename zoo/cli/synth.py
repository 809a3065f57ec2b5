"""``revgnn-zoo synth``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import echo, zoo_command


@zoo_command(
    "synth",
    "revgnn-zoo synth ./data --nodes 3000",
    "ZOO_DATA=./data revgnn-zoo train rev_deep --set model.num_layers=28",
)
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--nodes", "num_nodes", type=click.IntRange(64, 10_000_000), default=13_000, show_default=True)
@click.option("--degree", "mean_degree", type=float, help="Messages per node. [default: scaled from ogbn-proteins]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
def synth_command(*, root: Path, num_nodes: int, mean_degree: float | None, seed: int, quiet: bool) -> None:
    """Write a synthetic data set in the raw format of ogbn-proteins under ROOT.

    At 132,534 nodes it has the true size. Scores on it say nothing about scores on the real one.
    """
    from zoo.data.synthetic import write_synthetic_proteins

    folder = write_synthetic_proteins(root, num_nodes, mean_degree=mean_degree, seed=seed)
    echo(f"written: {folder}; use it with ZOO_DATA={root}")
