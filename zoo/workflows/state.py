"""The state of a training run: its place, weights and optimizer, saved and restored."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import RunError, ZooWarning
from zoo.spec.results import Environment
from zoo.workflows.run_dir import RunDir, Saved

# A save at the end of an epoch may cost this share of the time since the last one.
_MAX_SHARE = 0.05
# Within an epoch a state is saved this often.
_PERIOD_S = 600.0


@dataclass
class Cursor:
    """The place in a run.

    Attributes:
        epoch: the current epoch, from 1.
        part: how many parts of it are done.
        step: optimizer steps done in all.
        loss_sum: over the steps of the current epoch.
        num_losses: how many of them there were.
        log_bytes: length of the log when the current epoch began.
        train_s: seconds spent in earlier epochs, all processes together.
    """

    epoch: int = 1
    part: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_losses: int = 0
    log_bytes: int = 0
    train_s: float = 0.0

    def next_part(self, loss: float | None) -> None:
        """Move on to the next part, given the loss of this one, or None if it had no train nodes."""
        self.part += 1
        if loss is not None:
            self.step += 1
            self.loss_sum += loss
            self.num_losses += 1

    def next_epoch(self, log_bytes: int, epoch_s: float) -> None:
        """Move on to the next epoch, once this one is logged."""
        self.epoch += 1
        self.part, self.loss_sum, self.num_losses = 0, 0.0, 0
        self.log_bytes = log_bytes
        self.train_s += epoch_s


@dataclass
class RunState:
    """Everything that a resume needs.

    Attributes:
        run: where it is saved.
        model: its weights and buffers.
        optimizer: its state, saved under the names of the parameters.
        identity: what must be the same when the run goes on.
        environment: what had better be the same.
        cursor: the place in the run.
    """

    run: RunDir
    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: dict[str, str]
    environment: Environment
    cursor: Cursor = field(default_factory=Cursor)
    _saved_at: float = field(default_factory=time.monotonic)
    _save_s: float = 0.0

    def restore(self) -> bool:
        """Continue from the newest whole state, if there is one.

        Returns:
            Whether there was one. If not, the log of a process that was stopped before its first save is emptied.

        Raises:
            RunError: if it was saved by a run on other data, or does not fit the model.
        """
        saved = self.run.latest_state()
        if saved is not None:
            self._load(saved)
        self.run.truncate_metrics(self.cursor.log_bytes)
        return saved is not None

    def save(self) -> Path:
        """Save the state now.

        Raises:
            RunError: if it cannot be stored; earlier states are still there.
        """
        started = time.monotonic()
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        scalars: dict[str, dict[str, float]] = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{key}/{name}"] = value
                elif value is not None:
                    scalars.setdefault(name, {})[key] = value
        tree = {
            "cursor": asdict(self.cursor),
            "identity": self.identity,
            "environment": self.environment.model_dump(),
            "optimizer": scalars,
        }
        path = self.run.write_state(self.cursor.step, tensors, tree)
        self._saved_at = time.monotonic()
        self._save_s = self._saved_at - started
        return path

    def save_if_due(self, *, epoch_is_done: bool) -> None:
        """Save the state if that is cheap beside the work done since the last time, or if much time has passed.

        A full disk is no reason to lose the run: it is reported, and tried again later.
        """
        since_s = time.monotonic() - self._saved_at
        if not (since_s > _PERIOD_S or (epoch_is_done and since_s * _MAX_SHARE >= self._save_s)):
            return
        try:
            self.save()
        except RunError as error:
            warnings.warn(f"{error}; training goes on, the state is saved later", ZooWarning, stacklevel=2)
            self._saved_at = time.monotonic()

    def _load(self, saved: Saved) -> None:
        tree = saved.tree
        for key, value in self.identity.items():
            if tree["identity"].get(key) != value:
                raise RunError(f"{self.run.path}: cannot continue: the {key} changed since the state was saved")
        for key, fact in self.environment.model_dump().items():
            before = tree["environment"].get(key)
            if before != fact:
                message = f"{key} was {before} and is now {fact}: results may differ slightly"
                warnings.warn(message, ZooWarning, stacklevel=4)
        try:
            weights = {n.removeprefix("model/"): t for n, t in saved.tensors.items() if n.startswith("model/")}
            self.model.load_state_dict(weights)
            self._load_optimizer(saved.tensors, tree["optimizer"])
            self.cursor = Cursor(**{item.name: tree["cursor"][item.name] for item in fields(Cursor)})
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"{self.run.path}: the saved state does not fit the model: {error}") from error

    def _load_optimizer(self, tensors: dict[str, Tensor], scalars: dict[str, dict[str, float]]) -> None:
        state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in scalars.items()}
        for place, tensor in tensors.items():
            kind, _, rest = place.partition("/")
            if kind == "optimizer":
                key, _, name = rest.partition("/")
                state.setdefault(name, {})[key] = tensor
        # An optimizer numbers its parameters; names outlive a change of their order.
        number = {name: index for index, (name, _) in enumerate(self.model.named_parameters())}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {number[n]: s for n, s in state.items()}, "param_groups": groups})
