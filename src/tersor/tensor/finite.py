"""NaN and Inf: what has no rank, no nearest value and no mean."""

from __future__ import annotations

import torch

_BLOCK = 1 << 20
# The others are always finite (integers), or scales that no model holds.
_KNOWN = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip


def count_non_finite(values: torch.Tensor) -> int:
    """How many of ``values``, of any dtype, are NaN or Inf; in blocks, so that no copy of them all is made.

    >>> count_non_finite(torch.tensor([1.0, float("nan"), float("-inf")])), count_non_finite(torch.arange(3))
    (2, 0)
    """
    if values.dtype not in _KNOWN:
        return 0
    flat = values.detach().reshape(-1)
    finite = 0
    for start in range(0, flat.numel(), _BLOCK):
        block = flat[start : start + _BLOCK]
        finite += int(torch.isfinite(block.float() if block.itemsize == 1 else block).sum())
    return flat.numel() - finite
