"""Tasks end with the call that shares them, whatever ends it."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from zoo.ops.work_items import run_tasks


@pytest.fixture(autouse=True)
def three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_every_task_runs_once():
    done = []
    run_tasks([lambda n=n: done.append(n) for n in range(200)])
    assert sorted(done) == list(range(200))


def test_no_task_runs_after_an_exception_in_the_calling_thread():
    caller, running, begun = threading.get_ident(), threading.Event(), []

    def task():
        if threading.get_ident() == caller:
            assert running.wait(30)
            raise KeyboardInterrupt
        begun.append(None)
        running.set()
        time.sleep(0.1)
        begun.pop()

    tasks = [task] * 50
    with pytest.raises(KeyboardInterrupt):
        run_tasks(tasks)
    # The tasks that had begun were waited for, and the others never begin.
    assert not begun
    time.sleep(0.3)
    assert not begun


def test_an_exception_in_a_helper_reaches_the_caller():
    caller = threading.get_ident()

    def task():
        if threading.get_ident() != caller:
            raise MemoryError
        time.sleep(0.01)

    with pytest.raises(MemoryError):
        run_tasks([task] * 100)


INTERRUPTED = """
import os, signal, threading, time
import torch
from zoo.ops.dispatch import use_backend
from zoo.ops.csr import csr_from_edge_index
from zoo.ops.gen_aggregate import gen_aggregate

# A shell without job control starts its background processes with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(4)
num_nodes = 20_000
csr, _ = csr_from_edge_index(torch.randint(num_nodes, (2, 2_000_000)), num_nodes)

def step():
    x = torch.randn(num_nodes, 128)
    gen_aggregate(x, csr)

with use_backend("numba"):
    step()
    for n in range(6):
        timer = threading.Timer(0.05 + 0.02 * n, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while True:
                step()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        # Whatever still ran would now read memory that was given back.
        time.sleep(0.3)
"""


def test_an_interrupt_while_kernels_run_raises_keyboard_interrupt():
    # Freed memory goes back to the system at once, so that reading it cannot pass unseen.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", INTERRUPTED]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"exit status {result.returncode}: {result.stderr[-2000:]}"
    assert result.stdout.split() == ["interrupted"] * 6
