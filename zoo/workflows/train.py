"""The training loop: a fresh random partition each epoch, one optimizer step per part or few, the best validation wins.

All randomness is a function of the recipe's seed and of the place in the run: the initialization, the partition of an
epoch, the dropout of a step and the labels it reads, the views of an evaluation. A saved state therefore holds no
generator: weights, optimizer and the place in the run are enough to continue as if nothing had happened.

Under self-distillation the teacher is a run of its own in a folder of the run directory, finished before the student's
begins; so it is stopped, resumed, evaluated and exported like any other.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.graph import Graph, Split
from zoo.errors import RunError, ZooError
from zoo.layers.capture import capture_layers
from zoo.layers.equilibrium import start_epoch, take_solve_metrics
from zoo.models.factory import build_model
from zoo.spec.base import parse_spec
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured, RunResults, ranks_in_words
from zoo.spec.shape import input_shape
from zoo.workflows import ranks, session
from zoo.workflows.baseline import linear_baseline
from zoo.workflows.depth_report import report_depth
from zoo.workflows.distributed import check_same, check_world_size
from zoo.workflows.evaluate import SPLITS, Logits, Partial, Protocol, eval_protocol, measure, predict, test_protocol
from zoo.workflows.graphs import complete_recipe, graph_digest, kept_graph, place_graph, recipe_graph
from zoo.workflows.objective import KnownLabels, Objective
from zoo.workflows.options import TrainOptions
from zoo.workflows.plot import plot
from zoo.workflows.progress import Board, Progress, log, machine_lines, rank_costs, task_lines
from zoo.workflows.recipes import recipe_digest
from zoo.workflows.run_dir import RunDir, open_run
from zoo.workflows.session import StopRequest, stop_requests
from zoo.workflows.state import RunState, best_weights
from zoo.workflows.step import (
    StepParts,
    build_optimizer,
    clusters_of,
    epoch_parts,
    run_errors,
    set_learning_rate,
    training_step,
)


def train(
    recipe: Recipe,
    out: Path,
    *,
    graph: Graph | None = None,
    resume: bool = False,
    on_epoch: Callable[[Mapping[str, float]], object] | None = None,
    **options: Any,
) -> RunResults:
    """Train a recipe and evaluate its best weights.

    Args:
        recipe: what to train, on what, and how.
        out: the run directory; new or empty, or with the same recipe.
        graph: the data, if they come from memory; they are kept in the run directory.
        resume: continue an unfinished run, or one that has fewer epochs than the recipe; start one that is not there.
        on_epoch: called after each epoch with its line of ``metrics.jsonl``.
        options: as :class:`TrainOptions`.

    Returns:
        What ``results.json`` holds. Of a run that is finished already, nothing but a missing baseline is computed.

    Raises:
        RunError: if the run directory cannot be used, or a loss or gradient is not finite.
        StoppedError: after a signal or ``max_time_s``; the state is saved.
        ZooError: if the recipe does not fit its data, or these cannot be loaded.
    """
    chosen = parse_spec(TrainOptions, options, where="options", error=RunError)
    check_world_size(recipe.train.parts_per_step, ranks.group.size)
    shared = chosen.model_dump_json(include={"capture", "check_inversion", "edge_precision"})
    num_threads = str(chosen.num_threads or torch.get_num_threads())
    check_same({"recipe": recipe_digest(recipe), "options": shared, "number of threads": num_threads})
    device = session.start(chosen.device, chosen.num_threads)
    if ranks.group.rank > 0:
        chosen = chosen.model_copy(update={"quiet": True})
    # A launcher that starts the processes again cannot know of --resume; it tells of one process by its count alone.
    is_restart = ranks.group.is_restart or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    remedy = "lower model.num_layers or model.hidden_channels, or use a machine with more"
    is_given = graph is not None
    # What follows from the labels is part of the run's recipe.
    recipe, graph = complete_recipe(recipe, graph)
    with (
        # The lock of the folder is taken first and released last, after a stopped run has saved its state.
        open_run(out, recipe, resume=resume or is_restart, may_extend=resume) as run,
        stop_requests(chosen.max_time_s) as stop,
        session.oom_as_run_error(str(out), remedy),
    ):
        results = ranks.share(run.results())
        if graph is not None and is_given and ranks.group.rank == 0:
            graph = kept_graph(graph, run, is_new=not run.states() and results is None)
        if results is None:
            results = _train(_Job(recipe, run, device, chosen, stop, resume or is_restart, on_epoch), graph)
        else:
            log(f"{out}: already done", quiet=chosen.quiet)
        if chosen.baseline and results.baseline is None and ranks.group.rank == 0:
            graph, split = recipe_graph(recipe, graph)
            if graph_digest(graph, split) != results.data_sha256:
                raise RunError(f"{out}: the data changed since the run; a baseline on them would not compare")
            results = results.model_copy(update={"baseline": linear_baseline(graph, split, recipe.metric)})
            run.write_results(results)
        return ranks.share(results)


@dataclass(frozen=True)
class _Job:
    """A run and how it is done; that of a teacher has another recipe and folder than its student's."""

    recipe: Recipe
    run: RunDir
    device: torch.device
    options: TrainOptions
    stop: StopRequest
    resume: bool
    on_epoch: Callable[[Mapping[str, float]], object] | None


