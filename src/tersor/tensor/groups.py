"""Which weights of a tensor share a codebook or a scale: all, a channel, or a block of a channel.

Groups are laid out on the tensor seen as a matrix of (shape[axis], everything else).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tersor.errors import SpecError


@dataclass(frozen=True)
class Granularity:
    """``tensor``; ``channel`` along ``axis``; or ``block`` of ``size`` weights inside a channel.

    A block never crosses a channel: the last one of a channel may be short.
    """

    kind: Literal["tensor", "channel", "block"] = "tensor"
    axis: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("tensor", "channel", "block"):
            raise SpecError(f"granularity {self.kind!r} is not one of tensor, channel, block")
        if (self.size > 0) != (self.kind == "block"):
            raise SpecError(f"granularity {self.kind!r} with block size {self.size}: a block, and "
                            "only a block, has a size of at least 1")  # fmt: skip


PER_TENSOR = Granularity()


def group_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, int]:
    """(channels, groups in each channel) of a tensor of ``shape``.

    >>> group_shape((4, 10), Granularity("block", size=4))
    (4, 3)
    """
    if granularity.kind == "tensor" or not shape:
        return 1, 1
    channels = shape[_axis(shape, granularity)]
    if granularity.kind == "channel":
        return channels, 1
    width = prod(shape) // max(channels, 1)
    return channels, -(-width // granularity.size)


def group_count(shape: tuple[int, ...], granularity: Granularity) -> int:
    """How many groups a tensor of ``shape`` has."""
    channels, inside = group_shape(shape, granularity)
    return channels * inside


def split_groups(array: NDArray[Any], granularity: Granularity) -> list[NDArray[Any]]:
    """The members of each group, flat, in group order (views where memory allows)."""
    if granularity.kind == "tensor" or not array.ndim:
        return [array.reshape(-1)]
    rows = _as_rows(array, granularity)
    if granularity.kind == "channel":
        return list(rows)
    size = granularity.size
    return [row[at : at + size] for row in rows for at in range(0, rows.shape[1], size)]


def ravel_groups(array: NDArray[Any], granularity: Granularity) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """All members flat and contiguous in group order, and where each group begins: (groups + 1,).

    ``join_groups([flat], ...)`` is the inverse.
    """
    if granularity.kind == "tensor" or not array.ndim:
        return np.ascontiguousarray(array).reshape(-1), np.array([0, array.size])
    rows = _as_rows(array, granularity)
    width = rows.shape[1]
    inside = range(0, width, granularity.size) if granularity.kind == "block" else (0,)
    begins = np.arange(len(rows))[:, None] * width + np.array(inside, np.int64)
    return np.ascontiguousarray(rows).reshape(-1), np.append(begins.reshape(-1), array.size)


def join_groups(groups: list[NDArray[Any]], shape: tuple[int, ...], granularity: Granularity) -> NDArray[Any]:
    """The inverse of :func:`split_groups`, contiguous; without any group, int64."""
    flat = groups[0] if len(groups) == 1 else np.concatenate(groups or [np.zeros(0, np.int64)])
    if granularity.kind == "tensor" or not shape:
        return np.ascontiguousarray(flat).reshape(shape)
    axis = _axis(shape, granularity)
    moved = flat.reshape(shape[axis], *_without(shape, axis))
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))


def expand_groups(values: NDArray[Any], shape: tuple[int, ...], granularity: Granularity) -> NDArray[Any]:
    """One value a group (groups,) -> an array that broadcasts over ``shape``."""
    if granularity.kind == "tensor" or not shape:
        return values.reshape((1,) * len(shape))
    channels, inside = group_shape(shape, granularity)
    if granularity.kind == "channel":
        wide = [1] * len(shape)
        wide[_axis(shape, granularity)] = channels
        return values.reshape(wide)
    axis = _axis(shape, granularity)
    rest = _without(shape, axis)
    size = min(granularity.size, prod(rest))  # a block may be declared far longer than its channel is
    rows = np.repeat(values.reshape(channels, inside), size, axis=1)[:, : prod(rest)]
    return np.moveaxis(rows.reshape(channels, *rest), 0, axis)


def group_layout(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, int, int, int]:
    """(outer, channels, inner, size) of a contiguous tensor, for kernels that walk it without a copy.

    Weight ``i`` of the memory sits in channel ``c = i // inner % channels``, at place ``p = i // (inner *
    channels) * inner + i % inner`` of it; its group is ``c * (groups in a channel) + p // size``.

    >>> group_layout((4, 10, 3), Granularity("block", axis=1, size=8))
    (4, 10, 3, 8)
    """
    if granularity.kind == "tensor" or not shape:
        return 1, 1, prod(shape), max(prod(shape), 1)
    axis = _axis(shape, granularity)
    outer, inner = prod(shape[:axis]), prod(shape[axis + 1 :])
    size = granularity.size if granularity.kind == "block" else max(outer * inner, 1)
    return outer, shape[axis], inner, size


def _as_rows(array: NDArray[Any], granularity: Granularity) -> NDArray[Any]:
    moved = np.moveaxis(array, _axis(array.shape, granularity), 0)
    return moved.reshape(moved.shape[0], prod(moved.shape[1:]))


def _axis(shape: tuple[int, ...], granularity: Granularity) -> int:
    axis = granularity.axis
    if not -len(shape) <= axis < len(shape):
        raise SpecError(f"axis {axis} of shape {shape}: it has to be from {-len(shape)} to {len(shape) - 1}")
    return axis % len(shape)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
