"""What a model takes before compression, a tensor in memory after it, and a file on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tersor.tensor.codebook import int8_levels
from tersor.tensor.compressed import Codebook, CompressedTensor, Raw
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


def packed_bytes(tensor: CompressedTensor) -> int:
    """Bytes of a tensor in the memory of a runtime that computes from its codes, not entropy coded.

    Codes have 4 bits where all fit, else 8 (16 for more than 256 shared values); beside them a float32 scale
    for each group, a zero point where one is not 0, or the codebook, on an int8 grid where it lies on one.
    Values that have no codes are in their own type, pruned ones too.
    """
    form = tensor.form
    if isinstance(form, Raw):
        return form.values.numel() * form.values.element_size()
    if isinstance(form, Codebook):
        wide = 16 if form.codebook.shape[1] > 256 else 8
        codes = _packed(form.codes.size, 4 if form.codebook.shape[1] <= 16 else wide)
        snapped = int8_levels(form.codebook)
        return codes + (form.codebook.nbytes if snapped is None else snapped[1].nbytes + 4)
    low = min(int(form.codes.min(initial=0)), int(form.zero_point.min(initial=0)))
    high = max(int(form.codes.max(initial=0)), int(form.zero_point.max(initial=0)))
    width = next(
        bits for bits in (4, 8, 16, 32)
        if (low >= 0 and high < 1 << bits) or (low >= -(1 << bits - 1) and high < 1 << bits - 1)
    )  # fmt: skip
    zero_points = _packed(len(form.zero_point), width) if form.zero_point.any() else 0
    return _packed(form.codes.size, width) + form.scale.nbytes + zero_points


def _packed(count: int, bits: int) -> int:
    return -(-count * bits // 8)
