"""Device, precision, randomness and signals of a computation, and the facts about it that are recorded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType

import torch

import zoo
from zoo.errors import OutOfMemoryError, RunError, ZooError
from zoo.ops.dispatch import backend_for
from zoo.spec.results import Environment
from zoo.workflows import ranks

_THREADS_PER_CORE = 8


class StoppedError(ZooError):
    """A signal asked the run to stop, and it has saved its state."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        # The convention of shells for a process that a signal has ended.
        self.exit_code = 128 + signum


def resolve_device(name: str | torch.device | None) -> torch.device:
    """The device ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; None: the first CUDA GPU if there is one, else the CPU.

    Raises:
        RunError: if the device does not exist here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        name = "cuda" if count else "cpu"
    chosen = "cuda:0" if str(name) == "cuda" else str(name)
    # Each process of a machine has a GPU of its own.
    if ranks.group.size > 1 and chosen.startswith("cuda"):
        if str(name) != "cuda":
            raise RunError(f"--device {name}: under torchrun each process takes its own GPU; use --device cuda")
        chosen = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    here = ["cpu", *(f"cuda:{index}" for index in range(count)), *["mps"] * torch.backends.mps.is_available()]
    if chosen not in here:
        if chosen == "mps" or (not count and re.fullmatch("cuda:[0-9]+", chosen)):
            kind = "Apple GPU" if chosen == "mps" else "GPU"
            raise RunError(f"--device {name}: PyTorch finds no {kind} on this machine; use --device cpu")
        raise RunError(f"--device {name}: no such device; here: {', '.join(here)}")
    return torch.device(chosen)


def resolve_devices(names: str | None) -> tuple[str, ...]:
    """The devices of a list with commas, such as ``cuda:0,cuda:1``; as for :func:`resolve_device`."""
    return tuple(str(resolve_device(name)) for name in ([None] if names is None else names.split(",")))


def start(device: str | None, num_threads: int | None = None) -> torch.device:
    """Choose the device and the number of CPU threads, and make kernels repeat themselves where they can.

    Raises:
        RunError: if the device does not exist here, or has by far fewer cores than threads.
    """
    # Read by cuBLAS when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # TF32 would round the factors of a product to 10 bits, and results would depend on the kind of GPU.
    torch.backends.cuda.matmul.allow_tf32 = False
    if num_threads is not None:
        if type(num_threads) is not int or num_threads < 1:
            raise RunError(f"num_threads: expected an integer of at least 1, got {num_threads!r}")
        num_cores = os.cpu_count() or 1
        # Thousands of threads would stop the whole machine, other people's work included.
        if num_threads > _THREADS_PER_CORE * num_cores:
            most = _THREADS_PER_CORE * num_cores
            raise RunError(f"--threads {num_threads}: this machine has {num_cores} cores; expected at most {most}")
        torch.set_num_threads(num_threads)
    chosen = resolve_device(device)
    if chosen.type == "cuda":
        # Triton starts kernels on the current device, which need not be the one that holds the tensors.
        torch.cuda.set_device(chosen)
        torch.cuda.reset_peak_memory_stats(chosen)
    return chosen


def derive_seed(*key: int | str) -> int:
    """A seed of 63 bits for one purpose.

    All randomness of a run is a function of the recipe's seed and the place in the run, so a resumed run needs no
    generator's state. The key holds these: the seed, the purpose and the place, such as ``0, "dropout", epoch, part``.
    """
    # One bit less than eight bytes hold, so that the seed fits into a signed 64-bit integer.
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator for one purpose, see :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*key))


def seed_global(*key: int | str) -> None:
    """Seed PyTorch's global generators, which initialization and dropout sample from, for one purpose."""
    torch.manual_seed(derive_seed(*key))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass in the recipe's precision; weights and losses stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def oom_as_run_error(place: str, remedy: str) -> Iterator[None]:
    """Turn the many errors of a lack of memory, of the machine or of a GPU, into one: "PLACE: ...; REMEDY".

    Raises:
        OutOfMemoryError: in their place.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        raise OutOfMemoryError(f"{place}: {what} is out of memory; {remedy}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error says that the machine or a GPU has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch's allocator of the CPU raises a bare RuntimeError.
    return any(sign in str(error) for sign in ("can't allocate memory", "not enough memory"))


def device_name(device: torch.device) -> str:
    """Name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def environment(device: torch.device) -> Environment:
    """The facts that may change a result; no name of a user, host or folder."""
    facts: dict[str, str | int] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "num_threads": torch.get_num_threads(),
        "backend": backend_for(device)[0],
    }
    for package in ("numpy", "numba", "triton", "ogb", "torch-geometric"):
        with suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda or "unknown"
    return Environment(
        zoo=zoo.__version__, torch=importlib.metadata.version("torch"), device=device_name(device), **facts
    )


# Sent by a terminal, by a service manager, and by batch systems shortly before they end a job; Windows has only two.
_STOP_SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
# The number of SIGALRM, which stands for the end of the time that a run may take.
_TIME_IS_UP = 14


class StopRequest:
    """A flag that a signal, or the end of the time that a run may take, sets to ask it to stop; true once it is set.

    Attributes:
        signum: the signal, SIGALRM after ``max_time_s`` seconds, or 0.
        at_once: while nothing is there to be saved, a signal raises StoppedError where the program is.
    """

    def __init__(self, max_time_s: float | None = None) -> None:
        self.signum = 0
        self.at_once = False
        self._deadline = math.inf if max_time_s is None else time.monotonic() + max_time_s

    def __bool__(self) -> bool:
        if not self.signum and time.monotonic() >= self._deadline:
            self.signum = _TIME_IS_UP
        return self.signum != 0

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM."""
        return "--max-time" if self.signum == _TIME_IS_UP else signal.Signals(self.signum).name


@contextmanager
def stop_requests(max_time_s: float | None = None) -> Iterator[StopRequest]:
    """Let signals only set a flag, which a run looks at between two steps.

    A second SIGINT interrupts at once. Outside the main thread, signals are left alone. After ``max_time_s`` seconds
    the flag sets itself; None: never.
    """
    request = StopRequest(max_time_s)
    # Python allows only the main thread to set signal handlers.
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if request.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        request.signum = signum
        if request.at_once:
            raise StoppedError(f"{request.name} before the first step; there is nothing new to save", signum)
        if signum == signal.SIGINT and ranks.group.rank == 0:
            # Written past Python's buffers, which the interrupted code may be in the middle of.
            with suppress(OSError):
                os.write(2, b"\nCtrl-C: stops after this step; once more leaves at once and saves nothing\n")

    # What is ignored on purpose, as SIGHUP under nohup, stays ignored.
    signals = [signum for signum in _STOP_SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, note) for signum in signals}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
