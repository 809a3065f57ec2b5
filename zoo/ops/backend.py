"""Which implementation of an op runs: chosen by device and by what is installed, or named by the user."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from types import ModuleType

import torch
from torch.autograd import forward_ad

from zoo.errors import BackendError

ENVIRONMENT_VARIABLE = "ZOO_BACKEND"

# The package each backend needs besides PyTorch, and the kind of device it serves (None: any).
BACKENDS: dict[str, tuple[str | None, str | None]] = {
    "reference": (None, None),
    "chunked": (None, None),
    "numba": ("numba", "cpu"),
    "triton": ("triton", "cuda"),
}
_FASTEST = {"cpu": "numba", "cuda": "triton"}

_named: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None


def set_backend(name: str | None) -> None:
    """Use one backend from now on, for every device; None goes back to choosing by device.

    Raises:
        BackendError: if there is no backend of that name, or what it needs is not installed.
    """
    global _named
    if name is not None:
        _check_name(name, "set_backend")
        _import_requirement(name)
    _named = name


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Use one backend within a ``with`` block, in all threads.

    Raises:
        BackendError: as ``set_backend``.
    """
    before = _named
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def named_backend() -> str | None:
    """The backend that the user named, or None."""
    return _named


def backend_for(device: torch.device | str) -> tuple[str, str]:
    """The backend that serves a device, and why it is that one.

    Raises:
        BackendError: if the user named a backend that does not exist or cannot serve this device.
    """
    return _choose(torch.device(device).type, _named)


def describe() -> dict[str, dict[str, str]]:
    """For each kind of device at hand the backend and the reason, and the versions of what the backends build on."""
    report: dict[str, dict[str, str]] = {}
    for kind in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        name, reason = backend_for(kind)
        report[kind] = {"backend": name, "reason": reason}
    versions = {"torch": str(torch.__version__)}
    for package in ("numba", "triton"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    report["versions"] = versions
    return report


@cache
def _choose(kind: str, name: str | None) -> tuple[str, str]:
    if name is not None:
        _check_name(name, f"set_backend() or the environment variable {ENVIRONMENT_VARIABLE}")
        _import_requirement(name)
        served = BACKENDS[name][1]
        if served not in (None, kind) and not (name == "triton" and interpreting_triton()):
            raise BackendError(
                f"backend {name!r} serves {served} tensors, these are on {kind}; move them, or name another of "
                f"{', '.join(other for other, (_, serves) in BACKENDS.items() if serves in (None, kind))}"
            )
        return name, "named by the user"
    fastest = _FASTEST.get(kind)
    if fastest is None:
        return "chunked", f"there are no kernels for {kind}"
    try:
        _import_requirement(fastest)
    except BackendError as error:
        return "chunked", str(error)
    return fastest, f"the fastest on {kind}"


def refuse_transforms(op: str, backend: str | None) -> None:
    """Stop an eager call where kernels would compute without the transform around it, and in silence.

    Raises:
        BackendError: within torch.func transforms or forward-mode derivatives.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        raise BackendError(
            f"{op}: the backend {backend!r} cannot follow torch.func transforms or forward-mode derivatives; "
            "use_backend('reference') can"
        )


def interpreting_triton() -> bool:
    """Whether Triton kernels run in its interpreter, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _check_name(name: str, origin: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"{origin}: expected one of {', '.join(BACKENDS)}, got {name!r}")


def _import_requirement(name: str) -> ModuleType | None:
    package = BACKENDS[name][0]
    if package is None:
        return None
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise BackendError(
            f"backend {name!r} needs {package}, which cannot be imported ({error}); pip install {package}"
        ) from error
