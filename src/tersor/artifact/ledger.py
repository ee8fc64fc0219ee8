"""Where every byte of a file went."""

from __future__ import annotations

from collections.abc import Mapping

from tersor import coding
from tersor.artifact.container import HEAD, TAIL_BYTES, Entry, Index, Part
from tersor.errors import FormatError
from tersor.result import Ledger, LedgerRow


def count_bytes(index: Index, tables: Mapping[str, int], index_bytes: int, file_bytes: int) -> Ledger:
    """One row for each tensor, section and attachment, one for the container; they add up to the file.

    tables -- name -> how much of a tensor's codes is tables; those of coded values count as values.
    """
    rows = [_tensor_row(entry, tables.get(entry.name, 0)) for entry in index.tensors]
    for (kind, name), blob in index.blobs.items():
        row_name = f"{kind} {name}".rstrip()
        method = _method_name(blob.part, values=True)
        rows.append(LedgerRow(row_name, (blob.count,), "bytes", kind, method, 0, {"values": blob.part.size}))
    checksums = 4 * len(index.checksums) + TAIL_BYTES - 4
    headers = sum(entry.header_bytes for entry in index.tensors)
    parts = {
        "head": len(HEAD),
        "index": index_bytes - headers - 4 * len(index.checksums) + 4,
        "checksums": checksums,
    }
    rows.append(LedgerRow("container", (), "", "container", "", 0, parts))
    return Ledger(tuple(rows), file_bytes)


def _tensor_row(entry: Entry, tables: int) -> LedgerRow:
    parts = {name: part.size for name, part in zip(entry.part_names, entry.parts, strict=True)}
    if tables:
        parts[entry.part_names[0]] -= tables
        parts["tables"] = tables
    parts["header"] = entry.header_bytes
    method = _method_name(entry.parts[0], values=not entry.has_codes)
    return LedgerRow(entry.name, entry.shape, entry.dtype, entry.form, method, entry.levels, parts)


def _method_name(part: Part, *, values: bool) -> str:
    if part == Part(0, 0):
        return "none"
    if part.method not in (coding.VALUE_METHODS if values else coding.METHODS):
        raise FormatError(f"coding method {part.method} is not known: update tersor")
    return coding.VALUE_METHODS[part.method] if values else coding.METHODS[part.method]
