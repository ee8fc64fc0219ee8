"""What a model takes before compression, and what a file takes."""

from __future__ import annotations

from pathlib import Path

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


def file_bytes(path: Path) -> int:
    """Bytes of a file on disk; the weights of an ``.xml`` file, the ``.bin`` beside it, count with it."""
    weights = path.with_suffix(".bin")
    beside = weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0
    return path.stat().st_size + beside
