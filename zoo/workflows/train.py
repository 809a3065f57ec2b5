"""The training loop: a fresh random partition each epoch, one optimizer step per part or few, the best validation wins.

All randomness is a function of the recipe's seed and of the place in the run: the initialization, the partition of an
epoch, the dropout of a step and the labels it reads, the views of an evaluation. A saved state therefore holds no
generator: weights, optimizer and the place in the run are enough to continue as if nothing had happened.

Under self-distillation the teacher is a run of its own in a folder of the run directory, finished before the student's
begins; so it is stopped, resumed, evaluated and exported like any other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from zoo.data.graph import Graph, Split
from zoo.data.partition import RandomParts
from zoo.errors import RunError, ZooError
from zoo.layers.capture import capture_layers
from zoo.layers.equilibrium import SolveLog, solve_logs, start_epoch, take_solve_metrics
from zoo.layers.oscillator import OscillatorStack
from zoo.layers.reversible import ReversibleStack
from zoo.models.factory import build_model
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured, RunResults
from zoo.spec.shape import input_shape
from zoo.workflows import ranks, session
from zoo.workflows.baseline import linear_baseline
from zoo.workflows.depth_report import report_depth
from zoo.workflows.distributed import check_same, check_world_size
from zoo.workflows.evaluate import Partial, Protocol, eval_protocol, measure, predict, test_protocol
from zoo.workflows.graphs import (
    EdgePrecision,
    complete_recipe,
    graph_digest,
    is_synthetic,
    kept_graph,
    place_graph,
    recipe_graph,
)
from zoo.workflows.memory import peak
from zoo.workflows.objective import KnownLabels, Objective
from zoo.workflows.plot import plot
from zoo.workflows.progress import Board, Progress, machine_lines, task_lines
from zoo.workflows.recipes import recipe_digest
from zoo.workflows.run_dir import BestEpoch, RunDir, open_run
from zoo.workflows.session import StoppedError, StopRequest, stop_requests
from zoo.workflows.state import RunState
from zoo.workflows.step import (
    StepParts,
    build_optimizer,
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
    keep_graph: bool = False,
    on_epoch: Callable[[Mapping[str, float]], object] | None = None,
    device: str | None = None,
    resume: bool = False,
    baseline: bool = False,
    num_threads: int | None = None,
    capture: bool = False,
    check_inversion: bool = False,
    report_depth: bool = False,
    edge_precision: EdgePrecision = "fp32",
    max_time_s: float | None = None,
    quiet: bool = False,
) -> RunResults:
    """Train a recipe and evaluate its best weights.

    Args:
        recipe: what to train, on what, and how.
        out: the run directory; new or empty, or with the same recipe.
        graph: that the recipe speaks of, if it is loaded already.
        keep_graph: write the graph into the run directory, where the recipe says it is.
        on_epoch: called after each epoch with its line of ``metrics.jsonl``.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the GPU if there is one.
        resume: continue an unfinished run, or one that has fewer epochs than the recipe; start one that is not there.
        baseline: also fit a logistic or ridge regression to the node features and report it beside the results.
        num_threads: of the CPU.
        capture: replay CUDA graphs of one reversible layer for all layers, on a GPU.
        check_inversion: record how exactly the reversible stack restores its input, ``max_inversion_error``.
        report_depth: write norms by layer at the start and at the end into ``depth.json``, with a picture.
        edge_precision: of the edge features on a GPU; "fp16" halves their memory.
        max_time_s: seconds after which the run is saved and stopped, as by a signal.
        quiet: show no progress.

    Returns:
        What ``results.json`` holds. Of a run that is finished already, nothing but a missing baseline is computed.

    Raises:
        RunError: if the run directory cannot be used, or a loss or gradient is not finite.
        StoppedError: after a signal or ``max_time_s``; the state is saved.
        ZooError: if the recipe does not fit its data, or these cannot be loaded.
    """
    check_world_size(recipe.train.parts_per_step, ranks.group.size)
    facts = {"recipe": recipe_digest(recipe), "options": str((capture, check_inversion, edge_precision))}
    check_same({**facts, "number of threads": str(num_threads or torch.get_num_threads())})
    chosen = session.start(device, num_threads)
    # A launcher that starts the processes again cannot know of --resume.
    resume, quiet = resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0", quiet or ranks.group.rank > 0
    options = _Options(chosen, capture, check_inversion, report_depth, edge_precision, resume, quiet, on_epoch)
    remedy = "lower model.num_layers or model.hidden_channels, or use a machine with more"
    # What follows from the labels is part of the run's recipe.
    recipe, graph = complete_recipe(recipe, graph)
    with (
        # The lock of the folder is taken first and released last, after a stopped run has saved its state.
        open_run(out, recipe, resume=resume) as run,
        stop_requests(max_time_s) as stop,
        session.oom_as_run_error(str(out), remedy),
    ):
        results = ranks.share(run.results())
        if keep_graph and graph is not None and ranks.group.rank == 0:
            graph = kept_graph(graph, run, is_new=not run.states() and results is None)
        if results is None:
            return _train(recipe, run, options, stop, graph, baseline=baseline)
        Progress(0, unit="step", quiet=quiet).line(f"{out}: already done")
        if baseline and results.baseline is None:
            graph, split = recipe_graph(recipe, graph)
            if graph_digest(graph, split) != results.data_sha256:
                raise RunError(f"{out}: the data changed since the run; a baseline on them would not compare")
            scores = linear_baseline(graph, split, recipe.metric)
            results = results.model_copy(update={"baseline": scores})
            run.write_results(results)
        return results


@dataclass(frozen=True)
class _Task:
    """A recipe and its graph, with the loss of the graph's labels and its device."""

    recipe: Recipe
    graph: Graph
    split: Split
    objective: Objective


