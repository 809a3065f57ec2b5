"""Methods that torch.compile must run as they are: it compiles what comes before and after them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import torch

ForwardT = TypeVar("ForwardT", bound=Callable[..., object])


def uncompiled(forward: ForwardT) -> ForwardT:
    """``torch.compiler.disable`` for a method, without its import of the compiler, which costs seconds at start-up."""
    # Imports the compiler when it is called, which happens only where the compiler is at work already.
    disabled = torch._compile._disable_dynamo(forward)

    @functools.wraps(forward)
    def run(*args: object, **kwargs: object) -> object:
        return (disabled if torch.compiler.is_dynamo_compiling() else forward)(*args, **kwargs)

    return cast(ForwardT, run)
