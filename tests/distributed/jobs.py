"""Processes that share a run, started without a launcher: forked from one that has imported everything already."""

import json
import multiprocessing as mp
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.forked import CONTEXT
from zoo.cli import main
from zoo.errors import RunError
from zoo.ops.dispatch import use_backend
from zoo.spec.recipe import parse_recipe
from zoo.workflows import run_dir, session, state
from zoo.workflows import train as module
from zoo.workflows.distributed import process_group
from zoo.workflows.session import StoppedError


def launch(world_size: int, job: Callable[..., int], *arguments: Any, folder: Path, limit_s: float = 300) -> list[int]:
    """Exit codes of the ranks; their output is in ``out-RANK`` and ``err-RANK``. None is left after the limit."""
    port = free_port()
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, world_size, port, folder, job, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + limit_s
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in late:
        processes[rank].kill()
        processes[rank].join()
    assert not late, f"ranks {late} did not end within {limit_s} s: {[said(folder, r) for r in late]}"
    return [process.exitcode or 0 for process in processes]


def start_launcher(
    folder: Path, name: str, config: LaunchConfig, job: Callable[..., None], *arguments: Any
) -> mp.process.BaseProcess:
    """What torchrun runs, without starting Python again for it and its ranks; their output is in ``err-NAME``."""
    process = CONTEXT.Process(target=_launcher, args=(folder / f"err-{name}", config, job, arguments))
    process.start()
    return process


def _launcher(errors: Path, config: LaunchConfig, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)  # noqa: SIM115
    elastic_launch(replace(config, start_method="fork"), job)(*arguments)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def said(folder: Path, rank: int | str) -> str:
    return (folder / f"err-{rank}").read_text(encoding="utf-8")


def _rank(
    rank: int, world_size: int, port: int, folder: Path, job: Callable[..., int], arguments: tuple[Any, ...]
) -> None:
    if world_size > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for key, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, **address}.items():
            os.environ[key] = str(value)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.path.insert(0, str(Path(__file__).parents[1] / "stubs"))
    torch.set_num_threads(1)
    setattr(module, "plot", lambda run: None)  # noqa: B010
    with use_backend("chunked"):
        code = job(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def command(*arguments: str) -> int:
    return main(arguments)


def command_of_rank(arguments: list[str], extra: dict[int, list[str]]) -> int:
    """A command that some ranks are given more arguments of."""
    return main([*arguments, *extra.get(int(os.environ["RANK"]), [])])


def command_with_fault(arguments: list[str], fault: str) -> int:
    """A command of which rank 1 fails at its second step, or all do."""
    original, calls = module.training_step, iter(range(1, 1000))

    def patched(model: torch.nn.Module, *given: Any) -> Any:
        rank, is_second = os.environ["RANK"], next(calls) == 2
        if is_second and fault == "diverged":
            for parameter in model.parameters():
                parameter.data.fill_(torch.nan)
        elif is_second and rank == "1":
            if fault in ("killed", "stopped"):
                os.kill(os.getpid(), signal.SIGKILL if fault == "killed" else signal.SIGTERM)
            else:
                raise MemoryError if fault == "memory" else ValueError(fault)
        elif is_second and fault == "stopped":
            setattr(state.RunState, "save", _full_disk)  # noqa: B010
        return original(model, *given)

    setattr(module, "training_step", patched)  # noqa: B010
    state._MAX_SHARE, state._PERIOD_S = 1e9, 0.0
    return main(arguments)


def _full_disk(_: state.RunState) -> Path:
    raise RunError("the disk is full")


def train_all(recipes: dict[str, dict[str, Any]], out: Path, stops: dict[str, tuple[str, int]]) -> int:
    """Train recipes one after the other, or continue those that are there.

    Args:
        recipes: by name.
        out: the folder of their runs.
        stops: for some recipes the function of the training loop at whose so many-th call rank 1 gets a SIGTERM.
    """
    with process_group() if "RANK" in os.environ else nullcontext():
        for name, data in recipes.items():
            recipe = parse_recipe(data, where=name)
            original, restore = None, None
            if name in stops and not (out / name).exists():
                place, number = stops[name]
                target = session if place == "autocast" else module
                original = getattr(target, place)
                restore = (target, place, original)
                setattr(target, place, _stopping(original, number))
            try:
                module.train(recipe, out / name, device="cpu", quiet=True, resume=True)
                if restore is not None:
                    return 9
            except StoppedError:
                if restore is None:
                    raise
            finally:
                if restore is not None:
                    setattr(*restore)
    return 0


def _stopping(original: Callable[..., Any], number: int) -> Callable[..., Any]:
    calls = iter(range(1, 10_000))

    def patched(*arguments: Any) -> Any:
        if next(calls) == number and os.environ.get("RANK", "1") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    return patched


def results_text(out: Path) -> str:
    """The results of a run, as text."""
    results = run_dir.RunDir(out).results()
    assert results is not None
    return json.dumps(results.to_json())