@dataclass(frozen=True)
class _Options:
    """Options of a run that are not of its recipe, because they do not change what is learned."""

    device: torch.device
    capture: bool
    check_inversion: bool
    report_depth: bool
    edge_precision: EdgePrecision
    resume: bool
    quiet: bool
    on_epoch: Callable[[Mapping[str, float]], object] | None = None


def _train(
    recipe: Recipe, run: RunDir, options: _Options, stop: StopRequest, graph: Graph | None, *, baseline: bool
) -> RunResults:
    device, quiet = options.device, options.quiet
    spec, metric = recipe.train, f"valid_{recipe.metric}"
    selector = "valid_loss" if recipe.eval.select == "loss" else metric
    echo = Progress(0, unit="step", quiet=quiet).line
    for line in (f"run     {run.path}", *machine_lines(device)):
        echo(line)
    # The teacher is trained first, so that its graph and model are freed before those of the student are made.
    teacher_results = None if spec.distillation is None else _train_teacher(recipe, run, options, stop, graph)
    # Nothing is computed yet that could be saved, and loading data may take minutes.
    stop.at_once = True
    graph, split = recipe_graph(recipe, graph)
    data_digest = graph_digest(graph, split)
    check_same({"graph": data_digest})
    # The teacher's logits belong to nodes by their number, so both must have seen the same graph.
    if teacher_results is not None and teacher_results.data_sha256 != data_digest:
        raise RunError(f"{run.path}: the data changed since the teacher was trained; start again in another --out")
    # A metric that these labels do not define is found before hours of training.
    measure(graph, split, recipe.metric, torch.zeros(graph.num_nodes, graph.num_tasks), eval_protocol(recipe))
    # After the digest: a placed graph may hold its edge features in half precision.
    graph = place_graph(graph, device, options.edge_precision)
    teacher = None if teacher_results is None else _teacher_logits(recipe, run, graph, split, device)
    task = _Task(recipe, graph, split, Objective(spec, graph, split, device, teacher))

    # On the CPU and then moved, so that the weights are the same on every device.
    session.seed_global(spec.seed, "init")
    shape = input_shape(recipe, graph.shape)
    model = build_model(recipe.model, shape).to(device)
    if options.capture:
        capture_layers(model)
    if options.check_inversion:
        stack = getattr(model, "stack", None)
        if options.capture or not isinstance(stack, ReversibleStack | OscillatorStack) or not stack.reversible:
            raise RunError("--check-inversion: needs a model with a reversible stack, and goes without --capture")
        stack.inversion_error = 0.0
    for line in task_lines(recipe, graph, split, model):
        echo(line)
    optimizer = build_optimizer(spec.optimizer, model)
    state = RunState(run, model, optimizer, {"data": data_digest}, session.environment(device))
    resumed = state.restore()
    if options.report_depth and not resumed and ranks.group.rank == 0:
        report_depth(run, "start", model, task.objective, epoch_parts(graph, spec, 1, is_shared=False))
    # From here on there is a state to save, so a signal is answered between two steps.
    stop.at_once = False
    cursor, num_parts = state.cursor, spec.partition.num_parts

    def pause_if_asked() -> None:
        if ranks.group.size > 1:
            _agree(stop, solve_logs(model))
        # An epoch may take hours, so it is saved within too: a crash then costs minutes.
        state.save_if_due(epoch_is_done=False)
        if stop:
            path = state.save()
            place = f"epoch {cursor.epoch}, part {cursor.part}/{num_parts}"
            raise StoppedError(f"{stop.name} at {place}; saved: {path}", stop.signum)

    board = Board(run.tensorboard_path, cursor.epoch)
    num_steps = math.ceil(num_parts / spec.parts_per_step)
    done = (cursor.epoch - 1) * num_steps + math.ceil(cursor.part / spec.parts_per_step)
    with Progress(spec.num_epochs * num_steps, unit="step", quiet=quiet, done=done) as progress, closing(board):
        if resumed:
            progress.line(f"{run.path}: continues at epoch {cursor.epoch}, part {cursor.part}/{num_parts}")
        elif options.resume:
            progress.line(f"{run.path}: nothing to resume; starts at epoch 1")
        # Figures stay on the bar until newer ones take their place.
        figures: dict[str, str] = {}
        # Patience follows from the saved state alone, so that a resumed run stops at the same epoch.
        while cursor.epoch <= spec.num_epochs and not _out_of_patience(recipe, cursor.epoch, state.best):
            label = f"epoch {cursor.epoch}/{spec.num_epochs}"
            waited_s = ranks.group.waited_s
            set_learning_rate(optimizer, spec, cursor.epoch)
            start_epoch(model, cursor.epoch)
            # A resumed epoch samples the same parts again and skips those that are done.
            parts = epoch_parts(graph, spec, cursor.epoch)
            while cursor.part < len(parts):
                end = min(cursor.part + spec.parts_per_step, len(parts))
                with run_errors(run, model, f"epoch {cursor.epoch}, part {cursor.part + 1}", "train"):
                    loss = _step(state, task, parts, range(cursor.part, end))
                cursor.next_step(end, loss)
                figures["loss"] = f"{cursor.loss_sum / max(cursor.num_losses, 1):.4f}"
                progress.step(label, figures)
                pause_if_asked()

            # A run that was stopped in the evaluation has these figures in its state.
            if not cursor.record:
                loss = cursor.loss_sum / cursor.num_losses
                cursor.record = {"epoch": cursor.epoch, "step": cursor.step, "train_loss": loss, **cursor.step_figures}
                # Taken now, because solves of the evaluation would be counted among those of training.
                cursor.record = ranks.share(cursor.record | take_solve_metrics(model))
            # A copy, because a state that is saved during the evaluation must hold the figures of training alone: the
            # resumed run evaluates again and adds the others.
            record = dict(cursor.record)
            if cursor.epoch % recipe.eval.every == 0 or cursor.epoch == spec.num_epochs:
                progress.stage(f"{label} evaluating")
                with run_errors(run, model, f"epoch {cursor.epoch}, evaluation", "eval"):
                    measured, valid_loss = _measure(state, task, eval_protocol(recipe), pause_if_asked)
                record |= {f"{figure.split}_{figure.metric}": figure.value for figure in measured}
                record |= {"valid_loss": valid_loss}
                record |= {f"eval_{name}": value for name, value in take_solve_metrics(model).items()}
                record = ranks.share(record)
                best, value = state.best, record[selector]
                if best is None or (value < best.value if recipe.eval.lower_is_better else value > best.value):
                    best = BestEpoch(epoch=cursor.epoch, value=value, shape=shape)
                    state.keep_best(best)
                figures |= {name: f"{record[name]:.4f}" for name in (metric, selector)} | {"best": f"{best.value:.4f}"}
            epoch_s, memory = state.epoch_s(), state.peak_memory_bytes(device)
            record |= {"lr": optimizer.param_groups[0]["lr"], "epoch_s": round(epoch_s, 3), "peak_memory_bytes": memory}
            figures |= {"epoch_s": f"{epoch_s:.2f}", "memory": f"{memory / 2**30:.2f}GiB"}
            if ranks.group.size > 1:
                figures |= _rank_figures(epoch_s - ranks.group.waited_s + waited_s, device)
            if metric in record:
                progress.figures(label, figures)
            if ranks.group.rank == 0:
                board.add(record, cursor.epoch)
            # The log comes first: a state may lag behind it, and a resume then cuts it to the length in the state.
            state.end_epoch(record, epoch_s)
            state.save_if_due(epoch_is_done=True)
            if options.on_epoch is not None and ranks.group.rank == 0:
                # Called last: an error in it finds the epoch logged and, if it was due, saved.
                options.on_epoch(record)
            state.check_solves(spec.solve_patience)
        # The test below may be stopped too; the run is then resumed from this state and trains no step again.
        state.save()

    if options.report_depth and ranks.group.rank == 0:
        report_depth(run, "end", model, task.objective, epoch_parts(graph, spec, 1, is_shared=False))
    results = _finish(state, task, pause_if_asked, quiet=quiet)
    scores = linear_baseline(graph, split, recipe.metric) if baseline else None
    results = results.model_copy(update={"baseline": scores, "teacher": teacher_results})
    results = ranks.share(results)
    run.write_results(results)
    # Results mark the run as finished, so they are written before the picture, which can be made again.
    try:
        if ranks.group.rank == 0:
            plot(run)
    except ZooError as error:
        state.warn_once("picture", f"{error}; the run is finished, without its picture")
    return results


