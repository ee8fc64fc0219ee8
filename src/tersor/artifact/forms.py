"""A compressed tensor as index entry and payloads, and back; bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor import coding
from tersor.artifact.container import MAX_DIMS, MAX_LEVELS, STORED, Blob, Entry, Part, level_dtype
from tersor.artifact.words import (
    Bits,
    bit_view,
    components,
    dtype_name,
    from_bits,
    itemsize,
    narrow,
    torch_dtype,
    widen,
)
from tersor.errors import FormatError, TensorError
from tersor.spec import Speed
from tersor.tensor.compressed import Affine, Codebook, CompressedTensor, Form, Raw
from tersor.tensor.groups import PER_TENSOR, Granularity

Payload = tuple[int, bytes]
NOTHING: Payload = (0, b"")  # what is known without a payload has none
_CODED_LEVELS = 1 << 16  # more levels than this are stored as values
_SAMPLE = 1 << 16
_CODE_BYTES = 8  # memory for each code while codes are read: two arrays of 16 bits, Zstandard's window
_LINE_BYTES = 50


def encode_tensor(name: str, tensor: CompressedTensor, speed: Speed) -> tuple[Entry, list[bytes]]:
    """The entry and the payloads of its chunk, in order."""
    if len(tensor.shape) > MAX_DIMS:
        raise TensorError(f"{len(tensor.shape)} dimensions; the file takes {MAX_DIMS}")
    entry = Entry(name, "raw", dtype_name(tensor.dtype), tuple(tensor.shape), "float32", ())
    form = tensor.form
    if isinstance(form, Raw):
        entry, payloads = _encode_raw(entry, form, speed)
    elif isinstance(form, Codebook):
        entry, payloads = _encode_codebook(entry, form, speed)
    else:
        entry, payloads = _encode_affine(entry, form, speed)
    parts = tuple(Part(method, len(data)) for method, data in payloads)
    return replace(entry, parts=parts), [data for _, data in payloads]


def coded_bytes(tensor: CompressedTensor, speed: Speed) -> int:
    """What the tensor takes in a file, without its name and the rest of its entry in the index."""
    return sum(map(len, encode_tensor("", tensor, speed)[1]))


def decode_tensor(entry: Entry, chunk: bytes) -> CompressedTensor:
    """The tensor whose chunk this is; raises :class:`FormatError` where the payloads do not fit the entry."""
    ends = accumulate(part.size for part in entry.parts)
    payloads = [
        (part.method, chunk[end - part.size : end]) for part, end in zip(entry.parts, ends, strict=True)
    ]
    decode: dict[str, Callable[[Entry, list[Payload]], Form]] = {
        "raw": _decode_raw,
        "masked": _decode_masked,
        "codebook": _decode_codebook,
        "affine": _decode_affine,
    }
    return CompressedTensor(entry.shape, torch_dtype(entry.dtype), decode[entry.form](entry, payloads))


def encode_blob(data: bytes, speed: Speed) -> tuple[Blob, bytes]:
    """Opaque bytes as a blob and its payload."""
    method, payload = _encode_words(np.frombuffer(data, np.uint8), speed)
    return Blob(len(data), Part(method, len(payload))), payload


def decode_blob(blob: Blob, chunk: bytes) -> bytes:
    """The inverse of :func:`encode_blob`."""
    return _decode_words((blob.part.method, chunk), blob.count, "uint8", "uint8").tobytes()


def dense_bytes(entry: Entry) -> int:
    """Memory of the dense tensor alone."""
    return entry.count * itemsize(entry.dtype)


def decoded_bytes(what: Entry | Blob) -> int:
    """Memory that decoding takes at most, from the index alone: the dense tensor and all on the way to it.

    Not counted: the payloads, which are held twice, and tables and blocks, at most 16 MiB for any tensor.
    """
    if isinstance(what, Blob):
        return what.count * _word_bytes("uint8")
    dtype, each = components(what.dtype)
    if what.form == "raw" and what.dtype != "bool":
        return what.count * each * _word_bytes(dtype)
    codes = _line_bytes(what)
    if what.form == "raw":
        return codes + what.count * _CODE_BYTES
    if what.form == "masked":
        return codes + what.count * (1 + each * (_word_bytes(dtype) + itemsize(dtype) + 1))
    values = level_dtype(what.form, what.dtype)
    tables = what.groups * (what.levels if what.form == "codebook" else 2)
    reading = _CODE_BYTES if what.levels <= _CODED_LEVELS else _word_bytes("uint32")
    held = 4 if what.form == "affine" else _code_type(what.levels).itemsize
    spread = 16 if what.granularity.kind == "block" else 0  # a group's number or scale beside each weight
    dense = itemsize(values) + (0 if values == what.dtype else itemsize(what.dtype))
    return codes + what.count * max(reading, held + spread + dense) + tables * _word_bytes(values)


def _line_bytes(entry: Entry) -> int:
    """What methods 3 and 4 remember of each row and column; of a tensor of one row that is most."""
    if entry.count == 0 or entry.parts[0].method not in (3, 4):
        return 0
    columns = _columns(entry)
    return _LINE_BYTES * (entry.count // columns + columns)


def _word_bytes(dtype: str) -> int:
    """Memory for each value while values are read: planes, Zstandard's window, two types of it."""
    return 3 * itemsize(dtype) + 2


