"""The README.md of a bundle: what people wrote about the recipe, and what ``config.json`` records of these weights.

A rendered card ends in a line with its own digest, so that a card which somebody has edited since is recognized: its
words are kept, and of any card what its owner added to the metadata, such as the license. The other metadata, and the
table of these weights, are rendered anew.

A file beside the card enters the test figure in the leaderboard of a benchmark on the Hub.

Source: its format, https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from zoo.errors import BundleError, ZooError
from zoo.hub.client import LIBRARY
from zoo.hub.config import CARD_FILE, CONFIG_FILE, CURVES_FILE, BundleConfig
from zoo.hub.reference import ReferenceFormatError, check_repo_id
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shipped import card_path, list_recipes, recipe_path

BENCHMARK_FILE = ".eval_results/revgnn-zoo.yaml"
_BENCHMARK = re.compile(r"^ +id: '?([^'\s]+)'?\n +task_id: '?([^'\s]+)'?$", re.MULTILINE)
_BENCHMARK_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
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
_ANY_MARK = re.compile(r"\n*<!-- rendered by revgnn-zoo [0-9a-f]{64} -->\n*")
_HEADING, _LAST_LINE = (
    "## These weights",
    "`config.json` holds the whole recipe with every default, and every figure above.",
)
# Up to the last line or, if somebody removed that, as far as there are tables and pictures.
_TABLE = re.compile(rf"^{_HEADING}\n(?:(?s:.*?){re.escape(_LAST_LINE)}|(?:\n|\|.*\n|!\[.*\n)*)", re.MULTILINE)
_LOAD = re.compile(r'zoo\.load\("(?!owner/)([\w.-]+/[\w.-]+)"\)')
_MARKUP = re.compile(r"[<\[\]|`]|^[#=+*>-]")

_GENERIC = """\
# {title}

{summary}

## Intended use

Prediction of node labels on {dataset} and on graphs of the same kind: nodes with {features} input features.

## Limits

The figures below hold for this data set, split and protocol alone. No other data were looked at.{warning}

## Use

```python
model = zoo.load("owner/{name}")
```

```bash
revgnn-zoo eval owner/{name}{data}
```
"""
_IMPORTS = """\
```bash
pip install revgnn-zoo
```

```python
import torch
import zoo

"""
_EXAMPLE = """\
x = torch.rand(4, {num_features})  # [N, F] features of the nodes
edge_index = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])  # [2, E] each edge from one node to another{edge_attr}
with torch.no_grad():
    logits = model({inputs})  # [N, T]
"""


def render_card(
    config: BundleConfig,
    *,
    repo_id: str = "",
    has_curves: bool = False,
    license: str = "",
    old: str = "",
    where: str = CARD_FILE,
    replace: bool = False,
) -> str:
    """The card of a bundle; the same arguments always give the same text.

    Args:
        config: of the bundle.
        repo_id: where it is published; without it the card speaks of ``owner/NAME``.
        has_curves: the bundle holds a picture of the learning curves.
        license: of the model, as the Hub names it; empty: that of ``old``, if it names one.
        old: the card that is there; empty: none.
        where: ``old`` lies, as errors name it.
        replace: render the words anew too, even if somebody wrote them.

    Raises:
        BundleError: if the metadata of ``old`` cannot be read; not with ``replace``.
    """
    owned, words = _parts(old, where, is_lenient=replace)
    if license:
        owned["license"] = license
    head, table = _metadata(config, repo_id, owned), _these_weights(config, has_curves=has_curves)
    if words and not (replace or is_generated(old)):
        words = _ANY_MARK.sub("\n\n", words)
        renewed, count = _TABLE.subn(lambda _: table, words, count=1)
        words = renewed if count else f"{words.rstrip()}\n\n{table}"
        return f"---\n{head}\n---\n\n{words.strip()}\n"
    text = "\n\n".join([f"---\n{head}\n---", _words(config, repo_id).strip(), table])
    return f"{text}\n\n<!-- rendered by revgnn-zoo {hashlib.sha256(text.encode()).hexdigest()} -->\n"


def license_of(text: str) -> str:
    """The license that a card names; empty if it names none, or cannot be read."""
    return str(_parts(text, "", is_lenient=True)[0].get("license") or "")


def _parts(text: str, where: str, *, is_lenient: bool) -> tuple[dict[str, Any], str]:
    """A card's metadata, without the figures, and its text."""
    text = text.replace("\r\n", "\n")
    if not text.lstrip().startswith("---\n"):
        return {}, text.strip("\n")
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except Exception as error:
        # The text may be anything, and the YAML library raises its own kinds of errors.
        if is_lenient:
            return {}, ""
        fault = f"its metadata (the YAML at its top) cannot be read: {str(error).splitlines()[0]}"
        advice = "mend it there, or replace it with --replace (card) or --replace-card (push)"
        raise BundleError(f"{where}: {fault}; {advice}") from error
    data: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    data.pop("model-index", None)
    return data, card.text.strip("\n")


def _words(config: BundleConfig, repo_id: str) -> str:
    """The part of a card that people wrote about the recipe, or what can be said without them."""
    recipe, shape = config.recipe, config.shape
    is_synthetic = config.provenance.data_is_synthetic
    # The written card describes training by the recipe, and these weights were trained in another way.
    is_by_recipe = not is_synthetic and not _is_own_training(config)
    body = (is_by_recipe and _written_card(recipe)) or _GENERIC.format(
        title=repo_id.rpartition("/")[2] or recipe.name,
        name=recipe.name,
        summary=_plain(recipe.summary),
        dataset=_data_in_words(config),
        warning=f"\nThey say nothing about the real `{recipe.data.dataset}`." if is_synthetic else "",
        features=shape.num_node_features,
        data=f" --data {shlex.quote(' '.join(recipe.data.path.split()))}" if recipe.data.path else "",
    )
    edge_attr = f"\nedge_attr = torch.rand(4, {shape.num_edge_features})  # [E, D] features of the edges"
    has_edges = shape.num_edge_features > 0
    example = _EXAMPLE.format(
        num_features=shape.num_node_features,
        edge_attr=edge_attr if has_edges else "",
        inputs="x, edge_index, edge_attr" if has_edges else "x, edge_index",
    )
    line = f'model = zoo.load("owner/{recipe.name}")\n'
    body = body.replace(f"```python\n{line}```", f"{_IMPORTS}{line}{example}```")
    # A written card may go on with an example of its own.
    body = body.replace(f"```python\n{line}", f"{_IMPORTS}{line}")
    return body.replace(f"owner/{recipe.name}", repo_id or f"owner/{recipe.name}")


