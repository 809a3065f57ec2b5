"""Training and measuring in processes of their own, so that time and memory are those of one model alone.

A worker reads one request from stdin and writes one :class:`Answer` to stdout, both JSON.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from zoo.errors import OutOfMemoryError, RunError, ZooError
from zoo.models.factory import build_model
from zoo.spec.base import Spec
from zoo.spec.recipe import Recipe
from zoo.spec.shape import input_shape
from zoo.workflows import session
from zoo.workflows.graphs import EdgePrecision, complete_recipe, recipe_graph
from zoo.workflows.load import Located, load_located
from zoo.workflows.progress import Progress
from zoo.workflows.session import StopRequest
from zoo.workflows.step_cost import NUM_STEPS, measure_training, random_graph
from zoo.workflows.train import train

_POLL_S = 0.05


class TrainRequest(Spec):
    """Train a recipe, or continue its run.

    Attributes:
        task: tells requests apart.
        recipe: what to train.
        folder: the run directory.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        num_threads: of the CPU; None: as PyTorch chooses.
    """

    task: Literal["train"] = "train"
    recipe: Recipe
    folder: str
    device: str
    num_threads: int | None = None


class MeasureRequest(Spec):
    """Measure training steps.

    Attributes:
        task: tells requests apart.
        recipe: its data, and how it trains.
        folder: a run directory or bundle that holds the model; None: the recipe's model with fresh weights.
        graph_size: nodes and edges of a random graph in place of the recipe's data.
        num_steps: steps that are timed.
        capture: replay CUDA graphs of one layer, on a GPU.
        edge_precision: of the edge features on a GPU.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        num_threads: of the CPU; None: as PyTorch chooses.
    """

    task: Literal["measure"] = "measure"
    recipe: Recipe
    folder: str | None = None
    graph_size: tuple[int, int] | None = None
    num_steps: int = NUM_STEPS
    capture: bool = False
    edge_precision: EdgePrecision = "fp32"
    device: str
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
    """The answer of a worker.

    Attributes:
        result: of the work, if it was done.
        error: one line that says why it was not.
        is_out_of_memory: whether memory ran out.
        warnings: each of them once.
    """

    result: dict[str, Any] | None = None
    error: str = ""
    is_out_of_memory: bool = False
    warnings: tuple[str, ...] = ()


def serve(work: Callable[[str], dict[str, Any]]) -> int:
    """Answer the request on stdin; the exit code of the process.

    Args:
        work: makes the result from the JSON text of the request; a ZooError becomes the answer's error.
    """
    messages: list[str] = []
    result, fault = None, None
    with warnings.catch_warnings():
        # The parent shows them; here they would be lost in stderr.
        warnings.showwarning = lambda message, *_args, **_options: messages.append(str(message))
        try:
            result = work(sys.stdin.read())
        except ZooError as error:
            fault = error
    answer = Answer(
        result=result,
        error="" if fault is None else " ".join(str(fault).split("\n")),
        is_out_of_memory=isinstance(fault, OutOfMemoryError),
        warnings=tuple(dict.fromkeys(messages)),
    )
    # Also after a fault: the answer says whether memory ran out, for which there is no exit code.
    sys.stdout.write(answer.model_dump_json())
    return 0 if fault is None else fault.exit_code


def run_tasks(
    tasks: Iterable[Task], *, num_jobs: int, stop: StopRequest, progress: Progress
) -> Iterator[tuple[Task, dict[str, Any] | RunError]]:
    """Run tasks in order, some at a time.

    When a stop is asked for, SIGTERM goes to the processes that run, which save their state; no further task is
    started. The caller looks at ``stop`` afterwards. A caller that leaves the loop early stops the tasks that
    still run.

    Args:
        tasks: what to do.
        num_jobs: how many at a time.
        stop: set by a signal.
        progress: shows which task begins, and the warnings.

    Yields:
        A task that ended, and its result or why it failed; none of those that failed after a stop.
    """
    waiting, running = deque(tasks), list[_Process]()
    passed_on = False
    try:
        # After a stop the running processes are still waited for, since they are saving their states.
        while running or (waiting and not stop):
            while waiting and len(running) < num_jobs and not stop:
                progress.stage(waiting[0].label)
                running.append(_Process(waiting.popleft()))
            if stop and not passed_on:
                passed_on = True
                for process in running:
                    # Never the signal itself: a shell that starts this process in the background lets all below it
                    # ignore SIGINT, and the run would go on to its end.
                    process.popen.send_signal(signal.SIGTERM)
            for process in [process for process in running if process.popen.poll() is not None]:
                running.remove(process)
                answer, error = process.end()
                for warning in answer.warnings:
                    progress.warning(process.task.model or process.task.label, warning)
                if error is None:
                    yield process.task, answer.result or {}
                elif not stop:
                    yield process.task, error
            # Polled, because no portable call waits for the first of several processes to end.
            time.sleep(_POLL_S)
    except BaseException as error:
        for process in running:
            # A second Ctrl-C does not wait for a state to be saved; the one before is whole.
            process.popen.kill() if isinstance(error, KeyboardInterrupt) else process.popen.terminate()
        for process in running:
            with process.out, process.err:
                process.popen.wait()
        raise


class _Process:
    """A task that runs. Files take what it prints, since a pipe that is not read would fill up and block it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        # Unnamed files: the system removes them once no process has them open.
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        with tempfile.TemporaryFile() as request:
            request.write(task.request.model_dump_json(by_alias=True, exclude_none=True).encode())
            request.seek(0)
            # A session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on once.
            self.popen = subprocess.Popen(
                [sys.executable, "-m", task.module],
                stdin=request,
                stdout=self.out,
                stderr=self.err,
                start_new_session=True,
            )

    def end(self) -> tuple[Answer, RunError | None]:
        """The answer, empty if the process ended before it could give one; and why the task failed, if it did."""
        with self.out, self.err:
            self.out.seek(0)
            self.err.seek(0)
            output, errors = self.out.read(), self.err.read().decode(errors="replace")
        try:
            answer = Answer.model_validate_json(output)
        # A process that was killed has printed nothing, or only the beginning of an answer.
        except ValidationError:
            answer = Answer()
        return answer, self._error(answer, errors)

    def _error(self, answer: Answer, errors: str) -> RunError | None:
        code, label = self.popen.returncode, self.task.label
        if code == 0 and answer.result is not None:
            return None
        if code < 0 and signal.Signals(-code).name == "SIGKILL":
            # The way in which Linux ends a process when the machine is out of memory.
            return OutOfMemoryError(f"{label}: stopped by SIGKILL, out of memory?")
        if code < 0:
            return RunError(f"{label}: stopped by {signal.Signals(-code).name}")
        lines = [line for line in errors.splitlines() if line.strip()] or [f"exit code {code}"]
        kind = OutOfMemoryError if answer.is_out_of_memory else RunError
        return kind(f"{label}: {answer.error or lines[-1]}")


def work(request: TrainRequest | MeasureRequest) -> dict[str, Any]:
    """Do what a request asks for: the content of ``results.json``, or of a StepCost.

    Raises:
        ZooError: as :func:`zoo.workflows.train.train` and :func:`zoo.workflows.step_cost.measure_training`.
    """
    recipe, num_threads = request.recipe, request.num_threads
    if isinstance(request, TrainRequest):
        folder = Path(request.folder)
        return train(recipe, folder, device=request.device, resume=True, num_threads=num_threads, quiet=True).to_json()
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
    sys.exit(serve(lambda text: work(TypeAdapter(Request).validate_json(text))))
