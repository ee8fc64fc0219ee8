"""Tensors as words of bits, in the narrowest type that gives every bit back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tersor.artifact.container import DTYPES
from tersor.errors import FormatError, TensorError

Bits = NDArray[np.unsignedinteger[Any]]
_BLOCK = 1 << 16  # values looked at together: temporaries stay in the cache


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``; a type that the file has no name for is an error."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TensorError(f"dtype {name} cannot be stored; convert the tensor first")
    return name


def torch_dtype(name: str) -> torch.dtype:
    """The inverse of :func:`dtype_name`; an older torch may lack a type."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"dtype {name} is not known to torch {torch.__version__}: update torch")
    return dtype


def itemsize(name: str) -> int:
    """Bytes of one value."""
    return torch_dtype(name).itemsize


def bit_view(values: torch.Tensor) -> Bits:
    """The bits of a tensor as flat unsigned integers, a complex number as two; shares memory if it can."""
    flat = values.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    return flat.view(signed).numpy().view(f"u{flat.element_size()}")


def from_bits(bits: Bits, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of :func:`bit_view`, of ``shape``."""
    target = torch_dtype(dtype)
    size = bits.dtype.itemsize
    flat = torch.from_numpy(bits.view(f"i{size}"))
    if target.is_complex:
        real = {2: torch.float16, 4: torch.float32, 8: torch.float64}[size]
        return torch.view_as_complex(flat.view(real).reshape(-1, 2)).reshape(shape)
    return flat.view(target).reshape(shape)


def components(dtype: str) -> tuple[str, int]:
    """The type and number of the words that :func:`bit_view` gives for one value."""
    return {"complex32": ("float16", 2), "complex64": ("float32", 2), "complex128": ("float64", 2)}.get(
        dtype, (dtype, 1)
    )


def narrow(bits: Bits, dtype: str, candidates: tuple[str, ...]) -> tuple[str, Bits]:
    """``bits`` of ``dtype`` in the first of ``candidates`` that loses nothing.

    >>> narrow(np.array([0.5, -2.0], np.float32).view(np.uint32), "float32", ("float16", "float32"))
    ('float16', array([14336, 49152], dtype=uint16))
    """
    for stored in candidates:
        if stored == dtype:
            break
        out = np.empty(len(bits), f"u{itemsize(stored)}")
        for start in range(0, len(bits), _BLOCK):
            block = bits[start : start + _BLOCK]
            low = _narrow_block(block, dtype, stored)
            if not np.array_equal(widen(low, stored, dtype), block):
                break
            out[start : start + _BLOCK] = low
        else:
            return stored, out
    return dtype, bits


def widen(bits: Bits, stored: str, dtype: str) -> Bits:
    """The inverse of :func:`narrow`, exact: every value of ``stored`` is one of ``dtype``."""
    if stored == dtype:
        return bits
    return _bits(_numbers(bits, stored).astype(_number_type(dtype), copy=False), dtype)


def _narrow_block(block: Bits, dtype: str, stored: str) -> Bits:
    numbers = _numbers(block, dtype)
    upper_half = (dtype, stored) == ("float32", "bfloat16")
    if not upper_half and numbers.dtype.kind == "f" and np.isnan(numbers).any():
        return np.zeros(len(block), f"u{itemsize(stored)}")  # machines differ in how they convert a NaN
    with np.errstate(over="ignore", invalid="ignore"):
        if stored == "bfloat16":
            return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return numbers.astype(_number_type(stored)).view(f"u{itemsize(stored)}")


def _number_type(dtype: str) -> np.dtype[Any]:
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def _numbers(bits: Bits, dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16":
        wide = bits.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return bits.view(_number_type(dtype))


def _bits(numbers: NDArray[Any], dtype: str) -> Bits:
    return numbers.view(f"u{_number_type(dtype).itemsize}")