def _plain(text: str) -> str:
    """Text of a bundle, which may come from anywhere, within a line: no markup of its own."""
    return _MARKUP.sub(lambda match: f"\\{match[0]}", " ".join(text.split()))


def _data_in_words(config: BundleConfig) -> str:
    name = f"`{config.recipe.data.title}`"
    return f"a synthetic stand-in for {name}" if config.provenance.data_is_synthetic else name


def is_generated(text: str) -> bool:
    """Tell if a card is exactly as it was rendered, so that no work is lost when it is replaced."""
    text = text.replace("\r\n", "\n")
    mark = _MARK.search(text)
    return mark is not None and hashlib.sha256(text[: mark.start() - 1].encode()).hexdigest() == mark[1]


def is_current(text: str, config: BundleConfig, *, has_curves: bool, where: str = CARD_FILE) -> bool:
    """Tell if a card, which lies at ``where``, says of the weights what ``config`` says."""
    loaded = _LOAD.search(text)
    renewed = render_card(config, repo_id=loaded[1] if loaded else "", has_curves=has_curves, old=text, where=where)
    now, then = (ModelCard(_ANY_MARK.sub("\n", card.replace("\r\n", "\n"))) for card in (text, renewed))
    metadata, renewed_metadata = (card.data.to_dict() for card in (now, then))  # type: ignore[no-untyped-call]
    return bool(metadata == renewed_metadata and now.text.split() == then.text.split())


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


def _metadata(config: BundleConfig, repo_id: str, owned: Mapping[str, Any]) -> str:
    """The metadata of a card: about the weights as ``config`` has it, about all else as its owner does."""
    recipe = config.recipe
    dataset, metric = recipe.data.title, recipe.metric
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
    tags += ["synthetic-data"] if is_synthetic else []
    others = [tag for tag in owned.get("tags") or () if not str(tag).startswith(("revgnn-zoo", "synthetic-data"))]
    ours = {
        "library_name": LIBRARY,
        "pipeline_tag": _TASK[0],
        "tags": list(dict.fromkeys([*tags, *others])),
        "metrics": [_METRICS.get(metric, metric)],
        "model_name": repo_id.rpartition("/")[2] or recipe.name,
        "eval_results": results or None,
    }
    if is_synthetic or recipe.data.dataset != "file":
        # Of a graph of their own, its owners may say where it is published.
        ours["datasets"] = None if is_synthetic else [dataset]
    return ModelCardData(**{**owned, **ours}).to_yaml().strip()


def _these_weights(config: BundleConfig, *, has_curves: bool) -> str:
    recipe, provenance, weights = config.recipe, config.provenance, config.weights
    lines = [_HEADING, ""]
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
        "versions": _plain(f"revgnn-zoo {provenance.zoo_version}, torch {provenance.torch_version}"),
        "device": _plain(provenance.device),
        "weights": f"{weights.num_bytes:,} bytes, SHA-256 `{weights.sha256}`",
    }
    if provenance.converted_from_sha256:
        facts["training"] = f"by others; converted from a checkpoint, SHA-256 `{provenance.converted_from_sha256}`"
    elif _is_own_training(config):
        facts["training"] = "not by the recipe: the model was saved from another program"
    lines += ["", "| | |", "| --- | --- |", *(f"| {name} | {fact} |" for name, fact in facts.items() if fact)]
    lines += ["", _LAST_LINE]
    return "\n".join(lines)


def render_benchmark(config: BundleConfig, benchmark: str) -> str:
    """The content of the file, for OWNER/DATASET:TASK, with the figure of the recipe's metric on the test split.

    Raises:
        ReferenceFormatError: if ``benchmark`` is not of that form.
        BundleError: if there is no such figure, or it was measured on a stand-in for the data.
    """
    dataset, _, task = benchmark.partition(":")
    if not _BENCHMARK_TASK.fullmatch(task):
        raise ReferenceFormatError(f"{benchmark!r}: expected OWNER/DATASET:TASK, of a benchmark on the Hub")
    check_repo_id(dataset)
    figures = [r for r in config.results if r.split == "test" and r.metric == config.recipe.metric]
    if config.provenance.data_is_synthetic or not figures:
        raise BundleError(f"{benchmark}: {CONFIG_FILE} has no figure of the test split, measured on the real data")
    notes = f"{figures[0].metric}, {figures[0].protocol}"
    entry = EvalResultEntry(dataset_id=dataset, task_id=task, value=figures[0].value, notes=notes)
    return str(yaml_dump(eval_result_entries_to_yaml([entry])))


def renew_benchmark(config: BundleConfig, old: str) -> str:
    """The content for other weights; one that was written by hand is left alone, and empty text means no file."""
    if len(named := _BENCHMARK.findall(old)) != 1:
        return old
    try:
        return render_benchmark(config, ":".join(named[0]))
    except ZooError:
        return ""
