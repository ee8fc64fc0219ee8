"""Write a ``.tersor`` file, verified before it replaces anything."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from tersor.artifact.container import (
    HEAD,
    MAX_INDEX_BYTES,
    MAX_SECTION_BYTES,
    POINTS,
    STRUCTURE,
    TINY_BYTES,
    Blob,
    Entry,
    Index,
    Key,
    print_tail,
)
from tersor.artifact.fields import check_name
from tersor.artifact.forms import digest, encode_blob, encode_tensor
from tersor.artifact.index import print_index
from tersor.artifact.reader import Reader
from tersor.errors import FormatError, TensorError, TersorError, VerificationError, in_context
from tersor.result import Ledger
from tersor.spec import Speed
from tersor.tensor.compressed import CompressedTensor

_NO_LIMIT = 1 << 62  # what was just in memory may come back into it


def write(
    path: str | Path,
    tensors: Iterable[tuple[str, CompressedTensor]],
    *,
    aliases: Mapping[str, str] | None = None,
    points: bytes = b"",
    structure: bytes = b"",
    attachments: Mapping[str, bytes] | None = None,
    speed: Speed = "small",
) -> Ledger:
    """Write a file beside ``path``, read it back in full, and only then put it in the place of ``path``.

    One tensor is in memory at a time. ``aliases`` maps further names to stored ones (tied weights);
    ``points`` and ``structure`` are what :mod:`tersor.artifact.sections` encodes.
    Raises :class:`TersorError` where the disk refuses (full, read-only, no such folder) and
    :class:`VerificationError` where the file does not give back every bit; whatever is raised, an old
    file stays as it was and nothing half-written is left.
    """
    target = Path(os.path.realpath(path))
    tied = dict(aliases or {})
    blobs = _blobs(points, structure, attachments or {})
    with replacing(target) as partial:
        with disk_errors(target):
            file = partial.open("xb")
        with file:
            writer = _Writer(file, target, speed)
            for name, tensor in tensors:
                writer.tensor(name, tensor)
            writer.finish(tied, blobs)
        try:
            with Reader(partial, max_bytes=_NO_LIMIT) as reader:
                _verify(reader, writer.digests, tied, blobs)
                return reader.ledger()
        except FormatError as error:
            raise VerificationError(f"{target}: the file that was written is damaged: {error}") from error


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to; takes its place at the end, is removed on any exception."""
    if target.is_dir():
        raise TersorError(f"cannot write {target}: it is a folder; name a file in it")
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield partial
        with disk_errors(target):
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """What the disk refuses becomes a :class:`TersorError` that names ``target``."""
    try:
        yield
    except OSError as error:
        raise TersorError(f"cannot write {target}: {error.strerror or error}") from error


class _Writer:
    """Appends chunks, remembers their entries, and closes the file with the index."""

    def __init__(self, file: BinaryIO, target: Path, speed: Speed) -> None:
        self.file = file
        self.target = target
        self.speed = speed
        self.entries: list[Entry] = []
        self.digests: dict[str, bytes] = {}
        self.checksums: list[int] = []
        self.running = 0
        self._append(HEAD)

    def tensor(self, name: str, tensor: CompressedTensor) -> None:
        """Append one tensor and keep its fingerprint."""
        check_name(name)
        if name in self.digests:
            raise TensorError(f"two tensors are named {name!r}")
        with in_context(name):
            entry, payloads = encode_tensor(name, tensor, self.speed)
            self.digests[name] = digest(tensor)
        self.entries.append(entry)
        self._chunk(payloads)

    def finish(self, aliases: Mapping[str, str], blobs: Mapping[Key, bytes]) -> None:
        """Append sections, index and tail, and see them on the disk."""
        _check_aliases(aliases, self.digests)
        coded = {key: self._blob(data) for key, data in blobs.items()}
        attachments = {key[1]: blob for key, blob in coded.items() if key[0] == "attachment"}
        index = Index(tuple(self.entries), aliases, coded.get(POINTS), coded.get(STRUCTURE), attachments)
        before = self.running
        if sum(index.chunks.values()) > TINY_BYTES:
            index = replace(index, checksums=tuple(self.checksums))
            before = crc32(HEAD)
        data = print_index(index)
        if len(data) > MAX_INDEX_BYTES:
            raise TensorError(
                f"{len(self.entries)} tensors take an index of {len(data)} bytes, past the limit"
            )
        self._append(data + print_tail(data, before))
        with disk_errors(self.target):
            self.file.flush()
            os.fsync(self.file.fileno())

    def _blob(self, data: bytes) -> Blob:
        blob, payload = encode_blob(data, self.speed)
        self._chunk([payload])
        return blob

    def _chunk(self, payloads: list[bytes]) -> None:
        checksum = 0
        for payload in payloads:
            checksum = crc32(payload, checksum)
            self._append(payload)
        self.checksums.append(checksum)

    def _append(self, data: bytes) -> None:
        with disk_errors(self.target):
            self.file.write(data)
        self.running = crc32(data, self.running)


def _blobs(points: bytes, structure: bytes, attachments: Mapping[str, bytes]) -> dict[Key, bytes]:
    sections = {key: data for key, data in ((POINTS, points), (STRUCTURE, structure)) if data}
    for (kind, _), data in sections.items():
        if len(data) > MAX_SECTION_BYTES:
            raise TensorError(
                f"the {kind} section takes {len(data):,} bytes, past the limit of {MAX_SECTION_BYTES:,}"
            )
    for name in attachments:
        check_name(name)
    names = sorted(attachments, key=str.encode)
    return sections | {("attachment", name): attachments[name] for name in names}


def _verify(
    reader: Reader, digests: Mapping[str, bytes], aliases: Mapping[str, str], blobs: Mapping[Key, bytes]
) -> None:
    for name, tensor in reader.items():
        if digest(tensor) != digests[name]:
            raise VerificationError(f"{name}: the file does not give back what was written")
    again = _blobs(reader.section("points"), reader.section("structure"), reader.attachments)
    if reader.names != tuple(digests) or reader.aliases != aliases or again != blobs:
        raise VerificationError("names or sections of the file are not those that were written")


def _check_aliases(aliases: Mapping[str, str], stored: Mapping[str, bytes]) -> None:
    for alias, name in aliases.items():
        check_name(alias)
        if alias in stored or name not in stored:
            raise TensorError(f"the alias {alias!r} of {name!r} needs a new name for a stored tensor")
