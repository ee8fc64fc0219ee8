"""Some channels of a compressed tensor, in the form that it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tersor.errors import TensorError
from tersor.spec import NOT_FROM_BLOCKS
from tersor.tensor.codebook import tidy_codebook
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, Form, Raw
from tersor.tensor.groups import Granularity

Index = NDArray[np.int64]


def take(compressed: CompressedTensor, axis: int, index: Index) -> CompressedTensor:
    """The tensor at ``index`` along ``axis``: values, masks, codes and scales go with their channels.

    What it decodes to is that of the whole tensor, taken there. Values of a codebook that no code names any
    more go. Raises :class:`TensorError` for codes in blocks, which would begin elsewhere.

    >>> from tersor.tensor.compressed import raw
    >>> take(raw(torch.tensor([[1, 2], [3, 4], [5, 6]])), 0, np.array([0, 2])).decode().tolist()
    [[1, 2], [5, 6]]
    """
    form = compressed.form
    axis %= len(compressed.shape)
    taken: Form
    if isinstance(form, Raw):
        mask = None if form.mask is None else np.ascontiguousarray(form.mask.take(index, axis))
        taken = Raw(form.values.index_select(axis, torch.from_numpy(index)), mask)
    else:
        _check(compressed, form.granularity)
        codes: NDArray[Any] = np.ascontiguousarray(form.codes.take(index, axis))
        rows = _follows(form.granularity, axis, len(compressed.shape))
        if isinstance(form, Codebook):
            codebook = form.codebook[index] if rows else form.codebook
            taken = tidy_codebook(codes.astype(np.int64), codebook, form.granularity)
        else:
            scale = form.scale[index] if rows else form.scale
            zero_point = form.zero_point[index] if rows else form.zero_point
            taken = Affine(codes, scale, zero_point, form.granularity)
    shape = tuple(len(index) if at == axis else size for at, size in enumerate(compressed.shape))
    return CompressedTensor(shape, compressed.dtype, taken)


def _follows(granularity: Granularity, axis: int, dimensions: int) -> bool:
    """Whether each index along ``axis`` has a group of its own."""
    return granularity.kind == "channel" and granularity.axis % dimensions == axis


def _check(compressed: CompressedTensor, granularity: Granularity) -> None:
    if granularity.kind == "block":
        raise TensorError(
            f"has codes in blocks of {granularity.size}, which channels cannot be taken out of: "
            f"{NOT_FROM_BLOCKS}"
        )
