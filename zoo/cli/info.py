"""``revgnn-zoo info``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.common import echo, echo_facts, echo_figures, echo_json, json_option, printable, reference, zoo_command
from zoo.spec.shipped import recipe_path

if TYPE_CHECKING:
    from zoo.spec.recipe import Recipe
    from zoo.spec.results import Measured
    from zoo.spec.shape import GraphShape


@zoo_command("info", "revgnn-zoo info rev_deep", "revgnn-zoo info runs/quickstart", "revgnn-zoo info --env")
@click.argument("name", required=False)
@click.option("--env", "environment", is_flag=True, help="Print versions, devices and kernels instead.")
@json_option
def info_command(*, name: str | None, environment: bool, as_json: bool, quiet: bool) -> None:
    """Describe a recipe, a run directory, a bundle or this installation.

    NAME is a shipped recipe, a recipe file, a folder, or OWNER/NAME[@REVISION] on the Hub, whose weights stay there.
    """
    if environment == (name is not None):
        raise click.UsageError("give either NAME or --env")
    if name is None:
        _environment(as_json=as_json)
        return
    place = reference(name)
    if isinstance(place, str) and "/" in place and not place.endswith(".json"):
        _published(place, as_json=as_json, quiet=quiet)
        return
    figures: Sequence[Measured] = ()
    if isinstance(place, Path) and place.is_dir():
        from zoo.workflows.load import describe_folder

        recipe, shape, figures = describe_folder(place)
    else:
        from zoo.spec.recipe import read_recipe
        from zoo.spec.shape import known_shape

        recipe = read_recipe(recipe_path(name))
        shape = known_shape(recipe)
    _describe(recipe, shape, figures, as_json=as_json)


def _published(name: str, *, as_json: bool, quiet: bool) -> None:
    from zoo.hub.client import connect
    from zoo.hub.listing import weights_header
    from zoo.hub.pull import pull_config
    from zoo.hub.reference import parse_reference
    from zoo.workflows.pull import tried_as_folder

    hub = connect(quiet=quiet or as_json)
    with tried_as_folder():
        pulled = pull_config(hub, parse_reference(name))
    config, types = pulled.config, weights_header(hub, pulled)
    facts = {"repository": pulled.reference.repo_id, "commit": pulled.commit, "weights": types}
    facts["config"] = config.model_dump(mode="json", exclude_none=True)
    _describe(config.recipe, config.shape, config.results, as_json=as_json, more=facts)
    if as_json:
        return
    echo()
    held = ", ".join(f"{count:,} {kind}" for kind, count in types.items()) or "not asked for"
    weights = f"{held}, {config.weights.num_bytes:,} bytes"
    echo_facts({"commit": pulled.commit, "weights": weights, "SHA-256": config.weights.sha256})


def _environment(*, as_json: bool) -> None:
    from zoo.ops.dispatch import describe
    from zoo.workflows.session import environment, resolve_device

    facts, backends = environment(resolve_device(None)).model_dump(), describe()
    if as_json:
        echo_json({**facts, "backends": backends})
        return
    kernels = {
        f"kernels on {kind}": f"{choice['backend']}: {choice['reason']}"
        for kind, choice in backends.items()
        if "reason" in choice
    }
    echo_facts({**facts, **kernels}, width=16)


def _describe(
    recipe: Recipe,
    shape: GraphShape | None,
    figures: Sequence[Measured],
    *,
    as_json: bool,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    data, source = recipe.to_json(), recipe.source
    num_parameters = None if shape is None else recipe.model.num_parameters(shape)
    if as_json:
        results = [figure.model_dump() for figure in figures]
        shape_json = None if shape is None else shape.model_dump()
        known = {"recipe": data, "shape": shape_json, "num_parameters": num_parameters, "results": results}
        echo_json({**known, **more})
        return
    echo(f"{recipe.name}: {printable(recipe.summary)}", wrap=True)
    echo()
    count = "depends on the graph" if num_parameters is None else f"{num_parameters:,}"
    if source is not None and source.num_parameters:
        count += f" (published: {source.num_parameters:,})"
    facts = {
        "parameters": count,
        "data set": " ".join(filter(None, (recipe.data.dataset, recipe.data.name, recipe.data.path))),
        "features": ", ".join(recipe.data.node_features),
        **{part: _in_one_line(data[part]) for part in ("model", "train", "eval", "test")},
    }
    if source is not None:
        facts["paper"] = source.paper
    echo_facts(facts)
    for reported in source.reported if source is not None else ():
        deviation = "" if reported.std is None else f" +- {100 * reported.std:.2f}"
        value = f"{reported.split} {reported.metric} {100 * reported.mean:.2f}{deviation}"
        echo_facts({"reported": f"{value}, {reported.protocol} ({reported.source})"})
    if figures:
        echo()
        echo_figures(figures)


def _in_one_line(data: Mapping[str, Any]) -> str:
    words = {key: f"({_in_one_line(value)})" if isinstance(value, dict) else value for key, value in data.items()}
    return ", ".join(f"{key}={word}" for key, word in words.items())
