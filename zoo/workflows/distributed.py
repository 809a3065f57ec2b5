"""Join the processes that share a run, and end them together."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

import zoo
from zoo.errors import RunError, ZooError
from zoo.workflows.ranks import LostError, exchange, group


class CommonError(RunError):
    """A fault that all ranks find together."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that ``torchrun`` has started; a ZooError of one of them, which it names, ends all."""
    store, group.rank, group.size = next(iter(rendezvous("env://", timeout=timedelta(minutes=10))))
    # The launcher's store outlives the processes that it starts again; they must not find addresses of earlier ones.
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    faults = PrefixStore("fault", store)
    # Messages go over Gloo also where the gradients are on GPUs.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(
            backend, timeout=timedelta(hours=2), world_size=group.size, rank=group.rank, store=store
        )
        # The files may differ from machine to machine although the version does not.
        code = b"".join(path.read_bytes() for path in sorted(Path(zoo.__file__).parent.rglob("*.py")))
        version = f"{zoo.__version__} ({hashlib.sha256(code).hexdigest()[:12]}), torch {torch.__version__}"
        check_same({"version of the code": version, "number of processes": str(group.size)})
        yield
    except Exception as error:
        if isinstance(error, LostError):
            ZooError.__init__(
                error, "a process of this run ended without a word, perhaps killed; continue with --resume"
            )
        elif isinstance(error, ZooError) and not isinstance(error, CommonError):
            ZooError.__init__(error, f"rank {group.rank}: {error.lines[0]}", *error.lines[1:])
        # Of all ranks that end with it or because of it, the first alone speaks, whichever that is.
        with suppress(Exception):
            name = str(group.rank)
            is_first = faults.compare_set("first", "", name) == name.encode()
            sys.stderr = sys.__stderr__ if is_first else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        raise
    finally:
        with suppress(Exception):
            dist.destroy_process_group()
        group.rank, group.size = 0, 1


def check_same(facts: Mapping[str, str]) -> None:
    """Stop all ranks if one of them differs from the first in a fact; a CommonError names both."""
    first, *others = exchange(facts)
    for number, other in enumerate(others, start=1):
        for key, value in first.items():
            if other[key] != value:
                raise CommonError(f"rank {number} has another {key} than rank 0: {other[key]}, not {value}")


def check_world_size(parts_per_step: int, size: int) -> None:
    """Refuse more processes than there are parts to share, as a CommonError that names the key of the recipe."""
    if size > parts_per_step:
        raise CommonError(
            f"{size} processes share the parts of a step, but train.parts_per_step is {parts_per_step}: start "
            f"{parts_per_step}, or --set train.parts_per_step={size}, which takes fewer and larger steps in an epoch, "
            "so another result"
        )
