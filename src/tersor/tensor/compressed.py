"""The one value that algorithms make, modules hold, files store and measures weigh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tersor.errors import TensorError
from tersor.tensor.groups import PER_TENSOR, Granularity, expand_groups, group_count

_BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class Raw:
    """Values kept as they are, any dtype; with a ``mask``, only where it is True (elsewhere: zero).

    values -- the dense tensor, contiguous, on the CPU.
    mask -- bool, of the same shape, or None.
    """

    values: torch.Tensor
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Codebook:
    """Shared weights: each code names one value of its group's codebook.

    codes -- uint8 (k <= 256) or uint16, shape of the tensor.
    codebook -- float32 (float64 for a float64 tensor), shape (groups, k), ascending in each row; a group
        with fewer than k distinct values repeats its last one. An exact 0.0 in it is the code of the
        pruned weights: no mask is stored beside a codebook.
    """

    codes: NDArray[np.uint8] | NDArray[np.uint16]
    codebook: NDArray[np.float32] | NDArray[np.float64]
    granularity: Granularity = PER_TENSOR


@dataclass(frozen=True, eq=False)
class Affine:
    """Integers on a uniform grid: value = scale * (code - zero_point), group by group.

    codes -- int32, shape of the tensor.
    scale -- float32, shape (groups,), positive.
    zero_point -- int32, shape (groups,); all zero for a symmetric grid.
    """

    codes: NDArray[np.int32]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    granularity: Granularity = PER_TENSOR


Form = Raw | Codebook | Affine


@dataclass(frozen=True, eq=False)
class CompressedTensor:
    """A tensor of ``shape`` and ``dtype``, held in one of three forms; ``decode()`` makes it dense.

    >>> codes = np.array([[0, 1], [1, 2]], np.uint8)
    >>> book = np.array([[-0.5, 0.0, 0.5]], np.float32)
    >>> CompressedTensor((2, 2), torch.float32, Codebook(codes, book)).decode()
    tensor([[-0.5000,  0.0000],
            [ 0.0000,  0.5000]])
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    form: Form

    def __post_init__(self) -> None:
        _check(self)

    def decode(self) -> torch.Tensor:
        """The dense tensor, shape and dtype of the original, on the CPU."""
        form = self.form
        if isinstance(form, Raw):
            if form.mask is None:
                return form.values.clone()
            return torch.where(torch.from_numpy(form.mask), form.values, torch.zeros_like(form.values))
        return torch.from_numpy(np.asarray(_dense(form)).reshape(self.shape)).to(self.dtype)


def raw(tensor: torch.Tensor, mask: NDArray[np.bool_] | None = None) -> CompressedTensor:
    """Wrap a tensor without any loss; copies only if it is not contiguous or not on the CPU."""
    values = tensor.detach().cpu().contiguous()
    return CompressedTensor(tuple(values.shape), values.dtype, Raw(values, mask))


def codebook_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the codebook of a tensor of ``dtype`` is computed and kept in: the least that holds its values."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _dense(form: Codebook | Affine) -> NDArray[Any]:
    if isinstance(form, Codebook):
        if form.codebook.shape[0] == 1:
            return _look_up(form.codebook[0], form.codes)
        groups = expand_groups(np.arange(form.codebook.shape[0]), form.codes.shape, form.granularity)
        values: NDArray[Any] = form.codebook[groups, form.codes]
        return values
    shape = form.codes.shape
    scale = expand_groups(form.scale, shape, form.granularity)
    zero_point = expand_groups(form.zero_point, shape, form.granularity)
    dense = np.empty(shape, np.float32)
    np.subtract(form.codes, zero_point, out=dense, dtype=np.int32, casting="unsafe")
    dense *= scale
    return dense


def _look_up(values: NDArray[Any], codes: NDArray[Any]) -> NDArray[Any]:
    """``values[codes]`` block by block: NumPy widens an index to 8 bytes, for all of it at once."""
    dense = np.empty(codes.shape, values.dtype)
    flat, out = codes.reshape(-1), dense.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        out[start : start + _BLOCK] = values[flat[start : start + _BLOCK]]
    return dense


def _check(tensor: CompressedTensor) -> None:
    form = tensor.form
    if isinstance(form, Raw):
        shapes = [tuple(form.values.shape), tensor.shape if form.mask is None else form.mask.shape]
    else:
        shapes = [form.codes.shape]
    if any(tuple(shape) != tuple(tensor.shape) for shape in shapes):
        raise TensorError(f"the parts have shapes {shapes}, the tensor {tensor.shape}")
    if isinstance(form, Raw):
        return
    if not tensor.dtype.is_floating_point:
        raise TensorError(f"codes decode to a floating dtype, not {tensor.dtype}")
    wanted = str(codebook_dtype(tensor.dtype)).removeprefix("torch.")
    if isinstance(form, Codebook) and form.codebook.dtype != wanted:
        raise TensorError(f"a codebook of {tensor.dtype} weights is {wanted}, not {form.codebook.dtype}")
    groups = group_count(tensor.shape, form.granularity)
    rows = len(form.codebook) if isinstance(form, Codebook) else len(form.scale)
    if rows != groups:
        raise TensorError(f"{rows} groups are stored, {tensor.shape} by {form.granularity} has {groups}")