def digest(tensor: CompressedTensor) -> bytes:
    """A fingerprint of what a file has to give back: shape, dtype, form, and every bit of its arrays."""
    state = blake2b(repr((tuple(tensor.shape), dtype_name(tensor.dtype))).encode(), digest_size=16)
    form = tensor.form
    arrays: list[NDArray[Any]]
    if isinstance(form, Raw):
        words = bit_view(form.values)
        if form.mask is None:
            arrays = [words]
        else:
            mask = np.ascontiguousarray(form.mask).reshape(-1)
            arrays = [mask, _kept(words, mask)]
        granularity = PER_TENSOR
    elif isinstance(form, Codebook):
        arrays = [_unsigned(form.codes, form.codebook.shape[1]), form.codebook]
        granularity = _plain(form.granularity, tensor.shape)
    else:
        arrays = [form.codes, form.scale, form.zero_point]
        granularity = _plain(form.granularity, tensor.shape)
    state.update(f"{type(form).__name__} {granularity}".encode())
    for array in arrays:
        state.update(f"{array.shape} {array.dtype}".encode())
        state.update(np.ascontiguousarray(array).reshape(-1).data)
    return state.digest()


def _encode_raw(entry: Entry, form: Raw, speed: Speed) -> tuple[Entry, list[Payload]]:
    words = bit_view(form.values)
    payloads = []
    if form.mask is not None:
        mask = np.ascontiguousarray(form.mask).reshape(-1)
        payloads.append(_encode_codes(replace(entry, levels=2), mask.view(np.uint8), 0, speed))
        words = _kept(words, mask)
        entry = replace(entry, form="masked")
    if entry.dtype == "bool" and form.mask is None:
        payloads.append(_encode_codes(replace(entry, levels=2), words, 0, speed))
        return replace(entry, stored="bool"), payloads
    stored, words = narrow(words, components(entry.dtype)[0], STORED[entry.dtype])
    return replace(entry, stored=stored), [*payloads, _encode_words(words, speed)]


def _decode_raw(entry: Entry, payloads: list[Payload]) -> Raw:
    if entry.dtype == "bool":
        words: Bits = _decode_codes(replace(entry, levels=2), payloads[0], 0)
    else:
        dtype, each = components(entry.dtype)
        words = _decode_words(payloads[0], entry.count * each, entry.stored, dtype)
    return Raw(from_bits(words, entry.dtype, entry.shape))


