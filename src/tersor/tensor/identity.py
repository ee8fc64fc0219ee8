"""When two tensors are one: tied weights are known by their memory, not by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def storage_key(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that show the same memory in the same way, and only for these.

    Device and address come first, so that keys that agree in those two alone are two views of one memory. A
    tensor without memory of its own (empty, sparse, on the meta device) is the same as itself alone:
    keep it alive as long as its key.

    >>> import torch
    >>> weight = torch.zeros(2, 3)
    >>> storage_key(weight) == storage_key(weight.detach()), storage_key(weight) == storage_key(weight.T)
    (True, False)
    """
    strided = str(tensor.layout) == "torch.strided"  # by its name: report gets by without importing torch
    if not strided or not tensor.numel() or not tensor.data_ptr():
        return (id(tensor),)
    bits = (tensor.dtype, tensor.is_conj(), tensor.is_neg())
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), *bits)
