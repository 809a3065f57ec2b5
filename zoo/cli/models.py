"""``revgnn-zoo list`` and ``info``: the models that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from zoo.cli.common import (
    echo,
    echo_facts,
    echo_figures,
    echo_json,
    echo_table,
    json_option,
    printable,
    reference,
    zoo_command,
)
from zoo.errors import BundleError, NotFoundError
from zoo.json_object import read_json_object
from zoo.spec.shipped import list_models, recipe_path, shipped_dir

if TYPE_CHECKING:
    from zoo.spec.recipe import Recipe
    from zoo.spec.results import Measured
    from zoo.spec.shape import GraphShape


@zoo_command(
    "list",
    "revgnn-zoo list --pretrained",
    "revgnn-zoo list 'rev_*' --family rev --dataset ogbn-proteins",
    "revgnn-zoo list --remote --author org --search proteins",
)
@click.argument("pattern", default="*")
@click.option("--family", help="Only models of this family, such as rev, res, deq or rev_gat.")
@click.option("--dataset", help="Only models for this data set; also with --remote.")
@click.option("--pretrained", is_flag=True, help="Only models whose weights come with this installation.")
@click.option("--remote", is_flag=True, help="List the models on the Hub instead.")
@click.option("--cached", is_flag=True, help="List the models that were fetched from the Hub instead.")
@click.option("--author", help="With --remote: only those of this user or organization.")
@click.option("--search", metavar="TEXT", help="With --remote: only those whose name holds this text.")
@json_option
def list_command(
    *,
    pattern: str,
    family: str | None,
    dataset: str | None,
    pretrained: bool,
    remote: bool,
    cached: bool,
    author: str | None,
    search: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """List the models that come with this installation, as recipes and some with trained weights.

    PATTERN is of the name, with * and ? as in a shell; put it in quotes.
    """
    if remote and cached:
        raise click.UsageError("give either --remote or --cached")
    if (author or search) and not remote:
        raise click.UsageError("--author and --search go with --remote")
    if remote or cached:
        if family or pretrained or pattern != "*" or (dataset and cached):
            raise click.UsageError(
                "PATTERN, --family and --pretrained choose among installed models, --dataset among remote ones too"
            )
        wanted = {"author": author, "search": search, "dataset": dataset} if remote else None
        _models(wanted, as_json=as_json, quiet=quiet)
        return
    from zoo.spec.recipe import read_recipe

    names = list_models(pattern, pretrained=pretrained or None, family=family, dataset=dataset)
    rows = [_row(read_recipe(recipe_path(name))) for name in names]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        raise NotFoundError("no such model; 'revgnn-zoo list' shows all")
    cells = []
    for row in rows:
        parameters = "-" if row["num_parameters"] is None else f"{row['num_parameters']:,}"
        # Of an equilibrium, as many layers are evaluated as its solver needs, up to a limit.
        limit = "<= " if row["family"] == "deq" else ""
        size = f"{limit}{row['num_layers']} x {row['hidden_channels']}"
        reported = row["reported"][0] if row["reported"] else "-"
        trained = (row["trained"] or "-").removeprefix("test ")
        cells.append([row["name"], row["family"], row["dataset"], size, parameters, trained, reported])
    head = ["name", "family", "data set", "layers x channels", "parameters", "weights", "reported"]
    echo_table(head, cells, right=(3, 4), optional=(6, 3, 1))


def _models(wanted: dict[str, str | None] | None, *, as_json: bool, quiet: bool) -> None:
    """List the models on the Hub that are wanted, or None: those in the cache."""
    from zoo.hub.client import connect
    from zoo.hub.listing import list_cached, list_remote

    hub = connect(quiet=quiet)
    remote = [] if wanted is None else list_remote(hub, **wanted)
    cached = list_cached(hub) if wanted is None else []
    rows = remote or cached
    if as_json:
        echo_json(rows)
    elif not rows:
        echo("no models" + (f" in the cache {hub.cache}" if wanted is None else f" at {hub.endpoint}"))
    elif remote:
        cells = [[r["repository"], ", ".join(r["datasets"]) or "-", str(r["downloads"]), r["changed"]] for r in remote]
        echo_table(["model", "data set", "downloads", "changed"], cells, right=(2,))
    else:
        cells = [
            [r["repository"], ", ".join(r["revisions"]) or "-", r["commit"][:12], r["recipe"], f"{r['num_bytes']:,}"]
            for r in cached
        ]
        echo_table(["model", "revision", "commit", "recipe", "bytes"], cells, right=(4,))


def _row(recipe: Recipe) -> dict[str, Any]:
    from zoo.spec.shape import known_shape

    shape = known_shape(recipe)
    reported = recipe.source.reported if recipe.source else ()
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "family": recipe.model.type,
        "dataset": recipe.data.dataset,
        "num_layers": recipe.model.num_layers,
        "hidden_channels": recipe.model.hidden_channels,
        "num_parameters": None if shape is None else recipe.model.num_parameters(shape),
        "trained": _trained(recipe.name),
        "reported": [f"{r.split} {r.metric} {100 * r.mean:.2f} ({r.protocol})" for r in reported],
    }


def _trained(name: str) -> str | None:
    """The test result of the weights that come with the package; None: there are none."""
    folder = shipped_dir("bundles") / name
    if not folder.is_dir():
        return None
    # Shipped files are tested, so they are not checked again here: that would build the whole spec of bundles.
    results = read_json_object(folder / "config.json", error=BundleError)["results"]
    return next(f"test {r['metric']} {100 * r['value']:.2f}" for r in results if r["split"] == "test")


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
