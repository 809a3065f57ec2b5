"""Numbers of a run that are not finite: where that was, what was kept, what helps, and how large the layers were."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from zoo.errors import RunError
from zoo.files import write_json
from zoo.workflows import session
from zoo.workflows.run_dir import REPORT_FILE, RunDir


class DivergedError(RunError):
    """Numbers of a run that are not finite."""


def diverged(run: RunDir, place: str, fault: str, model: nn.Module) -> DivergedError:
    """The error of a run whose numbers are no longer finite: where, what was kept, and what helps."""
    # A folder that is gone, or a full disk, must not hide the fault itself.
    try:
        report_norms(run, place, fault, model)
        kept, report = run.states(), f"norms of all layers: {REPORT_FILE}; "
    except RunError:
        kept, report = [], ""
    last = f"the last good state is {kept[0].name}" if kept else "no state was saved yet"
    advice = "lower train.optimizer.lr or set train.max_grad_norm in another --out"
    return DivergedError(f"{run.path}: {place}: {fault}; {last}; {report}{advice}")


def report_norms(run: RunDir, place: str, fault: str, model: nn.Module) -> None:
    """Write the norms of the weights and gradients of each layer, in the model's order, into the run directory.

    Raises:
        RunError: if they cannot be stored.
    """
    layers = {}
    for name, layer in model.named_modules():
        own = list(layer.parameters(recurse=False))
        groups = {"weights": own, "gradients": [parameter.grad for parameter in own if parameter.grad is not None]}
        norms = {kind: torch.nn.utils.get_total_norm(group).item() for kind, group in groups.items() if group}
        if norms:
            # JSON has no number for infinity and NaN.
            layers[name] = {kind: norm if math.isfinite(norm) else str(norm) for kind, norm in norms.items()}
    write_json(run.path / REPORT_FILE, {"place": place, "fault": fault, "norms": layers}, RunError)


@contextmanager
def run_errors(run: RunDir, model: nn.Module, place: str, key: str) -> Iterator[None]:
    """Turn numbers that are not finite and a lack of memory into errors that say where that was and what helps.

    Args:
        run: whose saved states are named.
        model: whose norms are reported.
        place: in the run, such as its epoch and part.
        key: part of the recipe whose partition decides how much memory is needed.

    Raises:
        RunError: in place of FloatingPointError and of errors about memory.
    """
    try:
        with session.oom_as_run_error(f"{run.path}: {place}", f"raise {key}.partition.num_parts"):
            yield
    except FloatingPointError as error:
        raise diverged(run, place, str(error), model) from error
