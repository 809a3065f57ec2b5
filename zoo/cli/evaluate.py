"""``revgnn-zoo eval`` and ``predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo.cli.common import (
    device_options,
    echo,
    echo_compared,
    echo_json,
    edge_precision_option,
    json_option,
    zoo_command,
)
from zoo.errors import ZooError


@zoo_command("eval", "revgnn-zoo eval runs/quickstart", "revgnn-zoo eval org/name --split test --views 10 --parts 3")
@click.argument("model", metavar="MODEL")
@click.option("--split", type=click.Choice(["train", "valid", "test"]), help="Only this split. [default: all]")
@click.option(
    "--views", "num_views", type=click.IntRange(1, 1000), help="Partitions to average over. [default: recipe]"
)
@click.option(
    "--parts", "num_parts", type=click.IntRange(1, 1_000_000), help="Parts of each partition. [default: recipe]"
)
@click.option(
    "--steps",
    "num_steps",
    type=click.IntRange(1, 1_000_000),
    help="Steps of a stack that shares weights. [default: recipe]",
)
@click.option("--data", help="Where the graph lies now, for a model of the data set 'file'.")
@edge_precision_option
@device_options
@json_option
def eval_command(*, model: str, split: str | None, as_json: bool, **options: Any) -> None:
    """Evaluate a model on its data set, beside what was published of it.

    MODEL is a run directory, a bundle, the name of a shipped model, or OWNER/NAME[@REVISION] on the Hub. The partitions
    are the same every time. If a figure is not the one that the bundle's config.json records, the command fails; the
    figures of a paper, which belong to other weights, are only shown.
    """
    from zoo.workflows.evaluate import SPLITS, evaluate

    compared = evaluate(model, split=split or SPLITS, **options)
    if as_json:
        more = {"published": "published", "tolerance": "tolerance", "published_in": "origin", "commit": "commit"}
        echo_json([c.figure.model_dump() | {key: getattr(c, name) for key, name in more.items()} for c in compared])
    else:
        echo_compared(compared)
        if commit := compared[0].commit:
            echo(f"{model}: commit {commit}")
    missed = [c for c in compared if c.is_regression]
    if missed:
        names = ", ".join(f"{c.figure.split} {c.figure.metric}" for c in missed)
        raise ZooError(f"{model}: {names}: further from the figure in config.json than the tolerance")


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
