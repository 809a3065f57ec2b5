"""Learning curves as a picture, and the looks of all pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import RunError
from zoo.files import atomic_write
from zoo.spec.results import metric_in_words
from zoo.workflows.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, GREY = "#2a6f97", "#e07a28", "#666666"


def plot(run: RunDir, out: Path | None = None) -> Path:
    """Plot training loss and validation metric of a run, finished or not, by epoch; return the picture's path.

    It is ``curves.png`` in the run directory unless another PNG file is given.

    Raises:
        RunError: if nothing was recorded yet, or the picture cannot be stored.
    """
    if out is not None and out.suffix != ".png":
        raise RunError(f"{out}: the name of a picture ends in .png")
    # Imported here, because it is slow to import and only a picture needs it.
    from matplotlib.figure import Figure

    records = run.metrics()
    if not records:
        raise RunError(f"{run.path}: no epoch is recorded yet; nothing to plot")
    recipe = run.recipe()
    metric = f"valid_{recipe.metric}"
    evaluated = [record for record in records if metric in record]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    losses.plot([r["epoch"] for r in records], [r["train_loss"] for r in records], color=_BLUE, linewidth=1.6)
    losses.set(xlabel="epoch", ylabel="training loss", title="loss")
    if evaluated:
        epochs, values = [r["epoch"] for r in evaluated], [r[metric] for r in evaluated]
        metrics.plot(epochs, values, color=_BLUE, linewidth=1.6, marker="." if len(epochs) < 30 else None)
        selector = "valid_loss" if recipe.eval.select == "loss" else metric
        sign = -1 if recipe.eval.lower_is_better else 1
        best = max(evaluated, key=lambda record: sign * record[selector])
        metrics.plot(best["epoch"], best[metric], "o", color=_ORANGE, markersize=7)
        metrics.annotate(
            f"best {best[metric]:.4f} (epoch {best['epoch']})",
            (best["epoch"], best[metric]),
            xytext=(0.97, 0.05),
            textcoords="axes fraction",
            ha="right",
            color=_ORANGE,
        )
    metrics.set(xlabel="epoch", ylabel=f"valid {metric_in_words(recipe.metric)}", title="validation")
    for axes in (losses, metrics):
        plain_axes(axes)
    figure.suptitle(recipe.name, fontsize=11)
    path = run.curves_path if out is None else out
    atomic_write(path, [png(figure)], RunError)
    return path


def plain_axes(axes: Axes) -> None:
    """Give axes a light grid and no frame."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY)


def png(figure: Figure) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
