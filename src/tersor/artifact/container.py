"""What a file is made of (FORMAT.md): its limits, the fields of its index, its head and its tail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal
from zlib import crc32

from tersor.tensor.groups import PER_TENSOR, Granularity, group_count

HEAD = b"\x89TSR\x01"  # a byte that is not ASCII (text-mode transfers spoil it), the name, the version
TAIL_BYTES = 8
TINY_BYTES = 1 << 18  # up to here one checksum over the file is cheaper than one for each chunk

MAX_NAME_BYTES = (1 << 16) - 1
MAX_INDEX_BYTES = 1 << 28
MAX_SECTION_BYTES = 1 << 22
MAX_DIMS = 64
MAX_COUNT = 1 << 48
MAX_LEVELS = {"codebook": 1 << 16, "affine": 1 << 32}

FORMS = ("raw", "masked", "codebook", "affine")
DTYPES = (
    "float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "uint16", "int16", "uint32",
    "int32", "uint64", "int64", "complex32", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
)  # fmt: skip
_FLOATS = ("float16", "bfloat16", "float32")
SECTIONS = ("aliases", "points", "structure", "attachments")
GRANULARITIES: tuple[Literal["tensor", "channel", "block"], ...] = ("tensor", "channel", "block")

Key = tuple[str, str]  # what a chunk is, and its name
POINTS: Key = ("points", "")
STRUCTURE: Key = ("structure", "")

# The types in which the values of a type may lie, the narrowest first.
STORED: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in DTYPES},
    "float32": _FLOATS,
    "float64": (*_FLOATS, "float64"),
    "complex32": ("float16",),
    "complex64": _FLOATS,
    "complex128": (*_FLOATS, "float64"),
    "uint16": ("uint8", "uint16"),
    "uint32": ("uint8", "uint16", "uint32"),
    "uint64": ("uint8", "uint16", "uint32", "uint64"),
    "int16": ("uint8", "int8", "int16"),
    "int32": ("uint8", "int8", "uint16", "int16", "int32"),
    "int64": ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"),
}


@dataclass(frozen=True)
class Part:
    """One payload of a chunk: how it is coded, and its bytes."""

    method: int
    size: int


@dataclass(frozen=True)
class Entry:
    """What the index says of one tensor; ``stored`` is the type in which its values, codebook or scales lie.

    levels, offset, center -- of the codes, which lie in [0, levels) once ``offset`` is taken off; a center
        of None follows from the codebook or the zero point.
    header_bytes -- what the entry itself takes in the index.
    """

    name: str
    form: str
    dtype: str
    shape: tuple[int, ...]
    stored: str
    parts: tuple[Part, ...]
    granularity: Granularity = PER_TENSOR
    levels: int = 0
    offset: int = 0
    center: int | None = None
    shifted: bool = False
    header_bytes: int = field(default=0, compare=False)

    @property
    def count(self) -> int:
        """Weights of the tensor."""
        return prod(self.shape)

    @property
    def groups(self) -> int:
        """Codebooks or scales of the tensor."""
        return group_count(self.shape, self.granularity)

    @property
    def part_names(self) -> tuple[str, ...]:
        """What the payloads of the chunk are, in order."""
        return part_names(self.form, self.shifted)

    @property
    def has_codes(self) -> bool:
        """Whether the first payload is codes, or a mask, and not values."""
        return (self.form != "raw" or self.dtype == "bool") and self.levels <= MAX_LEVELS["codebook"]

    @property
    def chunk_bytes(self) -> int:
        """All payloads together."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Blob:
    """Bytes that are opaque here: ``count`` of them once decoded."""

    count: int
    part: Part


@dataclass(frozen=True)
class Index:
    """Everything that lies between the payloads and the tail.

    checksums -- crc32 of each chunk in file order (tensors, points, structure, attachments); empty in a
        tiny file.
    """

    tensors: tuple[Entry, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    points: Blob | None = None
    structure: Blob | None = None
    attachments: Mapping[str, Blob] = field(default_factory=dict)
    checksums: tuple[int, ...] = ()

    @property
    def blobs(self) -> dict[Key, Blob]:
        """Every section and attachment, in file order."""
        sections = {POINTS: self.points, STRUCTURE: self.structure}
        present = {key: blob for key, blob in sections.items() if blob is not None}
        return present | {("attachment", name): blob for name, blob in self.attachments.items()}

    @property
    def chunks(self) -> dict[Key, int]:
        """Bytes of each chunk, in file order."""
        tensors: dict[Key, int] = {("tensor", one.name): one.chunk_bytes for one in self.tensors}
        return tensors | {key: blob.part.size for key, blob in self.blobs.items()}


def part_names(form: str, shifted: bool) -> tuple[str, ...]:
    """The payloads of a chunk, in order; ``shifted`` where an affine grid stores zero points."""
    names = {"raw": ("values",), "masked": ("mask", "values"), "codebook": ("codes", "codebook")}
    return names.get(form, ("codes", "scales", "zero_points") if shifted else ("codes", "scales"))


def level_dtype(form: str, dtype: str) -> str:
    """What the values of a codebook, or the scales of a grid, are once they are read."""
    return "float64" if (form, dtype) == ("codebook", "float64") else "float32"


def print_tail(index: bytes, before: int) -> bytes:
    """Index length and checksum; ``before`` is the crc32 of what the checksum covers ahead of the index."""
    length = len(index).to_bytes(4, "little")
    return length + crc32(length, crc32(index, before)).to_bytes(4, "little")
