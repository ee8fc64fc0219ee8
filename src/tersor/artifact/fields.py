"""The fields of an index and of a section (FORMAT.md: v, s, name), each printed in exactly one way."""

from __future__ import annotations

from tersor.artifact.container import MAX_NAME_BYTES
from tersor.coding.framing import read_varint, write_varint
from tersor.errors import FormatError, TensorError, in_context


class Cursor:
    """Takes bytes from the front of ``data``, never more than there are; ``where`` is what they are of."""

    def __init__(self, data: bytes, where: str = "the index") -> None:
        self.data = data
        self.where = where
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > len(self.data) - self.at:
            raise FormatError(f"{self.where} ends {size - len(self.data) + self.at} bytes too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def varint(self, what: str, limit: int = 1 << 63) -> int:
        """An unsigned LEB128 number below ``limit``, in as few bytes as it takes."""
        with in_context(what):
            value, self.at = read_varint(self.data, self.at)
        if value >= limit:
            raise FormatError(f"{what} is {value}: the limit is {limit - 1}")
        return value

    def signed(self, what: str, bits: int) -> int:
        """A number of ``bits`` bits, two's complement, folded to an unsigned one."""
        value = self.varint(what, 1 << bits)
        return ~(value >> 1) if value & 1 else value >> 1

    def finish(self) -> None:
        """Everything must have been taken."""
        if self.at != len(self.data):
            raise FormatError(f"{len(self.data) - self.at} bytes are left over in {self.where}")


def print_signed(value: int) -> bytes:
    """What :meth:`Cursor.signed` reads."""
    return write_varint(value << 1 if value >= 0 else ~(value << 1))


def print_name(name: str, before: bytes) -> bytes:
    """A name, by what it shares with the one before it in its list."""
    data = name.encode()
    shared = 0
    while shared < min(len(data), len(before)) and data[shared] == before[shared]:
        shared += 1
    return write_varint(shared) + write_varint(len(data) - shared) + data[shared:]


def parse_name(cursor: Cursor, before: bytes) -> bytes:
    """The bytes of what :func:`print_name` printed."""
    shared = cursor.varint("the shared start of a name", len(before) + 1)
    rest = cursor.take(cursor.varint("the length of a name", MAX_NAME_BYTES + 1 - shared))
    if rest and shared < len(before) and rest[0] == before[shared]:
        raise FormatError("a name shares more with the one before it than it says")
    return before[:shared] + rest


def text(name: bytes) -> str:
    """A name as a string; :class:`FormatError` where it is not UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"the name {name[:40]!r} is not UTF-8") from error


def check_name(name: str) -> None:
    """Raise :class:`TensorError` for a name that a file cannot hold."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise TensorError(f"the name {name!r} is not valid Unicode") from error
    if size > MAX_NAME_BYTES:
        raise TensorError(f"the name {name[:40]!r}... takes {size} bytes, past the limit of {MAX_NAME_BYTES}")
