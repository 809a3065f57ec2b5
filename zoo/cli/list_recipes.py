"""``revgnn-zoo list``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zoo.cli.common import echo, echo_json, echo_table, json_option, zoo_command
from zoo.errors import BundleError, NotFoundError
from zoo.json_object import read_json_object
from zoo.spec.shipped import list_models, recipe_path, shipped_dir

if TYPE_CHECKING:
    from zoo.spec.recipe import Recipe


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