def _train(job: _Job, graph: Graph | None) -> RunResults:
    recipe, run, device, options, stop = job.recipe, job.run, job.device, job.options, job.stop
    spec, metric = recipe.train, f"valid_{recipe.metric}"
    selector = "valid_loss" if recipe.eval.select == "loss" else metric
    log(f"run     {run.path}", *machine_lines(device), quiet=options.quiet)
    # The teacher is trained first, so that its graph and model are freed before those of the student are made.
    teacher = None if spec.distillation is None else _train_teacher(job, graph)
    # Nothing is computed yet that could be saved, and loading data may take minutes.
    stop.at_once = True
    objective, data_sha256 = _load(job, graph, teacher)
    graph = objective.graph
    # On the CPU and then moved, so that the weights are the same on every device.
    session.seed_global(spec.seed, "init")
    shape = input_shape(recipe, graph.shape)
    model = build_model(recipe.model, shape).to(device)
    if options.capture:
        capture_layers(model)
    log(*task_lines(recipe, graph, objective.split, model), quiet=options.quiet)
    optimizer = build_optimizer(spec.optimizer, model)
    identity = {"data": data_sha256}
    if found := sorted(graph.clusters.items()):
        # Another build of METIS may find others.
        identity["clusters"] = hashlib.sha256(b"".join(bytes(c.cpu().numpy()) for _, c in found)).hexdigest()
    state = RunState(recipe, run, model, optimizer, identity, session.environment(device))
    if options.check_inversion:
        state.check_inversion(is_captured=options.capture)
    resumed = state.restore()
    reports_depth = options.report_depth and ranks.group.rank == 0
    if reports_depth and not resumed:
        report_depth(run, "start", model, objective, epoch_parts(graph, spec, 1, shared=False))
    # From here on there is a state to save, so a signal is answered between two steps.
    stop.at_once = False
    cursor, num_parts = state.cursor, spec.partition.num_parts
    pause_if_asked = partial(state.pause_if_asked, stop)
    board = Board(run.tensorboard_path, cursor.epoch)
    num_steps = math.ceil(num_parts / spec.parts_per_step)
    done = (cursor.epoch - 1) * num_steps + math.ceil(cursor.part / spec.parts_per_step)
    with Progress(spec.num_epochs * num_steps, unit="step", quiet=options.quiet, done=done) as progress, closing(board):
        if resumed:
            progress.line(f"{run.path}: continues at epoch {cursor.epoch}, part {cursor.part}/{num_parts}")
        elif job.resume:
            progress.line(f"{run.path}: nothing to resume; starts at epoch 1")
        # Figures stay on the bar until newer ones take their place.
        figures: dict[str, str] = {}
        # Patience follows from the saved state alone, so that a resumed run stops at the same epoch.
        while cursor.epoch <= spec.num_epochs and not state.is_out_of_patience():
            label = f"epoch {cursor.epoch}/{spec.num_epochs}"
            epoch_began = ranks.group.busy_clock()
            set_learning_rate(optimizer, spec, cursor.epoch)
            start_epoch(model, cursor.epoch)
            # A resumed epoch samples the same parts again and skips those that are done.
            parts = epoch_parts(graph, spec, cursor.epoch)
            while cursor.part < len(parts):
                end = min(cursor.part + spec.parts_per_step, len(parts))
                # Seeded by the number of the step, so that no state of a generator has to be saved.
                chosen = StepParts(parts, range(cursor.part, end), device, (spec.seed, "dropout", cursor.step))
                # An epoch without a single step ends the run.
                may_skip = spec.on_nonfinite == "skip" and (end < len(parts) or cursor.num_losses > 0)
                loss: float | None = None
                place = f"epoch {cursor.epoch}, part {cursor.part + 1}"
                with run_errors(run, model, place, "train"), state.step_errors(may_skip=may_skip):
                    loss = training_step(model, optimizer, chosen, objective, spec)
                state.end_step(end, loss)
                figures["loss"] = f"{cursor.loss_sum / max(cursor.num_losses, 1):.4f}"
                progress.step(label, figures)
                pause_if_asked()

            # A run that was stopped in the evaluation has these figures in its state.
            if not cursor.record:
                mean_loss = cursor.loss_sum / cursor.num_losses
                cursor.record = {"epoch": cursor.epoch, "step": cursor.step, "train_loss": mean_loss}
                cursor.record |= cursor.step_figures
                # Taken now, because solves of the evaluation would be counted among those of training.
                cursor.record = ranks.share(cursor.record | take_solve_metrics(model))
            # A copy, because a state that is saved during the evaluation must hold the figures of training alone: the
            # resumed run evaluates again and adds the others.
            record = dict(cursor.record)
            if cursor.epoch % recipe.eval.every == 0 or cursor.epoch == spec.num_epochs:
                progress.stage(f"{label} evaluating")
                with run_errors(run, model, f"epoch {cursor.epoch}, evaluation", "eval"):
                    measured, valid_loss = _measure(state, objective, eval_protocol(recipe), pause_if_asked)
                record |= {f"{figure.split}_{figure.metric}": figure.value for figure in measured}
                record |= {"valid_loss": valid_loss}
                record |= {f"eval_{name}": value for name, value in take_solve_metrics(model).items()}
                record = ranks.share(record)
                best = state.keep_best(record[selector], shape)
                figures |= {name: f"{record[name]:.4f}" for name in (metric, selector)} | {"best": f"{best.value:.4f}"}
            epoch_s, memory = state.epoch_s(), state.peak_memory_bytes(device)
            record |= {"lr": optimizer.param_groups[0]["lr"], "epoch_s": round(epoch_s, 3), "peak_memory_bytes": memory}
            figures |= {"epoch_s": f"{epoch_s:.2f}", "memory": f"{memory / 2**30:.2f}GiB"}
            if ranks.group.size > 1:
                figures |= ranks_in_words(**rank_costs(epoch_began, device))
            if metric in record:
                progress.figures(label, figures)
            if ranks.group.rank == 0:
                board.add(record, cursor.epoch)
            # The log comes first: a state may lag behind it, and a resume then cuts it to the length in the state.
            state.end_epoch(record, epoch_s)
            state.save_if_due(epoch_is_done=True)
            if job.on_epoch is not None and ranks.group.rank == 0:
                # Called last: an error in it finds the epoch logged and, if it was due, saved.
                job.on_epoch(record)
            state.check_solves()
        # The test below may be stopped too; the run is then resumed from this state and trains no step again.
        state.save()
    if reports_depth:
        report_depth(run, "end", model, objective, epoch_parts(graph, spec, 1, shared=False))
    return _finish(state, objective, teacher, pause_if_asked, quiet=options.quiet)


