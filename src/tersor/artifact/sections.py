"""What the sections of a file hold (FORMAT.md): points and changes of structure, printed in one way only."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tersor.artifact.container import MAX_SECTION_BYTES
from tersor.artifact.fields import Cursor, check_name, parse_name, print_name, print_signed, text
from tersor.coding.framing import write_varint
from tersor.errors import FormatError, SpecError
from tersor.points import Key, QuantPoint
from tersor.structure import ATTRIBUTES, Change

_WORDS = tuple(ATTRIBUTES)
_MAX_BITS = 16
_INDEX_LIMIT = 1 << 31
_INFINITY = 0x7F800000  # as the bits of a float32; what is not below it is no finite number >= +0


def encode_points(points: Sequence[QuantPoint]) -> bytes:
    """The only bytes that :func:`decode_points` takes for these points; none for no points.

    Raises :class:`SpecError` for a point that the file has no room for: its scale has to be a float32.
    """
    if not points:
        return b""
    if len({point.key for point in points}) < len(points):
        raise SpecError("two points have one key: path, operation and index together have to be unique")
    out = bytearray(write_varint(len(points)))
    names = _Names()
    for point in points:
        _check(point)
        out += names.print("path", point.path) + names.print("operation", point.operation)
        out += write_varint(point.index)
        out.append(point.bits - 1 | point.signed << 4)
        out += struct.pack("<f", point.scale) + print_signed(point.zero_point)
    return _bounded(bytes(out), names)


def decode_points(data: bytes) -> tuple[QuantPoint, ...]:
    """The inverse of :func:`encode_points`; raises :class:`FormatError` for anything else."""
    if not data:
        return ()
    cursor, names = Cursor(data, "the points section"), _Names()
    found: dict[Key, QuantPoint] = {}
    for _ in range(_count(cursor)):
        point = _parse_point(cursor, names)
        if point.key in found:
            raise FormatError(f"the point {point.key} is there twice")
        found[point.key] = point
    cursor.finish()
    return tuple(found.values())


def encode_changes(changes: Sequence[Change]) -> bytes:
    """The only bytes that :func:`decode_changes` takes for these changes; none for no changes."""
    if not changes:
        return b""
    out = bytearray(write_varint(len(changes)))
    names = _Names()
    for change in changes:
        out += names.print("path", change.path)
        out.append(_WORDS.index(change.attribute))
        out += write_varint(change.value)
    return _bounded(bytes(out), names)


def decode_changes(data: bytes) -> tuple[Change, ...]:
    """The inverse of :func:`encode_changes`; raises :class:`FormatError` for anything else."""
    if not data:
        return ()
    cursor, names = Cursor(data, "the structure section"), _Names()
    found = []
    for _ in range(_count(cursor)):
        path, word = names.parse("path", cursor), cursor.take(1)[0]
        if word >= len(_WORDS):
            raise FormatError(f"{path}: change {word} of a module is not known: update tersor")
        try:
            found.append(Change(path, _WORDS[word], cursor.varint("the value of a change")))
        except SpecError as error:
            raise FormatError(str(error)) from error
    cursor.finish()
    return tuple(found)


class _Names:
    """Names of several lists, each shortened by the one before it in its list; their sum is bounded."""

    def __init__(self) -> None:
        self.before: dict[str, bytes] = {}
        self.size = 0

    def print(self, kind: str, name: str) -> bytes:
        """A name as the next one of its list."""
        check_name(name)
        out = print_name(name, self.before.get(kind, b""))
        self._note(kind, name.encode())
        return out

    def parse(self, kind: str, cursor: Cursor) -> str:
        """The inverse of :meth:`print`."""
        name = parse_name(cursor, self.before.get(kind, b""))
        self._note(kind, name)
        if self.size > MAX_SECTION_BYTES:
            raise FormatError(f"the names of {cursor.where} take more than {MAX_SECTION_BYTES:,} bytes")
        return text(name)

    def _note(self, kind: str, name: bytes) -> None:
        self.before[kind] = name
        self.size += len(name)


def _parse_point(cursor: Cursor, names: _Names) -> QuantPoint:
    path, operation = names.parse("path", cursor), names.parse("operation", cursor)
    index = cursor.varint("the index of a call", _INDEX_LIMIT)
    flags = cursor.take(1)[0]
    if flags >> 5:
        raise FormatError(f"{path}: flags {flags:#x} of a point are not known")
    scale = cursor.take(4)
    if int.from_bytes(scale, "little") >= _INFINITY:
        raise FormatError(f"{path}: the scale of a point is negative or not finite")
    zero_point = cursor.signed("a zero point", 32)
    bits, signed = (flags & 15) + 1, bool(flags >> 4)
    return QuantPoint(path, operation, index, bits, signed, struct.unpack("<f", scale)[0], zero_point)


def _check(point: QuantPoint) -> None:
    wrong = ""
    if not 1 <= point.bits <= _MAX_BITS:
        wrong = f"bits {point.bits}: it has to be 1 to {_MAX_BITS}"
    elif not 0 <= point.index < _INDEX_LIMIT:
        wrong = f"index {point.index}: it has to be 0 or more, below 2^31"
    elif not -(1 << 31) <= point.zero_point < 1 << 31:
        wrong = f"zero point {point.zero_point}: it has to be an int32"
    elif not _is_scale(point.scale):
        wrong = f"scale {point.scale!r}: it has to be a finite float32, 0 or more; round it first"
    if wrong:
        raise SpecError(f"point {point.key} has {wrong}")


def _is_scale(scale: float) -> bool:
    try:
        bits = struct.pack("<f", scale)
    except OverflowError:
        return False
    return int.from_bytes(bits, "little") < _INFINITY and struct.unpack("<f", bits)[0] == scale


def _count(cursor: Cursor) -> int:
    count = cursor.varint(f"the number of entries in {cursor.where}")
    if not count:
        raise FormatError(f"{cursor.where} is there, and empty")
    return count


def _bounded(data: bytes, names: _Names) -> bytes:
    if max(len(data), names.size) > MAX_SECTION_BYTES:
        raise SpecError(f"a section of {len(data):,} bytes with names of {names.size:,} is past the limit of "
                        f"{MAX_SECTION_BYTES:,}")  # fmt: skip
    return data
