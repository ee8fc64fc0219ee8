"""Read a ``.tersor`` file, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self
from zlib import crc32

from tersor import coding
from tersor.artifact.container import (
    HEAD,
    MAX_INDEX_BYTES,
    TAIL_BYTES,
    TINY_BYTES,
    Entry,
    Index,
    Key,
    print_tail,
)
from tersor.artifact.forms import decode_blob, decode_tensor, decoded_bytes
from tersor.artifact.index import parse_index
from tersor.artifact.ledger import count_bytes
from tersor.artifact.sections import decode_changes, decode_points
from tersor.coding.framing import MAX_VARINT_BYTES
from tersor.errors import FormatError, TargetError, TersorError, did_you_mean, in_context
from tersor.points import QuantPoint
from tersor.result import Ledger
from tersor.structure import Change
from tersor.tensor.compressed import CompressedTensor

_MEMORY_FLOOR = 1 << 30
_MEMORY_RATIO = 1 << 12


class Reader:
    """A file that is open for reading; each tensor's bytes are read when it is asked for.

    ``max_bytes`` bounds the memory that one tensor may take while it is decoded (beside its bytes and up to
    16 MiB of coders' tables), so that a few hostile bytes cannot take it all: by default 1 GiB, or 4,096
    times the file where that is more.

    Raises :class:`FormatError` for a file that is not ours, is damaged or passes a limit.
    """

    def __init__(self, path: str | Path, *, max_bytes: int | None = None) -> None:
        self.path = Path(path)
        with _readable(self.path):
            self._file: BinaryIO = self.path.open("rb")
        try:
            with in_context(str(self.path)), _readable(self.path):
                self._open(max_bytes)
        except BaseException:
            self._file.close()
            raise

    def _open(self, max_bytes: int | None) -> None:
        self.file_bytes = os.fstat(self._file.fileno()).st_size
        self.max_bytes = max_bytes or max(_MEMORY_FLOOR, _MEMORY_RATIO * self.file_bytes)
        self._index, self._index_bytes = _read_index(self._file, self.file_bytes)
        chunks = self._index.chunks
        payload = self.file_bytes - self._index_bytes - len(HEAD) - TAIL_BYTES
        if sum(chunks.values()) != payload:
            raise FormatError(f"cut off or damaged: {payload:,} bytes of payload are there, and the index "
                              f"lists {sum(chunks.values()):,}")  # fmt: skip
        starts = accumulate(chunks.values(), initial=len(HEAD))
        checksums = self._index.checksums or [None] * len(chunks)
        self._chunks = {
            key: (start, size, check)
            for (key, size), start, check in zip(chunks.items(), starts, checksums, strict=False)
        }
        self._entries = {entry.name: entry for entry in self._index.tensors}

    @property
    def names(self) -> tuple[str, ...]:
        """The stored tensors, in the order of the file."""
        return tuple(self._entries)

    @property
    def aliases(self) -> dict[str, str]:
        """Further names -> stored names."""
        return dict(self._index.aliases)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What the index says of each stored tensor: shape, dtype, form; no payload is read for it."""
        return self._index.tensors

    @property
    def points(self) -> tuple[QuantPoint, ...]:
        """Where activations are quantized, in the order of the graph."""
        with in_context(f"{self.path}: points"):
            return decode_points(self.section("points"))

    @property
    def changes(self) -> tuple[Change, ...]:
        """What differs from the structure that ``build()`` gives, in the order to apply it."""
        with in_context(f"{self.path}: structure"):
            return decode_changes(self.section("structure"))

    def section(self, name: Literal["points", "structure"]) -> bytes:
        """A section as the bytes that were written; empty if the file has none."""
        return self._blob((name, ""))

    @property
    def attachments(self) -> dict[str, bytes]:
        """Every attachment, by name."""
        return {name: self._blob(("attachment", name)) for name in self._index.attachments}

    def read(self, name: str) -> CompressedTensor:
        """One tensor, by its name or an alias; only its bytes are read."""
        stored = self._index.aliases.get(name, name)
        if stored not in self._entries:
            raise TargetError(f"{self.path} has no tensor {name!r}.{did_you_mean(name, self._entries)}")
        entry = self._entries[stored]
        with in_context(f"{self.path}: {stored}"):
            self.check_memory(decoded_bytes(entry))
            return decode_tensor(entry, self._chunk(("tensor", stored)))

    def items(self) -> Iterator[tuple[str, CompressedTensor]]:
        """Stored names and tensors, in the order of the file, one in memory at a time."""
        for name in self.names:
            yield name, self.read(name)

    def ledger(self) -> Ledger:
        """Where every byte of the file went; of the payloads, only the lengths of tables are read for it."""
        tables = {entry.name: self._table_bytes(entry) for entry in self._index.tensors if entry.has_codes}
        return count_bytes(self._index, tables, self._index_bytes, self.file_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def check_memory(self, size: int) -> None:
        """Refuse to decode ``size`` bytes where that passes the limit."""
        if size > self.max_bytes:
            raise FormatError(
                f"decoding takes {size:,} bytes, from a file of {self.file_bytes:,}, past the limit of "
                f"{self.max_bytes:,}; if you trust the file, open it with a larger max_bytes"
            )

    def _table_bytes(self, entry: Entry) -> int:
        start, part = self._chunks["tensor", entry.name][0], entry.parts[0]

        def look(at: int) -> bytes:
            with _readable(self.path):
                self._file.seek(start + at)
                return self._file.read(max(min(MAX_VARINT_BYTES, part.size - at), 0))

        with in_context(f"{self.path}: {entry.name}"):
            tables = coding.table_bytes(part.method, look)
            if tables > part.size:
                raise FormatError(f"tables of {tables} bytes in {part.size} bytes of codes")
        return tables

    def _chunk(self, key: Key) -> bytes:
        start, size, checksum = self._chunks[key]
        with _readable(self.path):
            self._file.seek(start)
            data = self._file.read(size)
        if len(data) != size or (checksum is not None and crc32(data) != checksum):
            raise FormatError("the checksum does not match: the file is damaged")
        return data

    def _blob(self, key: Key) -> bytes:
        blob = self._index.blobs.get(key)
        if blob is None:
            return b""
        with in_context(f"{self.path}: {key[0]} {key[1]}".rstrip()):
            self.check_memory(decoded_bytes(blob))
            return decode_blob(blob, self._chunk(key))


def _read_index(file: BinaryIO, size: int) -> tuple[Index, int]:
    """The index and its bytes, after head, tail and checksum were checked."""
    head = file.read(len(HEAD))
    if head[:-1] != HEAD[:-1]:
        raise FormatError(f"not a .tersor file: it starts with {head[:-1]!r}" if head else "an empty file")
    if head != HEAD:
        raise FormatError(f"version {head[-1]} of the format; this reads version {HEAD[-1]}: update tersor")
    if size < len(HEAD) + TAIL_BYTES:
        raise FormatError(f"cut off or damaged: {size:,} bytes are there")
    file.seek(size - TAIL_BYTES)
    tail = file.read(TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little")
    start = size - TAIL_BYTES - length
    if start < len(HEAD) or length > MAX_INDEX_BYTES:
        raise FormatError(f"cut off or damaged: {size:,} bytes are there")
    before = crc32(HEAD)
    if start - len(HEAD) <= TINY_BYTES:
        file.seek(len(HEAD))
        before = crc32(file.read(start - len(HEAD)), before)
    file.seek(start)
    data = file.read(length)
    if print_tail(data, before) != tail:
        raise FormatError(f"cut off or damaged: {size:,} bytes are there, and the checksum does not match")
    return parse_index(data), length


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TersorError(f"cannot read {path}: {error.strerror or error}") from error
