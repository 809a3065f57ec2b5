"""The file beside the card that enters a model's test figure in the leaderboard of a benchmark on the Hub.

Source: the format, https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import re

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

from zoo.errors import BundleError, ZooError
from zoo.hub.config import CONFIG_FILE, BundleConfig
from zoo.hub.reference import ReferenceFormatError, check_repo_id

BENCHMARK_FILE = ".eval_results/revgnn-zoo.yaml"
_NAMED = re.compile(r"^ +id: '?([^'\s]+)'?\n +task_id: '?([^'\s]+)'?$", re.MULTILINE)
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def render_benchmark(config: BundleConfig, benchmark: str) -> str:
    """The content of the file.

    Args:
        config: of the bundle, whose figure of the recipe's metric on the test split is entered as it stands there.
        benchmark: OWNER/DATASET:TASK.

    Raises:
        ReferenceFormatError: if ``benchmark`` is not of that form.
        BundleError: if there is no such figure, or it was measured on a stand-in for the data.
    """
    dataset, _, task = benchmark.partition(":")
    if not _TASK.fullmatch(task):
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
    if len(named := _NAMED.findall(old)) != 1:
        return old
    try:
        return render_benchmark(config, ":".join(named[0]))
    except ZooError:
        return ""
