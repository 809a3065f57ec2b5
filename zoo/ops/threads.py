"""A few threads that share a list of tasks; the tasks release Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

Task = Callable[[], None]

_POOL: list[ThreadPoolExecutor] = []
# A forked child inherits the pool but not its threads.
os.register_at_fork(after_in_child=_POOL.clear)


def run_tasks(tasks: Sequence[Task]) -> None:
    """Run every task, on as many threads as PyTorch uses; which thread runs which task is left open.

    No task runs after the call has returned or raised.
    """
    num_helpers = min(torch.get_num_threads(), len(tasks)) - 1
    if num_helpers < 1:
        for task in tasks:
            task()
        return
    if not _POOL:
        _POOL.append(ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 64), thread_name_prefix="zoo-ops"))
    # A list iterator hands each item to one thread only.
    waiting = iter(tasks)

    def work() -> None:
        for task in waiting:
            task()

    helpers: list[Future[None]] = []
    try:
        for _ in range(num_helpers):
            helpers.append(_POOL[0].submit(work))
        work()
    finally:
        # Tasks hold raw addresses. If this thread stops early (Ctrl-C), its caller frees the tensors behind them: leave
        # nothing to begin, and wait for the tasks that have begun.
        for _ in waiting:
            pass
        started = [helper for helper in helpers if not helper.cancel()]
        _join(started)
    for helper in started:
        helper.result()


def _join(helpers: Sequence[Future[None]]) -> None:
    """Wait for helpers to end; an interrupt is raised only after that."""
    try:
        wait(helpers)
    except BaseException:
        _join(helpers)
        raise