def _train_teacher(job: _Job, graph: Graph | None) -> RunResults:
    """Train the recipe without its distillation in a run directory of its own, unless that is done already."""
    recipe = job.recipe.model_copy(update={"train": job.recipe.train.model_copy(update={"distillation": None})})
    with open_run(job.run.teacher_path, recipe, resume=job.resume) as run:
        if (results := ranks.share(run.results())) is not None:
            return results
        log(f"{run.path}: the teacher comes first", quiet=job.options.quiet)
        # A log of the run is about the student.
        return _train(replace(job, recipe=recipe, run=run, on_epoch=None), graph)


def _load(job: _Job, graph: Graph | None, teacher: RunResults | None) -> tuple[Objective, str]:
    """The objective on the recipe's graph, which is loaded if that was not done yet, and the digest of the data."""
    recipe, run, device = job.recipe, job.run, job.device
    graph, split = recipe_graph(recipe, graph)
    digest = graph_digest(graph, split)
    check_same({"graph": digest})
    # The teacher's logits belong to nodes by their number, so both must have seen the same graph.
    if teacher is not None and teacher.data_sha256 != digest:
        raise RunError(f"{run.path}: the data changed since the teacher was trained; start again in another --out")
    # A metric that these labels do not define is found before hours of training.
    zeros = torch.zeros(1, graph.num_tasks).expand(graph.num_nodes, -1)
    measure(graph, split, recipe.metric, zeros, eval_protocol(recipe))
    # After the digest: a placed graph may hold its edge features in half precision.
    graph = place_graph(graph, device, job.options.edge_precision)
    # Before rank 0 asks for parts alone.
    for part in (recipe.train, recipe.eval, recipe.test):
        clusters_of(graph, part.partition.num_clusters)
    logits = None if teacher is None else _teacher_logits(recipe, run, graph, split, device)
    return Objective(recipe.train, graph, split, device, logits), digest


