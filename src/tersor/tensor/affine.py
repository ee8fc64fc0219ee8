"""Uniform grids: value = scale * (code - zero_point)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tersor.errors import SpecError
from tersor.tensor.cluster import finite_values
from tersor.tensor.compressed import Affine, CompressedTensor
from tersor.tensor.deviation import deviation

_BLOCK = 1 << 18
_EPS = float(np.finfo(np.float32).eps)
_MAX_CODE = 1 << 24  # beyond, neighbouring codes are one float32


def bounded_grid(tensor: torch.Tensor, max_error: float) -> CompressedTensor | None:
    """The coarsest symmetric grid on which no weight moves by more than ``max_error``; 0 stays 0.

    The bound holds for what ``decode()`` gives, rounding to the tensor's dtype included; it is checked on
    every weight. None where the dtype itself is too coarse for the bound. Raises :class:`TensorError` for
    NaN and Inf.

    >>> bounded_grid(torch.tensor([0.0, 0.3, 1.0]), 0.25).form.codes
    array([0, 1, 2], dtype=int32)
    """
    if not (np.isfinite(max_error) and max_error > 0):
        raise SpecError(f"max_error is {max_error}: it has to be a finite number above 0")
    values = finite_values(tensor)
    largest = float(np.abs(values).max(initial=0))
    rounding = (largest + max_error) * (torch.finfo(tensor.dtype).eps / 2 + 2 * _EPS)
    for half in (max_error, max_error - rounding):
        scale = np.nextafter(np.float32(2 * half), np.float32(0))
        if scale <= 0 or largest / float(scale) > _MAX_CODE:
            return None
        form = Affine(_round(values, scale), np.array([scale]), np.zeros(1, np.int32))
        grid = CompressedTensor(tuple(tensor.shape), tensor.dtype, form)
        if deviation(tensor, grid.decode())[1] <= max_error:
            return grid
    return None


def _round(values: NDArray[np.float32], scale: np.float32) -> NDArray[np.int32]:
    codes = np.empty(values.shape, np.int32)
    flat, out = values.reshape(-1), codes.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        out[block] = np.rint(flat[block].astype(np.float64) / float(scale))
    return codes