def _step(state: RunState, task: _Task, parts: RandomParts, indices: range) -> float | None:
    """One optimizer step on some parts of an epoch.

    Returns:
        The loss; None if no part has a train node, or the recipe says to skip the step, whose numbers are not finite.

    Raises:
        FloatingPointError: if they are not, and the recipe says to stop or every step of the epoch was like that.
    """
    cursor, spec = state.cursor, task.recipe.train
    # Seeded by the number of the step, so that no state of a generator has to be saved.
    chosen = StepParts(parts, indices, task.objective.device, (spec.seed, "dropout", cursor.step))
    # The forward pass updates statistics of batch normalization, and a step that is skipped must leave no NaN in them.
    buffers = [buffer.clone() for buffer in state.model.buffers()] if spec.on_nonfinite == "skip" else []
    try:
        loss = training_step(state.model, state.optimizer, chosen, task.objective, spec)
    except FloatingPointError as error:
        if spec.on_nonfinite == "stop" or (indices.stop == len(parts) and not cursor.num_losses):
            raise
        state.skip_step(str(error), buffers)
        return None
    stack = getattr(state.model, "stack", None)
    if loss is not None and isinstance(stack, ReversibleStack | OscillatorStack) and stack.inversion_error is not None:
        state.add_inversion_error(stack.inversion_error)
    return loss


