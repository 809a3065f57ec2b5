"""``revgnn-zoo predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo.cli.common import device_options, echo, zoo_command
from zoo.errors import ZooError


@zoo_command("predict", "revgnn-zoo predict runs/mine --data graph.npz --out logits.npz --parts 4")
@click.argument("model", metavar="MODEL")
@click.option("--data", required=True, help="The graph: a .npz file, a folder of .npy files, or a data set's name.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .npz file of the logits, [N, T].")
@click.option(
    "--parts", "num_parts", type=click.IntRange(1), help="Parts that the graph is divided into. [default: recipe]"
)
@click.option("--views", "num_views", type=click.IntRange(1), help="Divisions to average over. [default: recipe]")
@device_options
def predict_command(
    *, model: str, data: str, out: Path, device: str | None, num_threads: int | None, quiet: bool, **options: Any
) -> None:
    """Predict every node of a graph and write the logits.

    MODEL is a run directory, a bundle, the name of a shipped model, or OWNER/NAME[@REVISION] on the Hub.
    """
    if out.suffix != ".npz":
        raise click.UsageError(f"--out {out}: expected the name of a .npz file")
    import numpy as np

    import zoo
    from zoo.data.datasets import DATASETS
    from zoo.files import write_errors
    from zoo.workflows.ranks import group
    from zoo.workflows.session import start

    target = start(device, num_threads)
    graph = zoo.load_graph(data) if data in DATASETS else zoo.load_graph("file", path=Path(data))
    logits = zoo.predict(zoo.load(model), graph, device=target, quiet=quiet, **options)
    if group.rank > 0:
        return
    with write_errors(out, ZooError):
        np.savez(out, logits=logits.numpy())
    if not quiet:
        echo(f"{out}: logits [{logits.shape[0]:,}, {logits.shape[1]:,}]")
