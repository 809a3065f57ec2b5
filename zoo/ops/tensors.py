"""Requirements of kernels on tensors: plain class, memory of their own, precision and layout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import BackendError


def plain(tensor: Tensor) -> Tensor:
    """The same numbers as a plain tensor.

    Args:
        tensor: any shape; of a subclass perhaps, such as ``torch_geometric.EdgeIndex``.
    """
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
