"""The index of a file: printed in exactly one way, and read back to its last byte (FORMAT.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from tersor.artifact.container import (
    DTYPES,
    FORMS,
    GRANULARITIES,
    MAX_COUNT,
    MAX_DIMS,
    MAX_LEVELS,
    MAX_SECTION_BYTES,
    SECTIONS,
    STORED,
    TINY_BYTES,
    Blob,
    Entry,
    Index,
    Part,
    level_dtype,
    part_names,
)
from tersor.artifact.fields import Cursor, parse_name, print_name, print_signed, text
from tersor.coding.framing import write_varint
from tersor.errors import FormatError, SpecError
from tersor.tensor.groups import Granularity


def print_index(index: Index) -> bytes:
    """The only bytes that :func:`parse_index` takes for this index."""
    names = {one.name: at for at, one in enumerate(index.tensors)}
    flags = sum(1 << bit for bit, section in enumerate(SECTIONS) if _present(index, section))
    out = bytearray(write_varint(flags) + write_varint(len(index.tensors)))
    before = b""
    for entry in index.tensors:
        out += print_name(entry.name, before) + _print_entry(entry)
        before = entry.name.encode()
    if index.aliases:
        out += write_varint(len(index.aliases))
        before = b""
        for name in _sorted(index.aliases):
            out += print_name(name, before) + write_varint(names[index.aliases[name]])
            before = name.encode()
    for blob in (index.points, index.structure):
        out += _print_blob(blob) if blob is not None else b""
    if index.attachments:
        out += write_varint(len(index.attachments))
        before = b""
        for name in _sorted(index.attachments):
            out += print_name(name, before) + _print_blob(index.attachments[name])
            before = name.encode()
    return bytes(out) + b"".join(check.to_bytes(4, "little") for check in index.checksums)


def parse_index(data: bytes) -> Index:
    """Read an index, every field within its limit, to its last byte; raises :class:`FormatError`."""
    cursor = Cursor(data)
    flags = cursor.varint("the feature flags")
    if flags >> len(SECTIONS):
        raise FormatError(
            f"the file needs features {flags:#x} that this version does not have: update tersor"
        )
    present = [section for bit, section in enumerate(SECTIONS) if flags >> bit & 1]
    tensors: list[Entry] = []
    seen: set[bytes] = set()
    before = b""
    for _ in range(cursor.varint("the number of tensors")):
        start = cursor.at
        before = _parse_new_name(cursor, before, seen)
        tensors.append(_parse_entry(cursor, text(before), start))
    aliases = _parse_aliases(cursor, tensors, seen) if "aliases" in present else {}
    points = _parse_section(cursor) if "points" in present else None
    structure = _parse_section(cursor) if "structure" in present else None
    attachments = _parse_attachments(cursor) if "attachments" in present else {}
    index = Index(tuple(tensors), aliases, points, structure, attachments)
    chunks = index.chunks
    if sum(chunks.values()) > TINY_BYTES:
        index = replace(index, checksums=tuple(int.from_bytes(cursor.take(4), "little") for _ in chunks))
    cursor.finish()
    return index


def _present(index: Index, section: str) -> bool:
    value = getattr(index, section)
    return value is not None and value != {}


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=str.encode)


def _parse_new_name(cursor: Cursor, before: bytes, seen: set[bytes]) -> bytes:
    name = parse_name(cursor, before)
    if name in seen:
        raise FormatError(f"the name {text(name)!r} is there twice")
    seen.add(name)
    return name


def _print_entry(entry: Entry) -> bytes:
    out = bytearray([FORMS.index(entry.form) << 5 | DTYPES.index(entry.dtype)])
    out += write_varint(len(entry.shape)) + b"".join(map(write_varint, entry.shape))
    if entry.form in ("raw", "masked"):
        out.append(STORED[entry.dtype].index(entry.stored))
    else:
        out += _print_coded(entry)
    return bytes(out) + b"".join(write_varint(part.method) + write_varint(part.size) for part in entry.parts)


def _print_coded(entry: Entry) -> bytes:
    granularity = entry.granularity
    kind = GRANULARITIES.index(granularity.kind)
    stored = STORED[level_dtype(entry.form, entry.dtype)].index(entry.stored)
    flags = kind | stored << 2 | (entry.center is not None) << 4 | entry.shifted << 5
    out = write_varint(flags)
    if kind:
        out += write_varint(granularity.axis)
    if granularity.size:
        out += write_varint(granularity.size)
    if entry.form == "affine":
        out += print_signed(entry.offset)
    out += write_varint(entry.levels)
    return out + (write_varint(entry.center) if entry.center is not None else b"")


def _parse_entry(cursor: Cursor, name: str, start: int) -> Entry:
    kind = cursor.take(1)[0]
    form, dtype = kind >> 5, kind & 31
    if form >= len(FORMS) or dtype >= len(DTYPES):
        raise FormatError(f"{name}: form {form} of dtype {dtype} is not known")
    shape = tuple(
        cursor.varint("a dimension", MAX_COUNT) for _ in range(cursor.varint("the dimensions", MAX_DIMS + 1))
    )
    if prod(max(size, 1) for size in shape) >= MAX_COUNT:
        raise FormatError(f"{name}: shape {shape} has too many weights")
    head = (name, FORMS[form], DTYPES[dtype], shape)
    if FORMS[form] in ("raw", "masked"):
        stored = STORED[DTYPES[dtype]]
        at = cursor.varint("the stored type", len(stored))
        entry = Entry(*head, stored[at], _parse_parts(cursor, FORMS[form], shifted=False))
    else:
        entry = _parse_coded(cursor, head)
    return replace(entry, header_bytes=cursor.at - start)


def _parse_coded(cursor: Cursor, head: tuple[str, str, str, tuple[int, ...]]) -> Entry:
    name, form, dtype, shape = head
    count = prod(shape)
    if DTYPES.index(dtype) > DTYPES.index("float64"):
        raise FormatError(f"{name}: codes of dtype {dtype}, which is not floating")
    flags = cursor.varint("the flags of a tensor", 32 if form == "codebook" else 64)
    kind, stored = flags & 3, flags >> 2 & 3
    types = STORED[level_dtype(form, dtype)]
    if kind >= len(GRANULARITIES) or stored >= len(types):
        raise FormatError(f"{name}: flags {flags:#x} are not known")
    axis = cursor.varint("an axis", len(shape)) if kind else 0
    size = cursor.varint("a block size", MAX_COUNT) if kind == 2 else 0
    try:
        granularity = Granularity(GRANULARITIES[kind], axis, size)
    except SpecError as error:
        raise FormatError(f"{name}: {error}") from error
    offset = cursor.signed("an offset", 32) if form == "affine" else 0
    levels = cursor.varint("the levels", MAX_LEVELS[form] + 1)
    if (levels == 0 and count > 0) or offset + levels > 1 << 31:
        raise FormatError(f"{name}: {levels} levels from {offset} on cannot be")
    center = cursor.varint("a center", levels) if flags >> 4 & 1 else None
    shifted = bool(flags >> 5)
    parts = _parse_parts(cursor, form, shifted)
    return Entry(*head, types[stored], parts, granularity, levels, offset, center, shifted)


def _parse_parts(cursor: Cursor, form: str, shifted: bool) -> tuple[Part, ...]:
    return tuple(_parse_part(cursor) for _ in part_names(form, shifted))


def _parse_part(cursor: Cursor) -> Part:
    return Part(cursor.varint("a method", 256), cursor.varint("the size of a payload", MAX_COUNT))


def _print_blob(blob: Blob) -> bytes:
    return write_varint(blob.count) + write_varint(blob.part.method) + write_varint(blob.part.size)


def _parse_blob(cursor: Cursor, limit: int = MAX_COUNT) -> Blob:
    return Blob(cursor.varint("the size of a section", limit), _parse_part(cursor))


def _parse_section(cursor: Cursor) -> Blob:
    blob = _parse_blob(cursor, MAX_SECTION_BYTES + 1)
    if blob.count == 0:
        raise FormatError("a section is there, and empty")
    return blob


def _parse_aliases(cursor: Cursor, tensors: list[Entry], seen: set[bytes]) -> dict[str, str]:
    aliases: dict[str, str] = {}
    before: bytes | None = None
    for _ in range(_some(cursor, "aliases")):
        before = _parse_sorted(cursor, before, seen)
        aliases[text(before)] = tensors[cursor.varint("the tensor of an alias", len(tensors))].name
    return aliases


def _parse_attachments(cursor: Cursor) -> dict[str, Blob]:
    attachments: dict[str, Blob] = {}
    seen: set[bytes] = set()
    before: bytes | None = None
    for _ in range(_some(cursor, "attachments")):
        before = _parse_sorted(cursor, before, seen)
        attachments[text(before)] = _parse_blob(cursor)
    return attachments


def _some(cursor: Cursor, what: str) -> int:
    count = cursor.varint(f"the number of {what}")
    if count == 0:
        raise FormatError(f"a section of {what} is there, and empty")
    return count


def _parse_sorted(cursor: Cursor, before: bytes | None, seen: set[bytes]) -> bytes:
    name = _parse_new_name(cursor, before or b"", seen)
    if before is not None and name < before:
        raise FormatError(f"the name {text(name)!r} is out of order")
    return name