def _decode_masked(entry: Entry, payloads: list[Payload]) -> Raw:
    mask = _decode_codes(replace(entry, levels=2), payloads[0], 0).view(np.bool_)
    dtype, each = components(entry.dtype)
    kept = _decode_words(payloads[1], int(np.count_nonzero(mask)) * each, entry.stored, dtype)
    if entry.dtype == "bool" and kept.size and kept.max() > 1:
        raise FormatError("a bool that is neither 0 nor 1")
    words = np.zeros(entry.count * each, kept.dtype)
    words[mask if each == 1 else np.repeat(mask, each)] = kept
    return Raw(from_bits(words, entry.dtype, entry.shape), mask.reshape(entry.shape))


def _encode_codebook(entry: Entry, form: Codebook, speed: Speed) -> tuple[Entry, list[Payload]]:
    levels = form.codebook.shape[1]
    codes = _unsigned(form.codes, levels).reshape(-1)
    if levels > MAX_LEVELS["codebook"] or (codes.size and int(codes.max()) >= levels):
        raise TensorError(f"a codebook of {levels} values; codes of up to 65,536 values can be stored")
    granularity = _plain(form.granularity, entry.shape)
    entry = replace(entry, form="codebook", levels=levels, granularity=granularity)
    center = _codebook_center(form.codebook)
    if center is None and _needs_center(entry):
        center = int(np.bincount(codes[:: max(len(codes) // _SAMPLE, 1)]).argmax())
        entry = replace(entry, center=center)
    payload = _encode_codes(entry, codes, center or 0, speed)
    dtype = level_dtype("codebook", entry.dtype)
    book = np.ascontiguousarray(form.codebook, dtype).reshape(-1).view(f"u{itemsize(dtype)}")
    stored, words = narrow(book, dtype, STORED[dtype])
    return replace(entry, stored=stored), [payload, _encode_words(words, speed)]


def _decode_codebook(entry: Entry, payloads: list[Payload]) -> Codebook:
    dtype = level_dtype("codebook", entry.dtype)
    words = _decode_words(payloads[1], entry.groups * entry.levels, entry.stored, dtype)
    codebook = words.view(dtype).reshape(entry.groups, entry.levels)
    center = _agreed_center(entry, _codebook_center(codebook))
    codes = _decode_codes(entry, payloads[0], center)
    return Codebook(codes.reshape(entry.shape), codebook, entry.granularity)


def _encode_affine(entry: Entry, form: Affine, speed: Speed) -> tuple[Entry, list[Payload]]:
    codes = np.ascontiguousarray(form.codes, np.int32).reshape(-1)
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    shifted = bool(np.any(form.zero_point))
    granularity = _plain(form.granularity, entry.shape)
    entry = replace(entry, form="affine", offset=low, levels=high - low + 1, shifted=shifted,
                    granularity=granularity)  # fmt: skip
    center = _affine_center(entry, form.zero_point)
    from_zero = np.empty(codes.shape, _code_type(entry.levels))
    np.subtract(codes, np.int32(low), out=from_zero, dtype=np.int32, casting="unsafe")
    if center is None and _needs_center(entry):
        center = int(np.bincount(from_zero[:: max(len(codes) // _SAMPLE, 1)]).argmax())
        entry = replace(entry, center=center)
    payloads = [_encode_codes(entry, from_zero, center or 0, speed)]
    scale = np.ascontiguousarray(form.scale, np.float32).view(np.uint32)
    stored, words = narrow(scale, "float32", STORED["float32"])
    payloads.append(_encode_words(words, speed))
    if shifted:
        zero_point = np.ascontiguousarray(form.zero_point, np.int32).view(np.uint32)
        payloads.append(_encode_words(zero_point, speed))
    return replace(entry, stored=stored), payloads


def _decode_affine(entry: Entry, payloads: list[Payload]) -> Affine:
    scale = _decode_words(payloads[1], entry.groups, entry.stored, "float32").view(np.float32)
    zero_point = np.zeros(entry.groups, np.int32)
    if entry.shifted:
        zero_point = _decode_words(payloads[2], entry.groups, "int32", "int32").view(np.int32)
        if not zero_point.any():
            raise FormatError("zero points are stored, and all zero")
    center = _agreed_center(entry, _affine_center(entry, zero_point))
    codes = _decode_codes(entry, payloads[0], center).astype(np.uint32)
    codes += np.uint32(entry.offset & 0xFFFFFFFF)
    return Affine(codes.view(np.int32).reshape(entry.shape), scale, zero_point, entry.granularity)


def _encode_codes(entry: Entry, codes: Bits, center: int, speed: Speed) -> Payload:
    if codes.size == 0 or entry.levels == 1:
        return NOTHING
    if entry.levels > _CODED_LEVELS:
        return coding.encode_values(codes, speed=speed)
    return coding.encode(codes, columns=_columns(entry), levels=entry.levels, center=center, speed=speed)


def _decode_codes(entry: Entry, payload: Payload, center: int) -> Bits:
    word = _code_type(entry.levels)
    if entry.count == 0 or entry.levels == 1:
        _expect_nothing(payload)
        return np.zeros(entry.count, word)
    if entry.levels > _CODED_LEVELS:
        codes = _decode_words(payload, entry.count, "uint32", "uint32")
    else:
        codes = coding.decode(*payload, count=entry.count, columns=_columns(entry), levels=entry.levels,
                             center=center).astype(word, copy=False)  # fmt: skip
    if codes.max() >= entry.levels:
        raise FormatError(f"a code of {int(codes.max())}, where there are {entry.levels} levels")
    return codes.reshape(-1)


def _encode_words(words: Bits, speed: Speed) -> Payload:
    return coding.encode_values(words, speed=speed) if words.size else NOTHING


def _decode_words(payload: Payload, count: int, stored: str, dtype: str) -> Bits:
    if count == 0:
        _expect_nothing(payload)
        return np.zeros(0, f"u{itemsize(dtype)}")
    size = itemsize(stored)
    plain = coding.decode_values(*payload, count=count, itemsize=size)
    words = widen(np.frombuffer(plain, f"<u{size}"), stored, dtype)
    return np.require(words, f"u{itemsize(dtype)}", "W")


def _expect_nothing(payload: Payload) -> None:
    if payload != NOTHING:
        raise FormatError(f"{len(payload[1])} bytes of payload where nothing is to be told")


def _needs_center(entry: Entry) -> bool:
    return entry.count > 0 and 1 < entry.levels <= _CODED_LEVELS


def _agreed_center(entry: Entry, derived: int | None) -> int:
    """The code that contexts grow from: derived where it can be, stored where it has to be, never both."""
    stored = entry.center
    if (stored is not None) != (derived is None and _needs_center(entry)):
        raise FormatError("the center is stored where it follows, or missing where it does not")
    return stored if stored is not None else derived or 0


def _codebook_center(codebook: NDArray[Any]) -> int | None:
    """The code of an exact zero, if all weights share one codebook and it has one."""
    if len(codebook) != 1 or not (codebook == 0).any():
        return None
    return int((codebook == 0).argmax())


def _affine_center(entry: Entry, zero_point: NDArray[np.int32]) -> int | None:
    """The code of zero, if all groups share it and the codes reach it."""
    if len(zero_point) == 0 or (zero_point != zero_point[0]).any():
        return None
    center = int(zero_point[0]) - entry.offset
    return center if 0 <= center < min(entry.levels, _CODED_LEVELS) else None


def _kept(words: Bits, mask: NDArray[np.bool_]) -> Bits:
    each = len(words) // max(len(mask), 1)
    return words[mask if each == 1 else np.repeat(mask, each)]


def _columns(entry: Entry) -> int:
    return entry.count // entry.shape[0] if len(entry.shape) > 1 else entry.count


def _code_type(levels: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if levels <= 1 << 8 else np.uint16 if levels <= 1 << 16 else np.uint32)


def _unsigned(codes: NDArray[Any], levels: int) -> Bits:
    return np.ascontiguousarray(codes, _code_type(levels))


def _plain(granularity: Granularity, shape: tuple[int, ...]) -> Granularity:
    """The granularity as the file has it: of no axis where there is one group, never a negative one."""
    if granularity.kind == "tensor" or not shape:
        return PER_TENSOR
    return Granularity(granularity.kind, granularity.axis % len(shape), granularity.size)
