"""``revgnn-zoo bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo.cli.common import (
    capture_option,
    common_options,
    device_options,
    edge_precision_option,
    example,
    json_option,
    say,
    say_json,
    say_table,
    set_option,
)

# Written out, so that --help need not import PyTorch.
SUITES = ("step", "memory", "peers", "peer_memory", "depth", "edges", "true_size")
_OPTIONS = {"model.num_layers": "--layers", "model.hidden_channels": "--channels"}


@click.command(
    "bench",
    epilog=example(
        "revgnn-zoo bench memory                     # flat for the reversible model, growing for plain autograd",
        "revgnn-zoo bench peers --layers 7 --channels 224",
        "revgnn-zoo bench memory --recipe my.json --layers 112 --channels 160   # what fits your graph and machine?",
        "revgnn-zoo bench step --recipe my.json --set train.precision=bf16",
        "revgnn-zoo bench true_size --device cuda    # RevGNN-Deep and -Wide on a graph of ogbn-proteins' size",
    ),
)
@click.argument("suite", type=click.Choice(SUITES))
@click.option(
    "--recipe", metavar="RECIPE", help="Measure this model on its own data: a shipped name or a file of yours."
)
@set_option
@click.option("--layers", "num_layers", type=click.IntRange(1, 100_000), help="The deepest, where a suite varies it.")
@click.option("--channels", type=click.IntRange(2, 65_536))
@click.option("--nodes", "num_nodes", type=click.IntRange(1), help="Of the synthetic graph.")
@click.option("--edges", "num_edges", type=click.IntRange(0), help="Of the synthetic graph, directed.")
@click.option("--steps", "num_steps", type=click.IntRange(1), help="Counted steps of each case. [default: mostly 3]")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True, help="Folder."
)
@capture_option
@edge_precision_option
@device_options
@json_option
@common_options
def command(
    *,
    suite: str,
    recipe: str | None,
    assignments: tuple[str, ...],
    num_layers: int | None,
    channels: int | None,
    num_nodes: int | None,
    num_edges: int | None,
    num_steps: int | None,
    capture: bool,
    edge_precision: str,
    out: Path,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure training steps, and write what was measured as JSON and as a picture.

    \b
    SUITE is one of
      step         one model: seconds per step and epoch, memory
      memory       peak memory over depth, reversible and under plain autograd
      peers        seconds here, in PyTorch Geometric, and under plain autograd
      peer_memory  the same for memory
      depth        seconds over depth, and the line through them
      edges        seconds over the number of edges, and the line through them
      true_size    RevGNN-Deep and RevGNN-Wide on a graph as large as ogbn-proteins

    Without --recipe the model is RevGNN's on a synthetic graph, by default as large as one of ten parts of
    ogbn-proteins. Every case runs in a process of its own; one that runs out of memory is a result. Files are named
    after the suite and the sizes, if they are not the usual ones.
    """  # noqa: D301
    for assignment in assignments:
        if option := _OPTIONS.get(assignment.partition("=")[0]):
            raise click.UsageError(f"--set {assignment}: use {option} instead")
        if recipe is None and assignment.startswith("data."):
            raise click.UsageError(f"--set {assignment}: data are read with --recipe only")
    if recipe is not None and not (num_nodes is None and num_edges is None):
        raise click.UsageError("--nodes and --edges are of a synthetic graph; a --recipe brings its own data")
    given = {"num_layers": num_layers, "channels": channels, "num_nodes": num_nodes, "num_edges": num_edges}
    if recipe is None and channels is not None and channels % 2:
        raise click.UsageError(f"--channels {channels}: expected an even number, for two groups")
    from zoo.workflows.bench import base_case, run_suite

    sizes: dict[str, int | str] = {key: value for key, value in given.items() if value is not None}
    sizes |= {"capture": capture, "edge_precision": edge_precision}
    base = base_case(suite, sizes, recipe=recipe, settings=assignments)
    result = run_suite(suite, base, out, device=device, num_threads=threads, num_steps=num_steps, quiet=quiet)
    if as_json:
        say_json(result)
        return
    head = ["model", "work", "layers", "channels", "edges", "parts", "s/step", "s/epoch", "making parts", "peak MiB"]
    say_table(head, [_row(case) for case in result["cases"]], right=range(2, len(head)))
    for fit in result["fits"]:
        unit = "" if fit["per"] == 1 else f"{fit['per']:,} "
        say(
            f"{fit['implementation']}: {fit['of']} = {fit['intercept']:.4g} {fit['slope']:+.4g} per "
            f"{unit}{fit['over']}, R^2 {fit['r2']:.4f}"
        )
    say(f"written: {out / result['file']}.json, {out / result['file']}.png")


def _row(case: dict[str, Any]) -> list[str]:
    edges = "-" if case["num_edges"] is None else f"{case['num_edges']:,}"
    row = [case["implementation"], case["work"], str(case["num_layers"]), str(case["channels"]), edges]
    row.append(str(case["num_parts"]))
    if "failed" in case:
        return [*row, case["failed"], "-", "-", "-"]
    share = f"{case['partition_s'] / case['epoch_s']:.1%}" if "partition_s" in case else "-"
    peak = f"{case['peak_bytes'] / 2**20:.1f}" if "peak_bytes" in case else "-"
    return [*row, f"{case['median_step_s']:.3f}", f"{case['epoch_s']:.3f}", share, peak]
