"""How far decoded weights are from their originals."""

from __future__ import annotations

from collections.abc import Iterator

import torch

_BLOCK = 1 << 18


def deviation(tensor: torch.Tensor, decoded: torch.Tensor) -> tuple[float, float]:
    """(relative, largest) error: norm of the difference over norm of the tensor, and max |w - q|.

    Computed in float64, block by block; 0 for an empty tensor and inf where only zeros were moved.

    >>> deviation(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    (0.1, 0.5)
    """
    difference = norm = largest = 0.0
    for one, other in zip(_blocks(tensor), _blocks(decoded), strict=True):
        off = one - other
        largest = max(largest, float(off.abs().max()))
        difference += float(off.dot(off))
        norm += float(one.dot(one))
    if norm == 0:
        return (float("inf") if difference else 0.0), largest
    return (difference / norm) ** 0.5, largest


def _blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.detach().cpu().reshape(-1)
    for start in range(0, flat.numel(), _BLOCK):
        yield flat[start : start + _BLOCK].double()