def _agree(stop: StopRequest, logs: list[SolveLog]) -> None:
    """Let all ranks stop at the same place, and the first one count the solves of all.

    The signal may have reached one of them alone, or earlier than the others.
    """
    (own, _), *others = ranks.exchange((stop.signum if stop else 0, logs))
    stop.signum = max(own, *(signum for signum, _ in others))
    for _, more in others:
        for log, other in zip(logs, more, strict=True):
            log.merge(other) if ranks.group.rank == 0 else log.take()


def _out_of_patience(recipe: Recipe, epoch: int, best: BestEpoch | None) -> bool:
    """True if too many evaluations before this epoch have brought nothing better."""
    if best is None or not recipe.train.patience:
        return False
    # Counted in evaluations, since epochs between two of them cannot bring a better value.
    every = recipe.eval.every
    return (epoch - 1) // every - best.epoch // every >= recipe.train.patience


def _train_teacher(
    recipe: Recipe, run: RunDir, options: _Options, stop: StopRequest, graph: Graph | None
) -> RunResults:
    """Train the recipe without its distillation in a run directory of its own, unless that is done already."""
    teacher = recipe.model_copy(update={"train": recipe.train.model_copy(update={"distillation": None})})
    with open_run(run.teacher_path, teacher, resume=options.resume) as teacher_run:
        results = ranks.share(teacher_run.results())
        if results is not None:
            return results
        Progress(0, unit="step", quiet=options.quiet).line(f"{teacher_run.path}: the teacher comes first")
        # A log of the run is about the student.
        return _train(teacher, teacher_run, replace(options, on_epoch=None), stop, graph, baseline=False)


