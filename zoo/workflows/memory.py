"""Time and peak memory of repeated steps."""

from __future__ import annotations

import ctypes
import gc
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from zoo.errors import RunError

_CLEAR_REFS, _CLEAR_PEAK = Path("/proc/self/clear_refs"), "5"
# Parameters of glibc's mallopt. Source: mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_EAGER_BYTES = 1 << 16
# The highest that glibc would raise them to by itself.
_LAZY_MMAP_BYTES, _LAZY_TRIM_BYTES = 1 << 25, 1 << 26


class Steps(NamedTuple):
    """Seconds of each step, and the most memory in use during them, less what was in use before and the gradients."""

    step_s: tuple[float, ...]
    peak_bytes: int


def measure_steps(step: Callable[[], None], model: nn.Module, *, device: torch.device, num_steps: int) -> Steps:
    """Time steps and the memory they need beyond parameters, gradients, optimizer state and the graph.

    One step goes before and is not counted: it compiles kernels and creates the optimizer's state. Gradients of the
    model are there while a step runs, and none are left behind.
    """
    step()
    before = reset_peak(device)
    times = []
    for _ in range(num_steps):
        finish(device)
        start = time.perf_counter()
        step()
        finish(device)
        times.append(time.perf_counter() - start)
    gradient_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Steps(tuple(times), max(peak(device) - before - gradient_bytes, 0))


@contextmanager
def release_eagerly() -> Iterator[None]:
    """Make the C library return large tensors to the system at once, so that the process's size is what is in use.

    That costs time. Afterwards the library is as it becomes in a long run. Only glibc has this switch.
    """
    _mallopt(_EAGER_BYTES, _EAGER_BYTES)
    try:
        yield
    finally:
        _mallopt(_LAZY_MMAP_BYTES, _LAZY_TRIM_BYTES)


def finish(device: torch.device) -> None:
    """Wait for what was asked of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> int:
    """Start to watch the peak; the bytes in use now. A RunError where a process cannot reset its peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if platform.system() == "Linux":
        # Only glibc has it. Other libraries keep more freed memory, which then counts as in use.
        trim = getattr(_c_library(), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            _CLEAR_REFS.write_text(_CLEAR_PEAK)
        except OSError as error:
            raise RunError(
                f"{_CLEAR_REFS}: cannot be written ({error.strerror or error}), so memory cannot be measured here; "
                "measure where a process may reset its own peak"
            ) from error
        return _status("VmRSS")
    return peak(device)


def peak(device: torch.device) -> int:
    """The most bytes in use since :func:`reset_peak`: of the process on the CPU, of PyTorch's tensors on a GPU.

    What CUDA graphs work on while they are replayed is no tensor, and is not in it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if platform.system() == "Linux":
        return _status("VmHWM")
    # Imported here, because on Linux nothing else needs it.
    import psutil

    # Windows knows a peak, which cannot be reset, so what came before hides small steps; macOS says what is in use now.
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def _mallopt(mmap_bytes: int, trim_bytes: int) -> None:
    if platform.libc_ver()[0] == "glibc":
        _c_library().mallopt(_MMAP_THRESHOLD, mmap_bytes)
        _c_library().mallopt(_TRIM_THRESHOLD, trim_bytes)


def _c_library() -> Any:
    return ctypes.CDLL(None)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
