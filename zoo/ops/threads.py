"""A few threads that share a list of tasks; the tasks release Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

Task = Callable[[], None]

_POOL: list[ThreadPoolExecutor] = []
# A forked child inherits the pool but not its threads.
os.register_at_fork(after_in_child=_POOL.clear)


def run_tasks(tasks: Sequence[Task]) -> None:
    """Run every task, on as many threads as PyTorch uses; which thread runs which task is left open."""
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

    helpers = [_POOL[0].submit(work) for _ in range(num_helpers)]
    work()
    for helper in helpers:
        # A helper that never got to start is not waited for.
        if not helper.cancel():
            helper.result()