def _teacher_logits(recipe: Recipe, run: RunDir, graph: Graph, split: Split, device: torch.device) -> Tensor:
    """[N, T] predictions of the teacher's best weights, as it validates; they are not saved, as these never change."""
    spec, protocol = recipe.train, eval_protocol(recipe)
    teacher = build_model(recipe.model, input_shape(recipe, graph.shape))
    teacher.load_state_dict(_best_weights(RunDir(run.teacher_path) if ranks.group.rank == 0 else run))
    known = KnownLabels.of(spec, graph, split, device)
    with run_errors(run, teacher, "predictions of the teacher", "eval"):
        return predict(teacher.to(device), graph, protocol, device=device, precision=spec.precision, known=known)


def _best_weights(run: RunDir) -> dict[str, Tensor]:
    """The best weights of a run, on all ranks."""
    best = run.best()
    if best is None and ranks.group.rank == 0:
        raise RunError(f"{run.path}: best.safetensors is missing; start again in another --out")
    return ranks.share({} if best is None else best.tensors)


def _rank_figures(busy_s: float, device: torch.device) -> dict[str, str]:
    """Memory of all ranks, and the rank that the others waited for."""
    told = ranks.exchange([peak(device), busy_s])
    slowest = max(range(len(told)), key=lambda rank: told[rank][1])
    memory = "+".join(f"{size / 2**30:.2f}" for size, _ in told)
    return {"memory": f"{memory}GiB", "slowest": f"rank {slowest}, busy {told[slowest][1]:.2f}s"}


def _measure(
    state: RunState, task: _Task, protocol: Protocol, on_part: Callable[[], None]
) -> tuple[list[Measured], float]:
    """Figures of all splits, and the loss on the valid nodes; an evaluation that was stopped goes on where it was.

    Raises:
        FloatingPointError: if a prediction or the loss is not finite.
    """
    objective, precision = task.objective, task.recipe.train.precision
    nothing = Partial(torch.zeros(task.graph.num_nodes, task.graph.num_tasks))
    logits = predict(
        state.model,
        task.graph,
        protocol,
        device=objective.device,
        precision=precision,
        known=objective.known,
        on_part=on_part,
        partial=state.partials.setdefault(protocol.purpose, nothing),
    )
    # A metric would accept NaN without an error: argmax gives some class for it.
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("some predictions are NaN or infinite")
    loss = objective.valid_loss(logits)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss on the valid nodes is {loss}")
    return measure(task.graph, task.split, task.recipe.metric, logits, protocol), loss


def _finish(state: RunState, task: _Task, pause_if_asked: Callable[[], None], *, quiet: bool) -> RunResults:
    """Evaluate the best weights as the recipe's test says, and also as it validates if that is something else."""
    run, model, recipe, best = state.run, state.model, task.recipe, state.best
    state.use_best_weights(_best_weights(run))
    assert best is not None
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
            with run_errors(run, model, f"epoch {best.epoch}, evaluation", protocol.purpose):
                figures += _measure(state, task, protocol, on_part)[0]
    inversion_errors = [r["max_inversion_error"] for r in run.metrics() if "max_inversion_error" in r]
    return RunResults(
        name=recipe.name,
        results=tuple(figures),
        best_epoch=best.epoch,
        num_epochs=state.cursor.epoch - 1,
        num_steps=state.cursor.step,
        num_parameters=sum(p.numel() for p in model.parameters()),
        train_s=round(state.cursor.train_s, 3),
        peak_memory_bytes=state.peak_memory_bytes(task.objective.device),
        max_inversion_error=max(inversion_errors, default=None),
        data_sha256=state.identity["data"],
        data_is_synthetic=is_synthetic(recipe, task.graph),
        environment=state.environment,
    )
