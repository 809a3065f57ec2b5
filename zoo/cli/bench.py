"""``revgnn-zoo bench``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import common_options, device_options, example, json_option, say, say_json, say_table


@click.command(
    "bench",
    epilog=example(
        "revgnn-zoo bench memory                     # flat for the reversible model, growing for plain autograd",
        "revgnn-zoo bench peers --layers 14 --channels 80",
        "revgnn-zoo bench depth --channels 224 --nodes 44000 --edges 8790000 --device cuda",
    ),
)
@click.argument("suite", type=click.Choice(["memory", "peers", "peer_memory", "depth", "edges"]))
@click.option("--layers", "num_layers", type=click.IntRange(1, 100_000), default=14, show_default=True)
@click.option("--channels", type=click.IntRange(2, 65_536), default=80, show_default=True)
@click.option("--nodes", "num_nodes", type=click.IntRange(1), default=13_253, show_default=True)
@click.option("--edges", "num_edges", type=click.IntRange(0), default=791_000, show_default=True, help="Directed.")
@click.option("--steps", "num_steps", type=click.IntRange(1), default=3, show_default=True, help="Counted steps.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True, help="Folder."
)
@device_options
@json_option
@common_options
def command(
    *,
    suite: str,
    num_layers: int,
    channels: int,
    num_nodes: int,
    num_edges: int,
    num_steps: int,
    out: Path,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure training steps on a synthetic part of ogbn-proteins and write SUITE.json and SUITE.png.

    Every case runs in a process of its own. The sizes default to one of ten parts of ogbn-proteins; with your own you
    see what depth and width fit your machine.
    """
    from zoo.workflows.bench import run_suite
    from zoo.workflows.bench.case import Case

    if channels % 2:
        raise click.UsageError(f"--channels {channels}: expected an even number, for two groups")
    base = Case(num_layers=num_layers, channels=channels, num_nodes=num_nodes, num_edges=num_edges)
    result = run_suite(suite, base, out, device=device, num_threads=threads, num_steps=num_steps, quiet=quiet)
    if as_json:
        say_json(result)
        return
    rows = [
        [
            case["implementation"],
            str(case["num_layers"]),
            str(case["channels"]),
            f"{case['num_edges']:,}",
            f"{case['median_step_s']:.3f}",
            f"{case['peak_bytes'] / 2**20:.1f}",
        ]
        for case in result["cases"]
    ]
    say_table(["model", "layers", "channels", "edges", "s/step", "peak MiB"], rows, right=(1, 2, 3, 4, 5))
    say(f"written: {out / suite}.json, {out / suite}.png")
