"""Uniform grids: value = scale * (code - zero_point).

Rounding is to the nearest code, half to even, of ``value / scale`` in float32; then the zero point is added.
That is what ONNX defines for QuantizeLinear, so that a runtime makes the same codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import ArrayLike, NDArray

from tersor.errors import SpecError, TensorError
from tersor.tensor.cluster import finite_values
from tersor.tensor.compressed import Affine, CompressedTensor, raw
from tersor.tensor.deviation import deviation
from tersor.tensor.groups import (
    PER_TENSOR,
    Granularity,
    expand_groups,
    group_count,
    group_layout,
    group_shape,
)

_BLOCK = 1 << 18
_EPS = float(np.finfo(np.float32).eps)
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_MAX_CODE = 1 << 24  # beyond, neighbouring codes are one float32
_INT32 = (1 << 31) - 1


@dataclass(frozen=True)
class Grid:
    """Which integer codes there are, and how many weights share a scale.

    symmetric -- the zero point is 0. Otherwise it is an integer chosen from the range of the data, which is
        widened to hold 0: an exact 0.0 always has a code of its own.
    narrow -- without the lowest code: -127 to 127.
    power_of_two -- scales are powers of two.

    One signed bit is {-scale, +scale} with the codes -1 and 1 (``binary``), the only grid without a zero;
    two signed bits, narrow, are {-scale, 0, +scale}. Symmetric and unsigned is for data that is not negative.

    >>> Grid(bits=4).low, Grid(bits=4).high, Grid(bits=2, narrow=True).low
    (-8, 7, -1)
    """

    bits: int = 8
    symmetric: bool = True
    signed: bool = True
    narrow: bool = False
    power_of_two: bool = False
    granularity: Granularity = PER_TENSOR

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in range(1, 9):
            raise SpecError(f"bits is {self.bits!r}: it has to be a whole number from 1 to 8")
        if self.bits == 1 and not self.symmetric:
            raise SpecError("1 bit, asymmetric, has no room for 0 and a value on each side: use symmetric")
        if self.narrow and self.symmetric and not self.signed:
            raise SpecError("narrow takes the lowest code away, which is 0 on a symmetric unsigned grid")

    @property
    def binary(self) -> bool:
        """Only the codes -1 and 1."""
        return self.bits == 1 and self.signed

    @property
    def low(self) -> int:
        """The lowest code."""
        if self.binary:
            return -1
        return (-(1 << (self.bits - 1)) if self.signed else 0) + self.narrow

    @property
    def high(self) -> int:
        """The highest code."""
        if self.binary:
            return 1
        return (1 << (self.bits - self.signed)) - 1


def quantize(
    tensor: torch.Tensor,
    grid: Grid,
    scale: ArrayLike,
    zero_point: ArrayLike | None = None,
    *,
    mask: NDArray[np.bool_] | None = None,
) -> CompressedTensor:
    """Round every weight to the nearest code of ``grid``; what lies outside takes the first or last one.

    ``scale`` (float32, positive) and ``zero_point`` (int32, in the grid's codes; 0 if left out) have one
    value a group. Inside the range no weight moves by more than half a scale, and by the rounding of the
    tensor's dtype. Where ``mask`` (shape of the tensor) is False a weight becomes 0, on a binary grid too,
    with the code 0. No code is used that would decode to Inf in the tensor's dtype. Raises
    :class:`TensorError` for NaN and Inf.

    >>> quantize(torch.tensor([-1.0, 0.0, 0.26, 9.0]), Grid(bits=4), 0.1).form.codes
    array([-8,  0,  3,  7], dtype=int32)
    """
    values = finite_values(tensor)
    shape = tuple(tensor.shape)
    scales, zeros = checked_scales(grid, scale, zero_point, shape)
    codes = np.empty(shape, np.int32)
    # The last finite code: float16 ends at 65504, and scale * code may pass it though no weight does.
    largest = min(torch.finfo(tensor.dtype).max, _FLOAT32_MAX)
    reach = np.floor(largest / scales.astype(np.float64))
    if grid.binary and (reach < 1).any():
        raise SpecError(f"scale is {scales.max():g}: {tensor.dtype} ends at {largest:g}")
    low, high = (np.clip(end - zeros.astype(np.float64), -reach, reach) for end in (grid.low, grid.high))
    layout = group_layout(shape, grid.granularity)
    blocks = group_shape(shape, grid.granularity)[1]
    bounds = low.astype(np.float32), high.astype(np.float32)
    _quantize(values.reshape(-1), codes.reshape(-1), scales, zeros, bounds, layout, blocks, grid.binary)
    if mask is not None:
        if tuple(mask.shape) != shape:
            raise TensorError(f"mask has shape {tuple(mask.shape)}, the tensor {shape}")
        np.copyto(codes, expand_groups(zeros, shape, grid.granularity), where=~mask)
    return CompressedTensor(shape, tensor.dtype, Affine(codes, scales, zeros, grid.granularity))


def dequantize(tensor: CompressedTensor) -> torch.Tensor:
    """The inverse of :func:`quantize`: scale * (code - zero_point), in the dtype of the original."""
    return tensor.decode()


def checked_scales(
    grid: Grid, scale: ArrayLike, zero_point: ArrayLike | None, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(scale, zero_point) as float32 and int32, one a group; :class:`SpecError` where they do not fit."""
    groups = group_count(shape, grid.granularity)
    scales = np.atleast_1d(np.asarray(scale, np.float32))
    zeros = np.zeros(groups, np.int32)
    if zero_point is not None:
        given = np.atleast_1d(np.asarray(zero_point))
        zeros = given.astype(np.int32)
        if (zeros != given).any():
            raise SpecError(f"zero_point is {_shown(given[zeros != given])}: it has to be an integer")
    for name, array in (("scale", scales), ("zero_point", zeros)):
        if array.shape != (groups,):
            raise SpecError(f"{name} has shape {array.shape}: {shape} by {grid.granularity} has {groups} "
                            "groups, with one value each")  # fmt: skip
    wrong = ~(np.isfinite(scales) & (scales > 0))
    if wrong.any():
        raise SpecError(f"scale is {_shown(scales[wrong])}: it has to be a finite number above 0")
    low, high = (0, 0) if grid.symmetric else (grid.low, grid.high)
    outside = (zeros < low) | (zeros > high)
    if outside.any():
        raise SpecError(f"zero_point is {_shown(zeros[outside])}: here it has to be from {low} to {high}")
    return scales, zeros


def to_float16(tensor: torch.Tensor, *, mask: NDArray[np.bool_] | None = None) -> CompressedTensor:
    """Every weight as the nearest half-precision number, half to even; the dtype becomes float16.

    Raises :class:`TensorError` for NaN and Inf, and for values that float16 has no number for.

    >>> to_float16(torch.tensor([2049.0, 65504.0])).decode()
    tensor([ 2048., 65504.], dtype=torch.float16)
    """
    finite_values(tensor)
    source = tensor.detach().cpu()
    # torch goes from float64 through float32 and so rounds twice; NumPy rounds once.
    exact = source.numpy() if source.dtype == torch.float64 else source.to(torch.float32).numpy()
    with np.errstate(over="ignore"):
        half = torch.from_numpy(np.asarray(exact.astype(np.float16)))
    over = int(torch.isinf(half).sum())
    if over:
        largest = float(source.abs().max())
        raise TensorError(f"holds {over} of {source.numel()} values beyond float16's 65504 (the largest is "
                          f"{largest:g}): scale the weights down, or leave it in float32")  # fmt: skip
    return raw(half, mask)


def integer_matmul(
    a_codes: NDArray[Any], a_zero: ArrayLike, b_codes: NDArray[Any], b_zero: ArrayLike
) -> NDArray[np.int32]:
    """``(a - a_zero) @ (b - b_zero)`` in int32, the zero points taken out of the sum.

    The sum of the raw codes' products is corrected by row and column sums (Jacob et al. 2018, section 2.3,
    eq. 7), as integer kernels do it. ``a_codes`` (m, k) with one zero point or one a row, ``b_codes`` (k, n)
    with one or one a column. Times both scales it is the product of the dequantized matrices. Raises
    :class:`TensorError` where int32 could overflow.

    >>> integer_matmul(np.array([[3, 5]]), 1, np.array([[2], [4]]), 3)
    array([[2]], dtype=int32)
    """
    if a_codes.ndim != 2 or b_codes.ndim != 2 or a_codes.shape[1] != b_codes.shape[0]:
        raise TensorError(f"shapes {a_codes.shape} and {b_codes.shape} do not multiply: (m, k) by (k, n)")
    a, b = a_codes.astype(np.int32), b_codes.astype(np.int32)
    rows = np.asarray(a_zero, np.int32).reshape(-1, 1)
    columns = np.asarray(b_zero, np.int32).reshape(1, -1)
    depth = a.shape[1]
    largest = [
        int(np.abs(codes.astype(np.int64) - zero).max(initial=0)) for codes, zero in ((a, rows), (b, columns))
    ]
    if depth * largest[0] * largest[1] > _INT32:
        raise TensorError(f"{depth} products of up to {largest[0]} x {largest[1]} may overflow int32: "
                          "split the sum, or use fewer bits")  # fmt: skip
    # The parts may wrap around where the result does not: int32 arithmetic is modulo 2^32 throughout.
    product = a @ b
    product -= rows * b.sum(axis=0, keepdims=True, dtype=np.int32)
    product -= a.sum(axis=1, keepdims=True, dtype=np.int32) * columns
    product += np.int32(depth) * rows * columns
    return product


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


def _shown(values: NDArray[Any]) -> str:
    text = ", ".join(f"{value:g}" for value in values[:3])
    return text + (f" and {len(values) - 3} more" if len(values) > 3 else "")


@njit(cache=True, nogil=True)
def _quantize(values, codes, scale, zero_point, bounds, layout, blocks, binary):  # type: ignore[no-untyped-def]
    outer, channels, inner, size = layout
    for row in range(outer * channels):
        channel = row % channels
        place = row // channels * inner
        start = row * inner
        stop = start + inner
        while start < stop:
            group = channel * blocks + place // size
            length = min(stop - start, size - place % size)
            step, zero = scale[group], zero_point[group]
            low, high = bounds[0][group], bounds[1][group]
            if binary:
                for i in range(start, start + length):
                    codes[i] = 1 if values[i] >= 0 else -1
            else:
                for i in range(start, start + length):
                    codes[i] = np.int32(min(max(np.rint(values[i] / step), low), high)) + zero
            start += length
            place += length
