"""Norms of states, branches and gradients over the layers of a stack: what depth does to a model, at start and end."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.graph import Part
from zoo.errors import RunError
from zoo.files import atomic_write, write_json
from zoo.json_object import read_json_object
from zoo.layers.residual import ResidualStack
from zoo.workflows.objective import Objective
from zoo.workflows.plot import plain_axes, png
from zoo.workflows.run_dir import DEPTH_FILE, DEPTH_PICTURE, RunDir

# Relative size of the disturbance that estimates a Jacobian: large against the rounding of float32, small against 1.
_STEP = 1e-2
_PANELS = {
    "state": "norm of the state before the layer",
    "branch": "norm of what the layer adds",
    "jacobian": "gain of the branch for a random change",
    "gradient": "norm of the gradient after the layer",
}


def report_depth(run: RunDir, place: str, model: nn.Module, objective: Objective, parts: Iterable[Part]) -> None:
    """Measure one forward and backward pass by layer; write ``depth.json`` and ``depth.png`` into the run directory.

    A copy of the model is measured, without dropout, on the first part with a train node. Norms are Frobenius norms
    divided by the square root of the number of entries. The gain is that of the branch f in h + f(h): |f(h + v) - f(h)|
    / |v| for one random v, an estimate of the Frobenius norm of its Jacobian divided by the square root of its width.
    ``place`` is the key of the figures in the file, ``start`` or ``end``.

    Raises:
        RunError: if the model has no layers, such as an equilibrium, or the files cannot be stored.
    """
    layers = getattr(getattr(model, "stack", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise RunError("--report-depth: needs a model with a stack of layers")
    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        # Running statistics say nothing yet at the start of training.
        if isinstance(module, nn.BatchNorm1d):
            module.train()
    recorder = _Recorder(twin.stack)  # type: ignore[arg-type]
    with ExitStack() as hooks:
        for block in recorder.blocks:
            hooks.callback(block.register_forward_hook(recorder.called).remove)
        for part in parts:
            loss = objective.step_loss(twin, part.to(objective.device))
            if loss is not None:
                recorder.forward_is_done = True
                loss.backward()  # type: ignore[no-untyped-call]
                break
    path = run.path / DEPTH_FILE
    report = read_json_object(path, error=RunError) if path.exists() else {}
    report[place] = recorder.figures()
    write_json(path, report, RunError)
    _draw(run, report)


class _Recorder:
    """Collects sums of squares at every call of a block; a layer of G groups calls G blocks.

    A reversible stack calls its blocks without a tape in the forward pass, and again with one in the backward pass;
    others call them once, with a tape.
    """

    def __init__(self, stack: nn.Module) -> None:
        layers = list(stack.layers)  # type: ignore[arg-type]
        self.blocks: list[nn.Module] = [
            block for layer in layers for block in (layer if isinstance(layer, nn.ModuleList) else [layer])
        ]
        self.num_groups = len(self.blocks) // len(layers)
        # A residual step adds its block to the state; other layers hold their residual and return the next state.
        self.adds = isinstance(stack, ResidualStack) or self.num_groups > 1
        self.forward_is_done = False
        self.calls: dict[str, list[tuple[float, int]]] = {name: [] for name in _PANELS}
        self._generator = torch.Generator().manual_seed(0)

    def called(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        """Record a call of a block; a forward hook."""
        if out.requires_grad:
            out.register_hook(lambda grad: self.calls["gradient"].append(_squares(grad)))  # type: ignore[no-untyped-call]
        if self.forward_is_done:
            return
        x, *rest = args
        with torch.no_grad():
            v = torch.randn(x.shape, generator=self._generator).to(x) * (_STEP * x.norm() / math.sqrt(x.numel()))
            change = block.forward(x + v, *rest) - out
            branch = out if self.adds else out - x
            self.calls["state"].append(_squares(x))
            self.calls["branch"].append(_squares(branch))
            gained, given = _squares(change if self.adds else change - v), _squares(v)
            self.calls["jacobian"].append((gained[0], given[0] * gained[1] / given[1]))  # type: ignore[arg-type]

    def figures(self) -> dict[str, list[float | None]]:
        """Root mean squares by layer; None where they are not finite."""
        figures: dict[str, list[float | None]] = {}
        # Hooks of gradients have run from the last layer to the first.
        self.calls["gradient"].reverse()
        for name, calls in self.calls.items():
            steps = [calls[at : at + self.num_groups] for at in range(0, len(calls), self.num_groups)]
            values = [math.sqrt(sum(a for a, _ in step) / max(sum(b for _, b in step), 1e-300)) for step in steps]
            figures[name] = [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
        return figures


def _squares(x: Tensor) -> tuple[float, int]:
    """Sum of squares and number of entries."""
    return x.detach().double().square().sum().item(), x.numel()


def _draw(run: RunDir, report: dict[str, Any]) -> None:
    # Imported here, because it is slow to import and only a picture needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    colors = {"start": "#9aa5b1", "end": "#2a6f97"}
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        for place, figures in report.items():
            values = [math.nan if value is None else value for value in figures[name]]
            axes.plot(range(1, len(values) + 1), values, color=colors.get(place), linewidth=1.6, label=place)
        axes.set(xlabel="layer", title=title, yscale="log")
        plain_axes(axes)
    figure.axes[0].legend(frameon=False)
    figure.suptitle(run.recipe().name, fontsize=11)
    atomic_write(run.path / DEPTH_PICTURE, [png(figure)], RunError)
