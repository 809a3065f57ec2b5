"""Training and measuring in processes of their own, one for each device that is named.

A worker reads requests from stdin and writes an :class:`Answer` to each to stdout, both a line of JSON. A warm one
stays for the next request, which saves the seconds that imports take; where time and memory must be those of one
model alone, each request gets a new one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from zoo.errors import OutOfMemoryError, RunError, ZooError
from zoo.models.factory import build_model
from zoo.spec.base import Spec
from zoo.spec.recipe import Recipe
from zoo.spec.shape import input_shape
from zoo.workflows import session
from zoo.workflows.graphs import complete_recipe, recipe_graph
from zoo.workflows.load import Located, load_located
from zoo.workflows.memory import reset_peak
from zoo.workflows.options import EdgePrecision, TrainOptions
from zoo.workflows.progress import Progress
from zoo.workflows.session import StopRequest
from zoo.workflows.step_cost import NUM_STEPS, measure_training, random_graph
from zoo.workflows.train import train

_POLL_S = 0.05


class TrainRequest(TrainOptions):
    """Train a recipe, or continue its run in a folder, with the options of any run."""

    task: Literal["train"] = "train"
    recipe: Recipe
    folder: str


class MeasureRequest(Spec):
    """Measure training steps.

    Attributes:
        folder: a run directory or bundle that holds the model; None: the recipe's model with fresh weights.
        graph_size: nodes and edges of a random graph in place of the recipe's data.
        num_steps: steps that are timed.
        capture, edge_precision, device, num_threads: as of TrainOptions.
    """

    task: Literal["measure"] = "measure"
    recipe: Recipe
    folder: str | None = None
    graph_size: tuple[int, int] | None = None
    num_steps: int = NUM_STEPS
    capture: bool = False
    edge_precision: EdgePrecision = "fp32"
    device: str | None = None
    num_threads: int | None = None


Request = Annotated[TrainRequest | MeasureRequest, Field(discriminator="task")]


@dataclass(frozen=True)
class Task:
    """Something for a worker to do.

    Attributes:
        label: names the task; begins its error.
        request: what the worker reads.
        model: begins its warnings, each of which is shown once for a model; empty: the label.
        module: the worker, run as ``python -m MODULE``; it calls :func:`serve`.
    """

    label: str
    request: Spec
    model: str = ""
    module: str = "zoo.workflows.worker"


class Answer(Spec):
    """The answer of a worker: the result of the work or, in one line, why it was not done, and its warnings."""

    result: dict[str, Any] | None = None
    error: str = ""
    is_out_of_memory: bool = False
    warnings: tuple[str, ...] = ()


def serve(work: Callable[[str], dict[str, Any]]) -> None:
    """Answer each request on stdin, JSON text, with what ``work`` makes of it; a ZooError becomes its error."""
    answers = sys.stdout
    for request in sys.stdin:
        messages: list[str] = []
        result, fault = None, None
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            # The parent shows them; here they would be lost in stderr.
            warnings.showwarning = lambda message, *_args, _into=messages, **_options: _into.append(str(message))
            try:
                result = work(request)
            except ZooError as error:
                fault = error
        answer = Answer(
            result=result,
            error="" if fault is None else " ".join(str(fault).split("\n")),
            is_out_of_memory=isinstance(fault, OutOfMemoryError),
            warnings=tuple(dict.fromkeys(messages)),
        )
        print(answer.model_dump_json(), file=answers, flush=True)


def run_tasks(
    tasks: Iterable[Task], *, devices: Sequence[str], warm: bool = False, stop: StopRequest, progress: Progress
) -> Iterator[tuple[Task, dict[str, Any] | RunError]]:
    """Run tasks in order, one at a time on each device.

    When a stop is asked for, SIGTERM goes to the processes that run, which save their state; no further task is
    started. The caller looks at ``stop`` afterwards. A caller that leaves the loop early stops the tasks that still
    run.

    Args:
        tasks: what to do; all by the same module. The request's ``device`` is set to the one that is free.
        devices: one process runs on each; named twice, a device gets two.
        warm: a process stays for the next task, unless one has failed in it.
        stop: set by a signal.
        progress: shows which task begins, and the warnings.

    Yields:
        A task that ended, and its result or why it failed; none of those that failed after a stop.
    """
    waiting, free, running = deque(tasks), [_Process(device) for device in devices], list[_Process]()
    passed_on = False
    try:
        # After a stop the running processes are still waited for, since they are saving their states.
        while running or (waiting and not stop):
            while waiting and free and not stop:
                progress.stage(waiting[0].label)
                running.append(free.pop(0))
                running[-1].start(waiting.popleft(), is_last=not warm)
            if stop and not passed_on:
                passed_on = True
                for process in running:
                    # Never the signal itself: a shell that starts this process in the background lets all below it
                    # ignore SIGINT, and the run would go on to its end.
                    process.signal(signal.SIGTERM)
            for process in running.copy():
                if (answer := process.poll()) is None:
                    continue
                running.remove(process)
                task, error = process.task, process.error(answer)
                if error is not None or not warm:
                    # What a failure leaves in memory must not harm the next task.
                    process.close()
                free.append(process)
                for warning in answer.warnings:
                    progress.warning(task.model or task.label, warning)
                if error is None:
                    yield task, answer.result or {}
                elif not stop:
                    yield task, error
            # Polled, because no portable call waits for the first of several processes to end.
            time.sleep(_POLL_S)
    except BaseException as error:
        for process in running:
            # A second Ctrl-C does not wait for a state to be saved; the one before is whole.
            process.signal(signal.SIGKILL if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
        raise
    finally:
        for process in (*free, *running):
            process.close()


@dataclass
class _Process:
    """A process on a device, started for its first task and for the next one after :meth:`close`.

    Files take what it prints, since a pipe that is not read would fill up and block it.
    """

    device: str
    task: Task = field(init=False)
    _popen: subprocess.Popen[bytes] | None = None

    def start(self, task: Task, *, is_last: bool) -> None:
        """Hand over a task."""
        self.task = task
        if self._popen is None:
            # Unnamed files: the system removes them once no process has them open.
            self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
            # A session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on once.
            self._popen = subprocess.Popen(
                [sys.executable, "-m", task.module],
                stdin=subprocess.PIPE,
                stdout=self._out,
                stderr=self._err,
                start_new_session=True,
            )
        # The child moves the common position of a file, so that everything is read by place.
        self._out_start, self._err_start = _size(self._out), _size(self._err)
        request = task.request.model_copy(update={"device": self.device})
        stdin = self._popen.stdin
        assert stdin is not None
        # One that was killed while it waited is noticed by poll().
        with suppress(BrokenPipeError):
            stdin.write(request.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n")
            stdin.flush()
            if is_last:
                stdin.close()

    def poll(self) -> Answer | None:
        """The answer, empty if the process ended before it could give one; None while it works."""
        assert self._popen is not None
        # Asked first: an answer that is written after the question is found by the next one.
        has_ended = self._popen.poll() is not None
        output = _text(self._out, self._out_start)
        if not output.endswith("\n"):
            # A process that was killed has printed nothing, or only the beginning of an answer.
            return Answer() if has_ended else None
        try:
            return Answer.model_validate_json(output)
        except ValidationError:
            return Answer()

    def error(self, answer: Answer) -> RunError | None:
        """Why the task failed, if it did."""
        assert self._popen is not None
        code, label = self._popen.poll(), self.task.label
        if answer.result is not None:
            return None
        if answer.error:
            return (OutOfMemoryError if answer.is_out_of_memory else RunError)(f"{label}: {answer.error}")
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            # The way in which Linux ends a process when the machine is out of memory.
            kind, guess = (OutOfMemoryError, ", out of memory?") if name == "SIGKILL" else (RunError, "")
            return kind(f"{label}: stopped by {name}{guess}")
        lines = [line for line in _text(self._err, self._err_start).splitlines() if line.strip()]
        return RunError(f"{label}: {[f'exit code {code}', *lines][-1]}")

    def signal(self, signum: int) -> None:
        """Send a signal, if the process is there."""
        if self._popen is not None:
            self._popen.send_signal(signum)

    def close(self) -> None:
        """Let the process end, and wait until it has."""
        if self._popen is None:
            return
        with self._out, self._err:
            if self._popen.stdin is not None:
                with suppress(BrokenPipeError):
                    self._popen.stdin.close()
            self._popen.wait()
        self._popen = None


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _text(file: IO[bytes], start: int) -> str:
    return os.pread(file.fileno(), _size(file) - start, start).decode(errors="replace")


def work(request: TrainRequest | MeasureRequest) -> dict[str, Any]:
    """Do what a request asks for: the content of ``results.json``, or of a StepCost."""
    recipe, num_threads = request.recipe, request.num_threads
    if isinstance(request, TrainRequest):
        # A warm process has had other runs; where the peak cannot be reset, it counts theirs too.
        with suppress(RunError):
            reset_peak(session.start(request.device, num_threads))
        options = request.model_dump(exclude={"task", "recipe", "folder", "quiet"})
        return train(recipe, Path(request.folder), resume=True, quiet=True, **options).to_json()
    device = session.start(request.device, num_threads)
    # Memory may run out before the first step, while the graph or the model is made.
    with session.oom_as_run_error(recipe.name, "lower model.num_layers or use a machine with more"):
        if request.graph_size is None:
            recipe, loaded = complete_recipe(recipe)
            graph, split = recipe_graph(recipe, loaded)
        else:
            graph, split = random_graph(recipe, *request.graph_size)
        if request.folder is None:
            # As in training, so that the weights are those of the first epoch.
            session.seed_global(recipe.train.seed, "init")
            model = build_model(recipe.model, input_shape(recipe, graph.shape))
        else:
            model = load_located(Located(Path(request.folder)))
        options = request.model_dump(include={"num_steps", "capture", "edge_precision"})
        cost = measure_training(model, recipe, graph, split, device, **options)
    return cost.model_dump(mode="json")


if __name__ == "__main__":
    serve(lambda text: work(TypeAdapter(Request).validate_json(text)))
