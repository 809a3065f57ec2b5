"""``revgnn-zoo export``, ``convert``, ``card`` and ``verify``: make bundles and look at them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from zoo.cli.common import (
    device_options,
    echo,
    echo_json,
    json_option,
    reference,
    run_or_bundle,
    set_option,
    zoo_command,
)


@zoo_command("export", "revgnn-zoo export runs/quickstart")
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder. [default: RUN/bundle]")
@click.option("--onnx", is_flag=True, help="Write model.onnx beside the bundle too; needs revgnn-zoo[onnx].")
@json_option
def export_command(*, run: str, out: Path | None, onnx: bool, as_json: bool, quiet: bool) -> None:
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


@zoo_command(
    "convert",
    "revgnn-zoo convert official.pth --recipe rev_deep --out ./rev_deep",
    "revgnn-zoo eval ./rev_deep --split test",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help="The recipe of the model in the checkpoint: a shipped name or a file.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder. [default: CHECKPOINT without .pth]")
@set_option
@json_option
def convert_command(
    *, checkpoint: Path, recipe: str, out: Path | None, assignments: tuple[str, ...], as_json: bool, quiet: bool
) -> None:
    """Turn a .pth checkpoint of the authors' code (github.com/lightaime/deep_gcns_torch) into a bundle.

    Only tensors are read from it; a file that holds anything else is refused.
    """
    from zoo.spec.recipe import read_recipe

    spec = read_recipe(recipe, assignments)
    from zoo.workflows.convert import convert

    out = out or checkpoint.with_suffix("")
    config = convert(checkpoint, spec, out)
    if as_json:
        echo_json({"bundle": str(out), "sha256": config.weights.sha256, "shape": config.shape.model_dump()})
    else:
        echo(f"bundle: {out} ({config.weights.num_bytes:,} bytes of weights)")


@zoo_command("card", "revgnn-zoo card runs/quickstart", "revgnn-zoo card ./bundle --check")
@click.argument("source", metavar="RUN_OR_BUNDLE", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; report what README.md lacks.")
@click.option("--license", default="", help="License of the model, such as apache-2.0. [default: what README.md says]")
@click.option("--replace", is_flag=True, help="Render README.md anew even if somebody wrote its words.")
def card_command(*, source: Path, check: bool, license: str, replace: bool, quiet: bool) -> None:
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


@zoo_command("verify", "revgnn-zoo verify quickstart", "revgnn-zoo verify me/mine --device cuda")
@click.argument("model", metavar="MODEL")
@click.option("--offline", is_flag=True, help="Use only what is in the cache, without network access.")
@click.option("--key", type=click.Path(path_type=Path), help="Check the signature too, by this public key, a PEM file.")
@click.option("--renew", is_flag=True, help="Give a bundle of your own, MODEL, a new probe first.")
@device_options
@json_option
def verify_command(
    *, model: str, offline: bool, key: Path | None, renew: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Run the probe of a model: its weights must give the same logits on this machine as where they were written.

    MODEL is a bundle, the name of a shipped model, or OWNER/NAME[@REVISION] on the Hub.
    """
    import zoo
    from zoo.hub.sign import check_signature
    from zoo.workflows.create import info_of
    from zoo.workflows.export import add_probe
    from zoo.workflows.probe import check_model
    from zoo.workflows.session import start

    target = start(**options)
    if renew:
        add_probe(Path(model))
    loaded = zoo.load(reference(model), device=target, offline=offline)
    info = info_of(loaded)
    folder = Path(info.folder or model)
    verified = check_model(loaded, folder)
    if key is not None:
        # Loading fetches no more than it reads, and the signature is not among that.
        check_signature(zoo.pull(f"{info.repo_id}@{info.commit}", offline=offline) if info.repo_id else folder, key)
    if as_json:
        echo_json({"model": model, **dataclasses.asdict(verified)})
    elif not quiet:
        echo(f"{model}: verified: {verified}", wrap=True)
