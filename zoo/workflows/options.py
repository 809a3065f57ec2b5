"""Options of a run that are no keys of its recipe, because they do not change what is learned."""

from __future__ import annotations

from typing import Literal

from zoo.spec.base import Spec

EdgePrecision = Literal["fp32", "fp16"]


class TrainOptions(Spec):
    """Options of a training run.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        num_threads: of the CPU; None: as PyTorch chooses.
        baseline: also fit a logistic or ridge regression to the node features and report it beside the results.
        capture: replay CUDA graphs of one reversible layer for all layers, on a GPU.
        check_inversion: record how exactly the reversible stack restores its input, ``max_inversion_error``.
        report_depth: write norms by layer at the start and at the end into ``depth.json``, with a picture.
        edge_precision: of the edge features on a GPU; "fp16" halves their memory.
        max_time_s: seconds after which the run is saved and stopped, as by a signal.
        quiet: show no progress.
    """

    device: str | None = None
    num_threads: int | None = None
    baseline: bool = False
    capture: bool = False
    check_inversion: bool = False
    report_depth: bool = False
    edge_precision: EdgePrecision = "fp32"
    max_time_s: float | None = None
    quiet: bool = False
