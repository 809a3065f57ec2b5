"""``revgnn-zoo verify``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from zoo.cli.common import device_options, echo, echo_json, json_option, reference, zoo_command


@zoo_command("verify", "revgnn-zoo verify quickstart", "revgnn-zoo verify me/mine --device cuda")
@click.argument("model", metavar="MODEL")
@click.option("--offline", is_flag=True, help="Use only what is in the cache, without network access.")
@click.option("--key", type=click.Path(path_type=Path), help="Check the signature too, by this public key, a PEM file.")
@click.option("--renew", is_flag=True, help="Give a bundle of your own, MODEL, a new probe first.")
@device_options
@json_option
def command(
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