def _teacher_logits(recipe: Recipe, run: RunDir, graph: Graph, split: Split, device: torch.device) -> Tensor:
    """[N, T] predictions of the teacher's best weights, as it validates; they are not saved, as these never change."""
    spec, protocol = recipe.train, eval_protocol(recipe)
    teacher = build_model(recipe.model, input_shape(recipe, graph.shape))
    teacher.load_state_dict(best_weights(RunDir(run.teacher_path) if ranks.group.rank == 0 else run))
    known = KnownLabels.of(spec, graph, split, device)
    with run_errors(run, teacher, "predictions of the teacher", "eval"):
        logits = predict(teacher.to(device), graph, protocol, device=device, precision=spec.precision, known=known)
    return ranks.share(logits)


def _measure(
    state: RunState, objective: Objective, protocol: Protocol, on_part: Callable[[], None]
) -> tuple[list[Measured], float]:
    """Figures of all splits and the valid loss, continued where it was stopped; a FloatingPointError if not finite.

    Rank 0 has the predictions and computes them; the others get its figures, or end with it.
    """
    graph = objective.graph
    nodes = objective.split.nodes(*SPLITS)
    begun = state.partials.get(protocol.purpose)
    # Earlier versions kept a row for each node; such an evaluation begins anew.
    if begun is None or ranks.share(begun.total.shape) != (len(nodes), graph.num_tasks):
        state.partials[protocol.purpose] = Partial.begin(len(nodes), graph.num_tasks)
    rows = predict(
        state.model,
        graph,
        protocol,
        device=objective.device,
        precision=state.recipe.train.precision,
        known=objective.known,
        nodes=nodes,
        on_part=on_part,
        partial=state.partials[protocol.purpose],
    )
    if ranks.group.rank > 0:
        return ranks.share(([], math.nan))
    # A metric would accept NaN without an error: argmax gives some class for it.
    if not bool(torch.isfinite(rows).all()):
        raise FloatingPointError("some predictions are NaN or infinite")
    logits = Logits(nodes, rows)
    loss = objective.valid_loss(logits[objective.valid])
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss on the valid nodes is {loss}")
    return ranks.share((measure(graph, objective.split, state.recipe.metric, logits, protocol), loss))


def _finish(
    state: RunState,
    objective: Objective,
    teacher: RunResults | None,
    pause_if_asked: Callable[[], None],
    *,
    quiet: bool,
) -> RunResults:
    """Evaluate the best weights as the recipe's test says, and also as it validates if that is something else."""
    run, recipe = state.run, state.recipe
    best = state.use_best_weights()
    protocols = [test_protocol(recipe), eval_protocol(recipe)]
    # Two equal protocols would show every figure twice.
    if str(protocols[0]) == str(protocols[1]):
        del protocols[1]
    figures: list[Measured] = []
    done = sum(partial.num_done for partial in state.partials.values())
    with Progress(sum(p.num_steps for p in protocols), unit="part", quiet=quiet, done=done) as progress:

        def on_part() -> None:
            progress.step("testing", {})
            pause_if_asked()

        for protocol in protocols:
            with run_errors(run, state.model, f"epoch {best.epoch}, evaluation", protocol.purpose):
                figures += _measure(state, objective, protocol, on_part)[0]
    results = ranks.share(state.results(figures, objective, teacher))
    run.write_results(results)
    # Results mark the run as finished, so they are written before the picture, which can be made again.
    try:
        if ranks.group.rank == 0:
            plot(run)
    except ZooError as error:
        state.warn_once("picture", f"{error}; the run is finished, without its picture")
    return results
