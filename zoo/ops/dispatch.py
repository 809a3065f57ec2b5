"""The backend of an operator, chosen by device and installed packages or named by the user, and checks around it.

Every operator is a folder: ``__init__`` (the public function: checks, autograd), ``reference`` (the definition),
``chunked`` (PyTorch in bounded memory), ``cpu`` and ``cuda`` (layout of tensors and kernels). What a backend lacks is
done by ``chunked``.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import metadata
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from zoo.errors import BackendError, DataError

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])
Backward = Callable[[Any, Tensor], tuple[Tensor | None, ...]]

ENVIRONMENT_VARIABLE = "ZOO_BACKEND"

# The package each backend needs besides PyTorch, and the type of device it serves (None: any).
BACKENDS: dict[str, tuple[str | None, str | None]] = {
    "reference": (None, None),
    "chunked": (None, None),
    "numba": ("numba", "cpu"),
    "triton": ("triton", "cuda"),
}
# The module of each backend in the folder of an operator.
_MODULES = {"chunked": "chunked", "numba": "cpu", "triton": "cuda"}
_FASTEST = {"cpu": "numba", "cuda": "triton"}

_named: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None


def set_backend(name: str | None) -> None:
    """Use one backend from now on, for every device; None goes back to choosing by device.

    Raises:
        BackendError: if there is no backend of that name, or what it needs is not installed.
    """
    global _named
    if name is not None:
        _import_requirement(name, "set_backend")
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
    """For each type of device at hand the backend and the reason, and the versions of what the backends build on."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    report = {device: dict(zip(("backend", "reason"), backend_for(device), strict=True)) for device in devices}
    versions = {"torch": str(torch.__version__)}
    for package in ("numba", "triton"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    report["versions"] = versions
    return report


@cache
def _choose(device_type: str, name: str | None) -> tuple[str, str]:
    if name is not None:
        _import_requirement(name, f"set_backend() or the environment variable {ENVIRONMENT_VARIABLE}")
        served = BACKENDS[name][1]
        if served not in (None, device_type) and not (name == "triton" and interpreting_triton()):
            raise BackendError(
                f"backend {name!r} serves {served} tensors, these are on {device_type}; move them, or name another of "
                f"{', '.join(other for other, (_, serves) in BACKENDS.items() if serves in (None, device_type))}"
            )
        return name, "named by the user"
    fastest = _FASTEST.get(device_type)
    if fastest is None:
        return "chunked", f"there are no kernels for {device_type}"
    try:
        _import_requirement(fastest, device_type)
    except BackendError as error:
        return "chunked", str(error)
    return fastest, f"the fastest on {device_type}"


@cache
def kernel_function(operator: str, backend: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of an operator's backend, or of ``chunked`` where that backend has none.

    Imported on first use: a backend may need what is not installed, and costs time to import.
    """
    folder = f"zoo.ops.{operator}"
    own = importlib.import_module(f"{folder}.{_MODULES[backend]}")
    function = getattr(own, name, None) or getattr(importlib.import_module(f"{folder}.chunked"), name)
    return cast(Callable[..., Any], function)


def operator_backend(device: torch.device) -> str:
    """The backend of an operator that has kernels; of what a compiler traces, the definition in plain PyTorch."""
    return "reference" if torch.compiler.is_compiling() else backend_for(device)[0]


def transforming() -> bool:
    """True within a ``torch.func`` transform or a forward-mode derivative."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def refuse_transforms(operator: str, backend: str) -> None:
    """Stop a call whose kernels would silently compute without the transform around it.

    Raises:
        BackendError: within torch.func transforms or forward-mode derivatives.
    """
    if transforming():
        raise BackendError(
            f"{operator}: the backend {backend!r} cannot follow torch.func transforms or forward-mode derivatives; "
            "use_backend('reference') can"
        )


def check_floats(device: torch.device, owner: str, **tensors: Tensor | None) -> None:
    """Check that the tensors hold floating point numbers on one device, that of ``owner``.

    Raises:
        DataError: if one does not.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise DataError(f"{name}: expected floating point numbers, got {tensor.dtype}")
        if tensor is not None and tensor.device != device:
            raise DataError(f"{name} is on {tensor.device} and {owner} on {device}; expected one device")


def needs_grad(*tensors: Tensor | None) -> bool:
    """True if the gradient of some of these tensors may be asked for."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def exact_backward(function: Backward) -> Backward:
    """Run a backward pass in the precision of its tensors, whatever autocast says; refuse a second derivative."""

    @wraps(function)
    def exact(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return function(ctx, grad)

    once: Backward = once_differentiable(exact)
    return once


def uncompiled(function: FunctionT, *, always: bool = True) -> FunctionT:
    """``torch.compiler.disable`` without its import of the compiler, which costs seconds at start-up."""
    # Imports the compiler when it is called, which happens only where the compiler is at work already.
    disabled = torch._compile._disable_dynamo(function)

    @wraps(function)
    def run(*args: object, **kwargs: object) -> object:
        keep_out = torch.compiler.is_dynamo_compiling() and (always or torch.is_grad_enabled())
        return (disabled if keep_out else function)(*args, **kwargs)

    return cast(FunctionT, run)


def uncompiled_training(function: FunctionT) -> FunctionT:
    """Keep a function that has a backward pass of its own out of compiled code, but only where gradients are on."""
    return uncompiled(function, always=False)


def interpreting_triton() -> bool:
    """True if Triton interprets its kernels, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _import_requirement(name: str, origin: str) -> None:
    if name not in BACKENDS:
        raise BackendError(f"{origin}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    package = BACKENDS[name][0]
    if package is None:
        return
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise BackendError(
            f"backend {name!r} needs {package}, which cannot be imported ({error}); pip install {package}"
        ) from error
    if package == "numba" and module.config.DISABLE_JIT:
        raise BackendError(f"backend {name!r} compiles its kernels, which NUMBA_DISABLE_JIT forbids")


def plain(tensor: Tensor) -> Tensor:
    """The same numbers as a plain tensor, of a subclass perhaps, such as ``torch_geometric.EdgeIndex``."""
    # A compiler traces with tensors of classes of its own, which must stay.
    if type(tensor) is Tensor or isinstance(tensor, nn.Parameter) or torch.compiler.is_compiling():
        return tensor
    # A subclass that wraps another tensor owns no memory; those of torch_geometric return the tensor that they wrap.
    unwrap = getattr(tensor, "as_tensor", None)
    return (tensor if unwrap is None else unwrap()).as_subclass(Tensor)


def address(tensor: Tensor) -> int:
    """The address of the first number, for kernels; 0 only if there is none. The tensor must outlive its use.

    Raises:
        BackendError: if the tensor has numbers but no memory.
    """
    pointer = tensor.data_ptr()
    if pointer == 0 and tensor.numel():
        raise BackendError(
            f"a {type(tensor).__name__} of shape {list(tensor.shape)} has no memory that kernels can read; "
            "give a plain torch.Tensor"
        )
    return pointer


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision in which operators compute: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def unit_stride(tensor: Tensor) -> Tensor:
    """[n, C] with the channels of a row side by side; rows may lie apart."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()
