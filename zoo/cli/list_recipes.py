"""``revgnn-zoo list``."""

from __future__ import annotations

from typing import Any

import click

from zoo.cli.common import common_options, example, json_option, say_json, say_table
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shapes import known_shape
from zoo.spec.shipped import list_recipes, recipe_path
from zoo.spec.size import count_parameters


@click.command("list", epilog=example("revgnn-zoo list"))
@json_option
@common_options
def command(*, as_json: bool, quiet: bool) -> None:
    """List the recipes that come with this installation."""
    rows = [_row(read_recipe(recipe_path(name))) for name in list_recipes()]
    if as_json:
        say_json(rows)
        return
    cells = []
    for row in rows:
        parameters = "-" if row["num_parameters"] is None else f"{row['num_parameters']:,}"
        size = f"{row['num_layers']} x {row['hidden_channels']}"
        cells.append([row["name"], row["dataset"], size, parameters, row["reported"][0] if row["reported"] else "-"])
    say_table(["name", "data set", "layers x channels", "parameters", "reported"], cells, right=(2, 3))


def _row(recipe: Recipe) -> dict[str, Any]:
    shape = known_shape(recipe)
    reported = recipe.source.reported if recipe.source else ()
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "dataset": recipe.data.dataset,
        "num_layers": recipe.model.num_layers,
        "hidden_channels": recipe.model.hidden_channels,
        "num_parameters": None if shape is None else count_parameters(recipe.model, shape),
        "reported": [f"{r.split} {r.metric} {100 * r.mean:.2f} ({r.protocol})" for r in reported],
    }
