"""The README.md of a bundle: what people wrote about the recipe, and what ``config.json`` records of these weights.

Nothing is ever read back from a README.md but its metadata. A rendered card ends in a line with its own digest, so that
a card which somebody has edited since is recognized and kept.
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from zoo.hub.client import LIBRARY
from zoo.hub.config import CURVES_FILE, BundleConfig
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shipped import card_path, list_recipes, recipe_path

_METRICS = {
    "rocauc": "roc_auc",
    "average_precision": "average_precision",
    "accuracy": "accuracy",
    "micro_f1": "f1",
    "macro_f1": "f1",
    "mcc": "matthews_correlation",
    "mae": "mae",
    "rmse": "rmse",
    "r2": "r_squared",
}
_TASK = ("graph-ml", "Node property prediction")
_MARK = re.compile(r"\n<!-- rendered by revgnn-zoo ([0-9a-f]{64}) -->\n$")

_GENERIC = """\
# {name}

{summary}

## Intended use

Prediction of node labels on {dataset} and on graphs of the same kind: nodes with {features} input features.

## Limits

The figures below hold for this data set, split and protocol alone. No other data were looked at.{warning}

## Use

```python
import zoo  # pip install revgnn-zoo

model = zoo.load("owner/{name}")
```

```bash
revgnn-zoo eval owner/{name}
```
"""


def render_card(config: BundleConfig, *, repo_id: str = "", has_curves: bool = False, license: str = "mit") -> str:
    """The card of a bundle; the same bundle always gives the same text.

    Args:
        config: of the bundle.
        repo_id: where it is published; without it the card speaks of ``owner/NAME``.
        has_curves: the bundle holds a picture of the learning curves.
        license: of the model, as the Hub names it.
    """
    recipe = config.recipe
    is_synthetic = config.provenance.data_is_synthetic
    # The written card describes training by the recipe, and these weights were trained in another way.
    is_by_recipe = not is_synthetic and not _is_own_training(config)
    body = (is_by_recipe and _written_card(recipe)) or _GENERIC.format(
        name=recipe.name,
        summary=recipe.summary,
        dataset=_data_in_words(config),
        warning=f"\nThey say nothing about the real `{recipe.data.dataset}`." if is_synthetic else "",
        features=config.shape.num_node_features,
    )
    body = body.replace(f"owner/{recipe.name}", repo_id or f"owner/{recipe.name}")
    head, tail = f"---\n{_metadata(config, repo_id, license)}\n---", _these_weights(config, has_curves=has_curves)
    text = "\n\n".join([head, body.strip(), tail])
    return f"{text}\n\n<!-- rendered by revgnn-zoo {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def _data_in_words(config: BundleConfig) -> str:
    name = f"`{config.recipe.data.dataset}`"
    return f"a synthetic stand-in for {name}" if config.provenance.data_is_synthetic else name


def is_generated(text: str) -> bool:
    """Tell if a card is exactly as it was rendered, so that no work is lost when it is replaced."""
    text = text.replace("\r\n", "\n")
    mark = _MARK.search(text)
    return mark is not None and hashlib.sha256(text[: mark.start() - 1].encode()).hexdigest() == mark[1]


def card_faults(text: str, config: BundleConfig) -> list[str]:
    """Faults that keep a card from being published with a bundle, one line each."""
    try:
        card = ModelCard(text, ignore_metadata_errors=False)
        data: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    except Exception as error:
        # The text may be anything, and the YAML library raises its own kinds of errors.
        return [f"its metadata (the YAML at its top) cannot be read: {str(error).splitlines()[0]}"]
    faults = [f"its metadata lacks {key}" for key in ("license", "library_name", "tags") if not data.get(key)]
    if data.get("library_name") not in (None, LIBRARY):
        faults.append(f"library_name is {data['library_name']!r}; expected {LIBRARY!r}")
    if len(card.text.strip()) < 40:
        faults.append("it says nothing about the model")
    recorded = {round(figure.value, 6) for figure in config.results}
    for result in getattr(card.data, "eval_results", None) or ():
        value = result.metric_value
        if config.provenance.data_is_synthetic and result.dataset_type == config.recipe.data.dataset:
            faults.append(f"model-index states a figure on {result.dataset_type}, but the data were synthetic")
        if not isinstance(value, int | float) or round(value, 6) not in recorded:
            faults.append(f"model-index states {result.metric_type} {value}, which config.json does not record")
    return faults


def _written_card(recipe: Recipe) -> str:
    """The card of a recipe that comes with the zoo; empty if this recipe is not it.

    The card of a recipe describes its data, its model and its training; it fits nothing that differs in them. Only the
    seed may be another.
    """
    if recipe.name not in list_recipes() or not card_path(recipe.name).is_file():
        return ""
    if _described(recipe) != _described(_shipped(recipe.name)):
        return ""
    return card_path(recipe.name).read_text(encoding="utf-8")


@functools.cache
def _shipped(name: str) -> Recipe:
    return read_recipe(recipe_path(name))


def _described(recipe: Recipe) -> dict[str, Any]:
    data = recipe.to_json()
    return {"data": data["data"], "model": data["model"], "train": {**data["train"], "seed": 0}}


def _is_own_training(config: BundleConfig) -> bool:
    """True if the weights come neither from a run of the recipe nor from a checkpoint."""
    return not config.provenance.num_epochs and not config.provenance.converted_from_sha256


def _metadata(config: BundleConfig, repo_id: str, license: str) -> str:
    recipe = config.recipe
    dataset, metric = recipe.data.dataset, recipe.metric
    is_synthetic = config.provenance.data_is_synthetic
    results = [
        EvalResult(
            task_type=_TASK[0],
            task_name=_TASK[1],
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=figure.split,
            metric_type=_METRICS.get(figure.metric, figure.metric),
            metric_name=f"{figure.split} {figure.metric} ({figure.protocol})",
            metric_value=figure.value,
        )
        for figure in config.results
        if figure.split != "train" and not is_synthetic
    ]
    tags = ["graph-neural-network", "node-classification", f"revgnn-zoo-{recipe.model.type.replace('_', '-')}"]
    data = ModelCardData(
        library_name=LIBRARY,
        license=license,
        pipeline_tag=_TASK[0],
        tags=[*tags, "synthetic-data"] if is_synthetic else tags,
        datasets=None if dataset == "file" or is_synthetic else [dataset],
        metrics=[_METRICS.get(metric, metric)],
        model_name=repo_id.rpartition("/")[2] or recipe.name,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _these_weights(config: BundleConfig, *, has_curves: bool) -> str:
    recipe, provenance, weights = config.recipe, config.provenance, config.weights
    lines = ["## These weights", ""]
    if config.results:
        lines += ["| split | metric | value | protocol |", "| --- | --- | ---: | --- |"]
        lines += [f"| {r.split} | {r.metric} | {r.value:.4f} | {r.protocol} |" for r in config.results]
    else:
        lines.append("Nothing was measured of them before they were published.")
    if has_curves:
        lines += ["", f"![Training loss and validation {recipe.metric} by epoch]({CURVES_FILE})"]
    facts = {
        "recipe": f"`{recipe.name}`, family `{recipe.model.type}`",
        "parameters": f"{recipe.model.num_parameters(config.shape):,}",
        "data set": f"{_data_in_words(config)}, split {recipe.data.split}",
        "features": ", ".join([*recipe.data.node_features, *(["known labels"] if recipe.train.label_reuse else [])]),
        "training": f"{provenance.num_epochs} epochs, best at {provenance.epoch}, seed {recipe.train.seed}, "
        f"{recipe.train.optimizer.type}, {recipe.train.precision}",
        "versions": f"revgnn-zoo {provenance.zoo_version}, torch {provenance.torch_version}",
        "device": provenance.device,
        "weights": f"{weights.num_bytes:,} bytes, SHA-256 `{weights.sha256}`",
    }
    if provenance.converted_from_sha256:
        facts["training"] = f"by others; converted from a checkpoint, SHA-256 `{provenance.converted_from_sha256}`"
    elif _is_own_training(config):
        facts["training"] = "not by the recipe: the model was saved from another program"
    lines += ["", "| | |", "| --- | --- |", *(f"| {name} | {fact} |" for name, fact in facts.items() if fact)]
    lines += ["", "`config.json` holds the whole recipe with every default, and every figure above."]
    return "\n".join(lines)
