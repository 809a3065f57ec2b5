"""``revgnn-zoo export``."""

from __future__ import annotations

from pathlib import Path

import click

from zoo.cli.common import echo, echo_json, json_option, run_or_bundle, zoo_command


@zoo_command("export", "revgnn-zoo export runs/quickstart")
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder. [default: RUN/bundle]")
@click.option("--onnx", is_flag=True, help="Write model.onnx beside the bundle too; needs revgnn-zoo[onnx].")
@json_option
def command(*, run: str, out: Path | None, onnx: bool, as_json: bool, quiet: bool) -> None:
    """Write the best weights of a finished run as a bundle: config.json, model.safetensors, README.md."""
    from zoo.workflows.export import export

    if onnx:
        # Before anything is written. Imported only here, because torch.export takes a second.
        from zoo.workflows.onnx import ONNX_FILE, check_packages, export_onnx

        check_packages()
    path, config = export(run_or_bundle(run), out)
    onnx_path = None
    if onnx:
        from zoo.workflows.load import load

        onnx_path = path.parent / ONNX_FILE
        export_onnx(load(path), onnx_path)
    if as_json:
        facts = {"bundle": str(path), "sha256": config.weights.sha256, "num_bytes": config.weights.num_bytes}
        echo_json(facts if onnx_path is None else {**facts, "onnx": str(onnx_path)})
    else:
        echo(f"bundle: {path} ({config.weights.num_bytes:,} bytes of weights, SHA-256 {config.weights.sha256[:16]}...)")
        if onnx_path is not None:
            echo(f"onnx: {onnx_path} ({onnx_path.stat().st_size:,} bytes)")
