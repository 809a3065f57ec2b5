"""What the autograd functions of several ops share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Backward = Callable[[Any, Tensor], tuple[Tensor | None, ...]]


def exact_backward(function: Backward) -> Backward:
    """A backward pass in the precision of its tensors, whatever autocast says; a second derivative is an error."""

    @wraps(function)
    def exact(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return function(ctx, grad)

    once: Backward = once_differentiable(exact)
    return once
