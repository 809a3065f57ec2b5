"""The state of a training run: its place, weights and optimizer, saved and restored."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import RunError, ZooWarning
from zoo.layers.equilibrium import solve_logs
from zoo.layers.oscillator import OscillatorStack
from zoo.layers.reversible import ReversibleStack
from zoo.spec.recipe import Recipe
from zoo.spec.results import Environment, Measured, RunResults
from zoo.spec.shape import GraphShape
from zoo.tensor_file import Saved, first_nonfinite
from zoo.workflows import memory, ranks
from zoo.workflows.evaluate import Partial
from zoo.workflows.graphs import is_synthetic
from zoo.workflows.objective import Objective
from zoo.workflows.progress import rank_costs
from zoo.workflows.run_dir import BestEpoch, RunDir
from zoo.workflows.session import StoppedError, StopRequest
from zoo.workflows.step import DivergedError, diverged, report_norms

# A save may cost this share of the time since the last one, so that all of them take less than 1 % of a run.
_MAX_SHARE = 0.005
# Within an epoch a state is saved this often, or less often where a save takes longer than the share of that.
_PERIOD_S = 600.0
# Blocks compute with a rounding error of 6e-8; an input that is restored less exactly than this changes gradients more.
_MAX_INVERSION_ERROR = 1e-6


@dataclass
class Cursor:
    """The place in a run.

    Attributes:
        epoch: the current epoch, from 1; part: how many parts of it are done.
        step: optimizer steps done in all.
        loss_sum, num_losses: over the steps of the current epoch, and how many there were.
        log_bytes: length of the log when the current epoch began.
        train_s: seconds spent in earlier epochs, all processes together.
        epoch_s: seconds spent in the current epoch by earlier processes.
        peak_memory_bytes: the most that any process used.
        step_figures: figures of the steps of the current epoch so far.
        record: figures of the current epoch, once its last part is done.
        num_unsolved_epochs: the latest epochs in a row in whose steps no solve of an equilibrium converged.
    """

    epoch: int = 1
    part: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_losses: int = 0
    log_bytes: int = 0
    train_s: float = 0.0
    epoch_s: float = 0.0
    peak_memory_bytes: int = 0
    step_figures: dict[str, float] = field(default_factory=dict)
    record: dict[str, float] = field(default_factory=dict)
    num_unsolved_epochs: int = 0


@dataclass
class RunState:
    """Everything that a resume needs.

    Attributes:
        run: where it is saved.
        optimizer: its state is saved under the names of the parameters.
        identity: what must be the same when the run goes on.
        environment: what had better be the same.
        partials: logits so far of evaluations that are not complete, by purpose.
    """

    recipe: Recipe
    run: RunDir
    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, str]
    environment: Environment
    cursor: Cursor = field(default_factory=Cursor)
    best: BestEpoch | None = None
    partials: dict[str, Partial] = field(default_factory=dict)
    # What waits for the next state, or did not fit onto a full disk: the best weights and lines of the log.
    _unsaved_best: dict[str, Tensor] = field(default_factory=dict)
    _unsaved_lines: list[dict[str, float]] = field(default_factory=list)
    _best_sha256: str | None = None
    # In place of the model's weights, once it holds the best ones.
    _last_weights: dict[str, Tensor] | None = None
    _warned: set[str] = field(default_factory=set)
    _began: float = field(default_factory=ranks.group.busy_clock)
    _started: float = field(default_factory=time.monotonic)
    _saved_at: float = field(default_factory=time.monotonic)
    _save_s: float = 0.0

    def restore(self) -> bool:
        """Continue from the newest state that can be continued, and tell if there is one.

        Else the log of a process that was stopped before its first save is emptied.

        Raises:
            RunError: if it was saved by a run on other data, or does not fit the model.
        """
        saved = ranks.share(self.run.latest_state())
        if saved is not None:
            self._load(saved)
            # A later best epoch than the state's was found before the process was killed, and will be found again.
            best = self.run.best()
            if best is not None:
                self.best, self._best_sha256 = best.epoch, best.sha256
            self.best = ranks.share(self.best)
        # Later lines are of epochs that this process trains again.
        self.run.append_metrics([], self.cursor.log_bytes)
        self._started = time.monotonic()
        return saved is not None

    def check_inversion(self, *, is_captured: bool) -> None:
        """Let the reversible stack note how exactly it restores its input; a RunError if there is none."""
        stack = getattr(self.model, "stack", None)
        if is_captured or not isinstance(stack, ReversibleStack | OscillatorStack) or not stack.reversible:
            raise RunError("--check-inversion: needs a model with a reversible stack, and goes without --capture")
        stack.inversion_error = 0.0

    @contextmanager
    def step_errors(self, *, may_skip: bool) -> Iterator[None]:
        """Skip a step whose numbers are not finite, if ``may_skip``: count it, and report the first."""
        # The forward pass updates statistics of batch normalization, and a step that is skipped must leave no NaN.
        buffers = [buffer.clone() for buffer in self.model.buffers()] if may_skip else []
        try:
            yield
        except FloatingPointError as error:
            if not may_skip:
                raise
            with torch.no_grad():
                for buffer, value in zip(self.model.buffers(), buffers, strict=True):
                    buffer.copy_(value)
            figures, place = self.cursor.step_figures, f"epoch {self.cursor.epoch}, part {self.cursor.part + 1}"
            if self.warn_once("skipped", f"{place}: {error}; this step is skipped, later ones are only counted"):
                report_norms(self.run, place, str(error), self.model)
            figures["num_skipped_steps"] = figures.get("num_skipped_steps", 0) + 1

    def end_step(self, part: int, loss: float | None) -> None:
        """Move on, with so many parts of the epoch done, given the loss of the step, or None if there was no step."""
        cursor = self.cursor
        cursor.part = part
        if loss is None:
            return
        cursor.step += 1
        cursor.loss_sum += loss
        cursor.num_losses += 1
        error = getattr(getattr(self.model, "stack", None), "inversion_error", None)
        if error is not None:
            self.add_inversion_error(error)

    def add_inversion_error(self, error: float) -> None:
        """Note how exactly the reversible stack restored its input in a step, and warn if its gradients suffer."""
        figures = self.cursor.step_figures
        figures["max_inversion_error"] = max(error, figures.get("max_inversion_error", 0.0))
        if error > _MAX_INVERSION_ERROR:
            text = f"the reversible stack restored its input only to {error:.1g} of its largest entry"
            self.warn_once("inversion", f"{text}, so gradients are inexact; set model.norm or lower train.optimizer.lr")

    def keep_best(self, value: float, shape: GraphShape) -> BestEpoch:
        """The best epoch so far, with the value of the current one; its weights are stored with the next state.

        Raises:
            DivergedError: if some are not finite; the best ones so far are then still there.
        """
        best, lower = self.best, self.recipe.eval.lower_is_better
        if best is not None and not (value < best.value if lower else value > best.value):
            return best
        weights = self.model.state_dict()
        # These may be the last good weights of a run that diverges, so bad ones must not replace them.
        self._check_finite({f"model/{name}": tensor for name, tensor in weights.items()})
        self.best = BestEpoch(epoch=self.cursor.epoch, value=value, shape=shape)
        # A copy, because the optimizer changes the weights in place. To store them at each better validation would take
        # a short epoch longer than the epoch itself.
        if ranks.group.rank == 0:
            self._unsaved_best = _copied(weights)
        return self.best

    def is_out_of_patience(self) -> bool:
        """True if too many evaluations before the current epoch have brought nothing better."""
        every, patience = self.recipe.eval.every, self.recipe.train.patience
        if self.best is None or not patience:
            return False
        # Counted in evaluations, since epochs between two of them cannot bring a better value.
        return (self.cursor.epoch - 1) // every - self.best.epoch // every >= patience

    def check_solves(self) -> None:
        """Raise a RunError if no forward solve has converged in as many epochs as the recipe says, if it does."""
        patience = self.recipe.train.solve_patience
        if patience and self.cursor.num_unsolved_epochs >= patience:
            place = f"{self.run.path}: epoch {self.cursor.epoch - 1}"
            advice = "raise model.solver.max_iters or lower train.optimizer.lr in another --out"
            raise RunError(f"{place}: no forward solve converged in {patience} epochs in a row; {advice}")

    def end_epoch(self, record: dict[str, float], epoch_s: float) -> None:
        """Log the figures of the current epoch and move on to the next."""
        self._unsaved_lines.append(record)
        try:
            self._store_lines()
        except RunError as error:
            self.warn_once("unsaved", f"{error}; training goes on, it is stored later")
        # They are predictions of the present weights, which the next epoch changes.
        self.partials.clear()
        cursor = self.cursor
        # Epochs of warm-up solve nothing and do not count.
        if num_solves := cursor.record.get("num_forward_solves", 0):
            is_unsolved = cursor.record["num_forward_unconverged"] == num_solves
            cursor.num_unsolved_epochs = cursor.num_unsolved_epochs + 1 if is_unsolved else 0
        cursor.epoch += 1
        cursor.part, cursor.loss_sum, cursor.num_losses, cursor.epoch_s = 0, 0.0, 0, 0.0
        cursor.step_figures, cursor.record = {}, {}
        cursor.train_s += epoch_s
        self._started = time.monotonic()

    def epoch_s(self) -> float:
        """Seconds spent in the current epoch, those of earlier processes included."""
        return self.cursor.epoch_s + time.monotonic() - self._started

    def peak_memory_bytes(self, device: torch.device) -> int:
        """The most memory that any process of this run has used."""
        self.cursor.peak_memory_bytes = max(self.cursor.peak_memory_bytes, *ranks.exchange(memory.peak(device)))
        return self.cursor.peak_memory_bytes

    def use_best_weights(self) -> BestEpoch:
        """Give the model the best weights; states that are saved from now on keep those of the last step."""
        self._last_weights = _copied(self.model.state_dict())
        self.model.load_state_dict(best_weights(self.run))
        assert self.best is not None
        return self.best

    def results(self, figures: Sequence[Measured], objective: Objective, teacher: RunResults | None) -> RunResults:
        """The content of ``results.json``, given the figures of the best weights."""
        assert self.best is not None
        inversion_errors = [r["max_inversion_error"] for r in self.run.metrics() if "max_inversion_error" in r]
        costs: Any = rank_costs(self._began, objective.device) if ranks.group.size > 1 else {}
        return RunResults(
            name=self.recipe.name,
            results=tuple(figures),
            best_epoch=self.best.epoch,
            num_epochs=self.cursor.epoch - 1,
            num_steps=self.cursor.step,
            num_parameters=sum(p.numel() for p in self.model.parameters()),
            train_s=round(self.cursor.train_s, 3),
            peak_memory_bytes=self.peak_memory_bytes(objective.device),
            max_inversion_error=max(inversion_errors, default=None),
            data_sha256=self.identity["data"],
            data_is_synthetic=is_synthetic(self.recipe, objective.graph),
            environment=self.environment,
            teacher=teacher,
            **costs,
        )

    def pause_if_asked(self, stop: StopRequest) -> None:
        """Save the state if that is due; if a stop is asked for, save it and raise a StoppedError."""
        must_stop = self._agree(stop) if ranks.group.size > 1 else bool(stop)
        # An epoch may take hours, so it is saved within too: a crash then costs minutes.
        self.save_if_due(epoch_is_done=False)
        if must_stop:
            path, num_parts = self.save(), self.recipe.train.partition.num_parts
            place = f"epoch {self.cursor.epoch}, part {self.cursor.part}/{num_parts}"
            raise StoppedError(f"{stop.name} at {place}; saved: {path}", stop.signum)

    def _agree(self, stop: StopRequest) -> bool:
        """Tell all ranks alike if one of them is asked to stop, and let the first one count the solves of all.

        A signal that comes while they ask each other is found the next time.
        """
        logs = solve_logs(self.model)
        (own, _), *others = ranks.exchange((stop.signum if stop else 0, logs))
        for _, more in others:
            for log, other in zip(logs, more, strict=True):
                log.merge(other) if ranks.group.rank == 0 else log.take()
        if signum := max(own, *(signum for signum, _ in others)):
            stop.signum = signum
        return signum != 0

    def save_if_due(self, *, epoch_is_done: bool) -> None:
        """Save the state if that is cheap beside the work done since the last time.

        A full disk is no reason to lose the run: it is reported, and tried again later. Numbers that are not finite are
        one.
        """
        started = time.monotonic()
        since_s = started - self._saved_at
        if since_s * _MAX_SHARE < self._save_s or (since_s < _PERIOD_S and not epoch_is_done):
            return
        try:
            self.save()
        except DivergedError:
            raise
        except RunError as error:
            self.warn_once("unsaved", f"{error}; training goes on, it is stored later")
        # Also of a save that failed: a full disk must not be tried more often than one with room.
        self._saved_at = time.monotonic()
        self._save_s = self._saved_at - started

    def save(self) -> Path:
        """Save the state now, and before it all that it relies on; if that fails, earlier states are still there.

        Raises:
            RunError: if it cannot be stored.
            DivergedError: if some of its numbers are not finite.
        """
        # The best weights and the log come before the state that names them. A crash in between leaves an older state
        # with newer files, which restore() accepts.
        if self._unsaved_best and self.best is not None:
            self._best_sha256 = self.run.write_best(self.best, self._unsaved_best)
            self._unsaved_best = {}
        self._store_lines()
        is_training = self._last_weights is None
        # During the test the model holds the best weights, but a run that gets more epochs continues from the last
        # ones.
        weights = self._last_weights or self.model.state_dict()
        tensors = {f"model/{name}": tensor for name, tensor in weights.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                # SGD without momentum holds None.
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{key}/{name}"] = value
        # Checked before it is written: only two states are kept, and a bad one would push out a good one.
        self._check_finite(tensors)
        tensors |= {f"evaluation/{name}": partial.total for name, partial in self.partials.items()}
        tree = {
            "cursor": {**asdict(self.cursor), "epoch_s": self.epoch_s() if is_training else 0.0},
            "identity": self.identity,
            "environment": self.environment.model_dump(),
            "best": self._best_sha256,
            "partials": {name: partial.num_done for name, partial in self.partials.items()},
            "solves": [asdict(log) for log in solve_logs(self.model)],
        }
        path = self.run.write_state(self.cursor.step, tensors, tree)
        # The next full disk is worth a word again.
        self._warned.discard("unsaved")
        return path

    def _store_lines(self) -> None:
        self.cursor.log_bytes = self.run.append_metrics(self._unsaved_lines, self.cursor.log_bytes)
        self._unsaved_lines.clear()

    def warn_once(self, kind: str, text: str) -> bool:
        """Warn unless this process has warned of the same kind of thing, and tell if it did."""
        if kind in self._warned:
            return False
        self._warned.add(kind)
        warnings.warn(text, ZooWarning, stacklevel=3)
        return True

    def _check_finite(self, tensors: dict[str, Tensor]) -> None:
        name = first_nonfinite(tensors)
        if name is not None:
            place = f"epoch {self.cursor.epoch}, part {self.cursor.part}"
            raise diverged(self.run, place, f"{name} is NaN or infinite", self.model)

    def _load(self, saved: Saved) -> None:
        tree = saved.tree
        for key, value in self.identity.items():
            if tree["identity"].get(key) != value:
                raise RunError(f"{self.run.path}: cannot continue: the {key} changed since the state was saved")
        # Another machine or version may round differently. The run may go on, but its results need this remark.
        for key, fact in self.environment.model_dump().items():
            before = tree["environment"].get(key)
            if before != fact:
                message = f"{key} was {before} and is now {fact}: results may differ slightly"
                warnings.warn(message, ZooWarning, stacklevel=4)
        try:
            weights = {n.removeprefix("model/"): t for n, t in saved.tensors.items() if n.startswith("model/")}
            self.model.load_state_dict(weights)
            self._load_optimizer(saved.tensors)
            # States of earlier versions lack the keys that have come since.
            self.cursor = Cursor(**{f.name: v for f in fields(Cursor) if (v := tree["cursor"].get(f.name)) is not None})
            for name, num_done in tree.get("partials", {}).items():
                total = saved.tensors[f"evaluation/{name}"]
                self.partials[name] = Partial(total if ranks.group.rank == 0 else total[:0].clone(), num_done)
            # Earlier versions saved no figures of solves; the list is then empty and nothing is restored.
            for log, figures in zip(solve_logs(self.model), tree.get("solves", []), strict=False):
                vars(log).update(figures)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{self.run.path}: the saved state does not fit the model: {reason}") from error

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[str, dict[str, Tensor]] = {}
        for place, tensor in tensors.items():
            kind, _, rest = place.partition("/")
            if kind == "optimizer":
                key, _, name = rest.partition("/")
                state.setdefault(name, {})[key] = tensor
        # An optimizer numbers its parameters; names outlive a change of their order.
        number = {name: index for index, (name, _) in enumerate(self.model.named_parameters())}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {number[n]: s for n, s in state.items()}, "param_groups": groups})


def best_weights(run: RunDir) -> dict[str, Tensor]:
    """The best weights of a run, on all ranks; a RunError if they are gone."""
    best = run.best()
    if best is None and ranks.group.rank == 0:
        raise RunError(f"{run.path}: best.safetensors is missing; start again in another --out")
    return ranks.share({} if best is None else best.tensors)


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
