"""The recipe: one JSON file that says everything about a model, its data, its training and its evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from zoo.errors import RecipeError
from zoo.json_object import read_json_object
from zoo.spec.base import NAME_PATTERN, Spec, parse_spec
from zoo.spec.model import MAX_PARAMETERS, DeqSpec, Model
from zoo.spec.overrides import changes_in_words, faults_of_overrides, override, upgrade_recipe
from zoo.spec.results import SourceSpec
from zoo.spec.shape import DataSpec, GraphShape
from zoo.spec.shipped import recipe_path
from zoo.spec.train import EvalSpec, MetricName, TestSpec, TrainSpec

_MAX_SUMMARY = 300


class Recipe(Spec):
    """Everything about one model, as written in ``recipes/NAME.json``."""

    schema_: str = Field(default="", alias="$schema", description="for editors; not read")
    schema_version: Literal[2]
    name: str = Field(pattern=NAME_PATTERN)
    summary: str = Field(min_length=1, max_length=_MAX_SUMMARY)
    source: SourceSpec | None = None
    data: DataSpec
    model: Model
    train: TrainSpec
    eval: EvalSpec
    test: TestSpec = TestSpec()

    @property
    def metric(self) -> MetricName:
        """The metric of every evaluation.

        Raises:
            RecipeError: if it is left out; then only the labels can tell it.
        """
        if self.eval.metric is None:
            raise RecipeError(f"{self.name}: eval.metric: is left out, and known only with the data; add it")
        return self.eval.metric

    @model_validator(mode="after")
    def _last_columns(self) -> Self:
        # Both are a one-hot code that the model splits off by position: there can only be one of them.
        if self.train.label_reuse is not None and "species_one_hot" in self.data.node_features:
            raise ValueError("train.label_reuse and the node feature 'species_one_hot' both want the last columns of x")
        return self

    @model_validator(mode="after")
    def _solves(self) -> Self:
        if self.train.solve_patience and not isinstance(self.model, DeqSpec):
            raise ValueError("train.solve_patience goes with models of family 'deq', which alone solve equations")
        return self

    @model_validator(mode="after")
    def _size(self) -> Self:
        # The smallest graph gives a lower bound, so that a hopeless recipe is refused before its data are there.
        count = self.model.num_parameters(GraphShape(num_node_features=1, num_tasks=1))
        if count > MAX_PARAMETERS:
            raise ValueError(
                f"the model would have {count:,} parameters ({count * 4 / 1e9:,.0f} GB of weights); "
                f"at most {MAX_PARAMETERS:,} are built: lower model.num_layers or model.hidden_channels"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON data with every default spelled out."""
        return self.model_dump(mode="json", exclude={"schema_"}, exclude_none=True)


def read_recipe(
    reference: str | os.PathLike[str] | Mapping[str, Any] | Recipe, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Read and check a recipe.

    Overridden in its data or its model, a recipe is no longer what its source speaks of: it has no source then, and its
    summary says what was changed. With another ``data.dataset``, keys that speak of the former one are left out.

    >>> import zoo
    >>> zoo.read_recipe("rev_deep", {"model.num_layers": 7}).model.num_layers
    7

    Args:
        reference: the name of a shipped recipe, a JSON file whose stem is the recipe's name, or the content of one.
        overrides: values by dotted key, or ``key.key=value`` assignments, whose values are JSON, else a string. They
            are checked like the file.

    Raises:
        NotFoundError: if there is no such recipe.
        RecipeError: with every fault, one a line, each with its place.
    """
    if isinstance(reference, Recipe):
        return parse_recipe(reference.to_json(), where=reference.name, overrides=overrides) if overrides else reference
    if isinstance(reference, Mapping):
        return parse_recipe(reference, where=str(reference.get("name", "recipe")), overrides=overrides)
    if not isinstance(reference, str | os.PathLike):
        raise RecipeError(f"recipe: expected a name, a file or a recipe, got {type(reference).__name__}")
    path = recipe_path(reference) if isinstance(reference, str) else Path(reference)
    recipe = parse_recipe(read_json_object(path, error=RecipeError), where=str(path), overrides=overrides)
    if recipe.name != path.stem:
        raise RecipeError(f"{path}: name: expected {path.stem!r}, the name of the file, got {recipe.name!r}")
    return recipe


def parse_recipe(data: Mapping[str, Any], *, where: str, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Check recipe data; ``where`` names its origin in errors and ``overrides`` mean the same as in ``read_recipe``.

    Raises:
        RecipeError: with every fault, one a line, each with its place.
    """
    # Upgraded first, because overrides speak of the keys of the present version.
    data = upgrade_recipe(data, where=where)
    try:
        recipe = parse_spec(Recipe, override(data, overrides), where=where)
    except RecipeError as error:
        if not overrides or isinstance(overrides, Mapping):
            raise
        # The fault may lie in an override alone, so the error must not point to the file.
        raise RecipeError(*faults_of_overrides(error.lines, overrides, _spelled_out(data), where=where)) from None
    changes = changes_in_words(_spelled_out(data), recipe.to_json()) if overrides else []
    if not changes:
        return recipe
    # A changed model is not the published one: without its source no published figure will stand beside it.
    summary = f"{recipe.name}, changed: {', '.join(changes)}"
    if len(summary) > _MAX_SUMMARY:
        summary = summary[: _MAX_SUMMARY - 3] + "..."
    return recipe.model_copy(update={"source": None, "summary": summary})


def _spelled_out(data: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return parse_spec(Recipe, data, where="").to_json()
    except RecipeError:
        # A recipe for data of the user's own may be whole only with its overrides, such as data.path.
        return data


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "revgnn-zoo recipe", **schema}
