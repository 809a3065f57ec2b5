"""Compilation of the Numba kernels of all operators, and the addresses of their tensors."""

from __future__ import annotations

import inspect
import sys
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from numba import float32, float64, int64, njit, void
from torch import Tensor

from zoo.ops import vector_math, vectors
from zoo.ops.dispatch import address

Kernel = Callable[..., None]

# Edges per block: their messages, 1 KB per eight channels, and rows of x stay in the first-level cache.
BLOCK = 32


def compiled(num_floats: int, dtype: str) -> Callable[[Callable[..., None]], Kernel]:
    """Compile for integers followed by so many floats; kept on disk where some folder can be written.

    Args:
        num_floats: how many.
        dtype: of the floats, as :func:`dtype_code` calls it.
    """
    scalar = scalar_type(dtype)

    def compile_(function: Callable[..., None]) -> Kernel:
        form = void(*[int64] * (function.__code__.co_argcount - num_floats), *[scalar] * num_floats)
        function.__qualname__ += f".{_stamp():08x}"
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        try:
            kernel: Kernel = njit(form, cache=True, **options)(function)
        except (RuntimeError, OSError):
            # Neither the package's folder nor the user's cache can be written.
            kernel = njit(form, **options)(function)
        return kernel

    return compile_


@cache
def _stamp() -> int:
    """A checksum of shared code, for the names of kernels: on disk, Numba renews a kernel when its own file changes."""
    modules = (sys.modules[__name__], vectors, vector_math)
    return zlib.crc32("".join(inspect.getsource(module) for module in modules).encode())


def addresses(*tensors: Tensor) -> tuple[int, ...]:
    """The address of each tensor; tensors must outlive their use."""
    return tuple(address(tensor) for tensor in tensors)


def dtype_code(tensor: Tensor) -> str:
    """The precision of a tensor as the kernels call it: f32 or f64."""
    return "f64" if tensor.dtype == torch.float64 else "f32"


def scalar_type(dtype: str) -> Any:
    """Numba's type of one number."""
    return float64 if dtype == "f64" else float32
