"""Join the processes that share a run, and end them together."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

import zoo
from zoo.errors import RunError, ZooError
from zoo.workflows.launched import end_with_launcher, is_shared
from zoo.workflows.ranks import CommonError, LostError, exchange, group
from zoo.workflows.session import StoppedError


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` has started; a ZooError of one of them, which it names, ends all.

    A program that calls :func:`zoo.train` enters this first, once. A single process joins nothing.
    """
    end_with_launcher()
    if not is_shared():
        yield
        return
    # While a process waits for another one here, Python could not answer a Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        store, group.rank, group.size = next(iter(rendezvous("env://", timeout=timedelta(minutes=10))))
        store = _own_store(store)
        # Messages go over Gloo also where the gradients are on GPUs.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, timeout=timedelta(hours=2), world_size=group.size, rank=group.rank, store=store
        )
    except (RuntimeError, ValueError) as error:
        sys.stderr = sys.__stderr__
        raise RunError(f"rank {os.environ.get('RANK')}: {' '.join(str(error).split())}") from error
    finally:
        signal.signal(signal.SIGINT, before)
    faults = PrefixStore("fault", store)
    try:
        # The files may differ from machine to machine although the version does not.
        code = b"".join(path.read_bytes() for path in sorted(Path(zoo.__file__).parent.rglob("*.py")))
        version = f"{zoo.__version__} ({hashlib.sha256(code).hexdigest()[:12]}), torch {torch.__version__}"
        check_same({"version of the code": version, "number of processes": str(group.size)})
        yield
    except Exception as error:
        if isinstance(error, ZooError) and not isinstance(error, CommonError | LostError):
            ZooError.__init__(error, f"rank {group.rank}: {error.lines[0]}", *error.lines[1:])
        # Of all ranks that end with it or because of it, the first alone speaks, whichever that is. A stop, whose state
        # rank 0 may fail to save, and what all have found are left to rank 0.
        with suppress(Exception):
            name = str(group.rank)
            is_left = group.rank > 0 and isinstance(error, CommonError | StoppedError)
            is_first = not is_left and faults.compare_set("first", "", name) == name.encode()
            sys.stderr = sys.__stderr__ if is_first else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not hasattr(error, "exit_code"):
            print(f"rank {group.rank}:", file=sys.stderr, flush=True)
        raise
    finally:
        with suppress(Exception):
            dist.destroy_process_group()
        group.rank, group.size, group.is_restart = 0, 1, False


def _own_store(store: Store) -> Store:
    """The part of the launcher's store that belongs to these processes alone.

    The store outlives processes that are started again, which must not find addresses of earlier ones, and launchers
    of several machines count restarts each for itself. So each process takes a number that no other had, and those
    whose numbers rank 0 has been told use its number as their prefix.
    """
    number = store.add("starts", 1)
    if group.rank == 0:
        store.set("call", str(number))
        for other in range(1, group.size):
            store.set(f"go/{int(store.get(f'{number}/{other}'))}", str(number))
        store.set(f"go/{number}", str(number))
    while not store.check([f"go/{number}"]):
        # Of an earlier rank 0 perhaps, so this is read again.
        call = int(store.get("call"))
        store.set(f"{call}/{group.rank}", str(number))
        time.sleep(0.02)
    prefix = int(store.get(f"go/{number}"))
    # Numbers up to that of the processes belong to the first of them.
    group.is_restart = prefix > group.size
    return PrefixStore(str(prefix), store)


def check_same(facts: Mapping[str, str]) -> None:
    """Stop all ranks if one of them differs from the first in a fact; a CommonError names both."""
    first, *others = exchange(facts)
    for number, other in enumerate(others, start=1):
        for key, value in first.items():
            if other[key] != value:
                raise CommonError(f"rank {number} has another {key} than rank 0: {other[key]}, not {value}")


def check_world_size(parts_per_step: int, size: int) -> None:
    """Refuse more processes than there are parts to share, as a CommonError that names the key of the recipe.

    Raises:
        RunError: also if ``torchrun`` has started several processes that would each train alone.
    """
    if size == 1 and is_shared():
        raise RunError("torchrun started several processes: train inside zoo.workflows.distributed.process_group()")
    if size > parts_per_step:
        raise CommonError(
            f"{size} processes share the parts of a step, but train.parts_per_step is {parts_per_step}: start "
            f"{parts_per_step}, or --set train.parts_per_step={size}, which takes fewer and larger steps in an epoch, "
            "so another result"
        )
