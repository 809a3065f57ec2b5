"""One measurement in a process of its own: ``python -m zoo.workflows.bench.worker '{"case": ..., ...}'``."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

import torch

from zoo.workflows.bench.case import Case, build, draw_labels, draw_part

_CLEAR_PEAK = "5"


def measure(case: Case, *, device: torch.device, num_steps: int) -> dict[str, float | list[float]]:
    """Time training steps and the memory they need beyond parameters, gradients and optimizer state.

    A step is forward, backward, clipping and Adam. One step goes before, not counted.

    Returns:
        ``step_s`` of every step, their ``median_step_s``, ``num_parameters``, and ``peak_bytes``: the most memory
        during the steps, less what was there before them and the bytes of the gradients.
    """
    model = build(case, device)
    x, csr, edge_attr = draw_part(case.num_nodes, case.num_edges, case.seed, device)
    labels = draw_labels(case.num_nodes, case.seed, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_of = torch.nn.BCEWithLogitsLoss()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model(x, csr, edge_attr), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    before = _reset_peak(device)
    times = []
    for _ in range(num_steps):
        _finish(device)
        start = time.perf_counter()
        step()
        _finish(device)
        times.append(time.perf_counter() - start)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    gradient_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return {
        "step_s": times,
        "median_step_s": statistics.median(times),
        "num_parameters": num_parameters,
        "peak_bytes": _peak(device) - before - gradient_bytes,
    }


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> int:
    """Start to watch the peak; the bytes in use now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        return _status("VmRSS")
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if platform.system() == "Linux":
        return _status("VmHWM")
    # macOS counts in bytes; there the peak cannot be reset, so what came before hides small steps.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def main() -> None:
    """Read the measurement to make from the command line, print its result as JSON."""
    request = json.loads(sys.argv[1])
    if request["num_threads"]:
        torch.set_num_threads(request["num_threads"])
    result = measure(
        Case.model_validate(request["case"]), device=torch.device(request["device"]), num_steps=request["num_steps"]
    )
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
