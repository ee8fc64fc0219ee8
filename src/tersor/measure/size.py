"""What a model takes before compression; what a file takes is in its ledger."""

from __future__ import annotations

import torch
from torch import nn

from tersor.tensor.identity import storage_key


def dense_bytes(model: nn.Module) -> int:
    """Bytes of every parameter and persistent buffer, uncompressed; tied tensors count once.

    >>> dense_bytes(nn.Linear(10, 5))
    220
    """
    tensors = (one for one in model.state_dict().values() if isinstance(one, torch.Tensor))
    distinct = {storage_key(one): one for one in tensors}
    return sum(one.numel() * one.element_size() for one in distinct.values())
