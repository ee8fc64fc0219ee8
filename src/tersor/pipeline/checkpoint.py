"""Checkpoints in safetensors files, one tensor in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open

from tersor.artifact.words import bit_view
from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import FormatError, TensorError, TersorError, VerificationError

# dtype names of the format, https://github.com/huggingface/safetensors
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.bool: "BOOL",
    torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip
_METADATA = "__metadata__"
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """One safetensors file, or several behind an index; ``files`` says where each tensor lies."""

    files: Mapping[str, Path]
    metadata: Mapping[str, str]
    size_bytes: int

    def read(self, name: str) -> torch.Tensor:
        """One tensor. Its file is mapped for it alone, so that the pages of earlier ones are given back."""
        with _opened(self.files[name]) as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of the dense tensor."""
        return prod(self.shape) * self.dtype.itemsize


def open_checkpoint(path: Path) -> Checkpoint:
    """A ``.safetensors`` file, or the ``.safetensors.index.json`` of a sharded one.

    Raises :class:`FormatError` for a file that is neither, and for an index that its shards do not match.
    """
    if path.suffix == ".json":
        return _open_sharded(path)
    names, metadata = _contents(path)
    return Checkpoint(dict.fromkeys(names, path), metadata, path.stat().st_size)


def write_checkpoint(
    path: Path,
    tensors: Iterable[TensorInfo],
    read: Callable[[str], torch.Tensor],
    *,
    metadata: Mapping[str, str],
) -> int:
    """Write a safetensors file, header first, then one tensor at a time; returns its bytes.

    It takes the place of ``path`` once it was read back: every byte by checksum, and its header.
    """
    target = Path(os.path.realpath(path))
    header, ordered = _header(list(tensors), metadata)
    with replacing(target) as partial:
        checksum = crc32(header)
        with disk_errors(target):
            file = partial.open("xb")
        with file:
            _append(file, header, target)
            for one in ordered:
                words = bit_view(_expected(one, read(one.name))).data
                checksum = crc32(words, checksum)
                _append(file, words, target)
            with disk_errors(target):
                file.flush()
                os.fsync(file.fileno())
        if _checksum(partial) != checksum or set(_contents(partial)[0]) != {one.name for one in ordered}:
            raise VerificationError(f"{target}: the file does not give back what was written")
        return partial.stat().st_size


def _header(tensors: list[TensorInfo], metadata: Mapping[str, str]) -> tuple[bytes, list[TensorInfo]]:
    """The bytes ahead of the data, and the order of the data: the widest type first, so that all align."""
    ordered = sorted(tensors, key=lambda one: -one.dtype.itemsize)
    fields: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    at = 0
    for one in ordered:
        if one.name == _METADATA or one.dtype not in _DTYPES:
            raise TensorError(f"{one.name}: {one.dtype} of that name cannot be stored in a safetensors file")
        end = at + one.size_bytes
        fields[one.name] = {
            "dtype": _DTYPES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, ordered


def _expected(info: TensorInfo, tensor: torch.Tensor) -> torch.Tensor:
    if tuple(tensor.shape) != info.shape or tensor.dtype != info.dtype:
        raise TensorError(f"{info.name} is {tuple(tensor.shape)} {tensor.dtype}, not as announced: {info}")
    return tensor


def _append(file: BinaryIO, data: bytes | memoryview, target: Path) -> None:
    with disk_errors(target):
        file.write(data)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = crc32(block, checksum)
    return checksum


def _open_sharded(path: Path) -> Checkpoint:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): str(file) for name, file in document["weight_map"].items()}
    except OSError as error:
        raise TersorError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is not the index of a sharded checkpoint: no weight_map in it") from error
    metadata: dict[str, str] = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file:
            raise FormatError(f"{path} names a shard {file!r}: shards lie beside their index")
        names, more = _contents(path.with_name(file))
        metadata |= more
        listed = {name for name, where in files.items() if where == file}
        if listed != set(names):
            odd = sorted(listed ^ set(names))[0]
            raise FormatError(f"{path} and {file} do not agree about the tensor {odd!r}")
    shards = [path.with_name(file) for file in set(files.values())]
    size = sum(shard.stat().st_size for shard in shards)
    return Checkpoint({name: path.with_name(file) for name, file in files.items()}, metadata, size)


def _contents(path: Path) -> tuple[list[str], dict[str, str]]:
    with _opened(path) as file:
        return list(file.keys()), dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise FormatError(f"{path} is not a sound safetensors file: {error}") from error
    except OSError as error:
        raise TersorError(f"cannot read {path}: {error.strerror or error}") from error
