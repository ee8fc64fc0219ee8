"""Named tensors to a file and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tersor.artifact.forms import decoded_bytes, dense_bytes
from tersor.artifact.reader import Reader
from tersor.artifact.writer import write
from tersor.errors import TensorError, in_context
from tersor.result import Ledger
from tersor.spec import Speed
from tersor.tensor.compressed import raw
from tersor.tensor.identity import storage_key

__all__ = ["Reader", "load", "save", "write"]


def save(obj: Mapping[str, torch.Tensor] | nn.Module, path: str | Path, *, speed: Speed = "small") -> Ledger:
    """Store named tensors, or a module's ``state_dict``, without any loss: every bit comes back.

    Names that share one storage (tied weights) are stored once. Raises :class:`TensorError` for what is
    not a dense tensor.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = save({"step": torch.tensor(7)}, f"{folder}/a.tersor")
    ...     load(f"{folder}/a.tersor")
    {'step': tensor(7)}
    """
    named = obj.state_dict() if isinstance(obj, nn.Module) else obj
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in named.items():
        with in_context(str(name)):
            _check_dense(tensor)
        stored = first.setdefault(storage_key(tensor), name)
        if stored != name:
            aliases[name] = stored
    stored_tensors = (
        (name, raw(one.detach().resolve_conj().resolve_neg()))
        for name, one in named.items()
        if name not in aliases
    )
    return write(path, stored_tensors, aliases=aliases, speed=speed)


def load(path: str | Path, *, max_bytes: int | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of a file, dense; names that were tied share one tensor."""
    with Reader(path, max_bytes=max_bytes) as reader:
        with in_context(str(path)):
            reader.check_memory(
                sum(map(dense_bytes, reader.entries)) + max(map(decoded_bytes, reader.entries), default=0)
            )
        dense = {name: reader.read(name).decode() for name in reader.names}
        return dense | {alias: dense[name] for alias, name in reader.aliases.items()}


def _check_dense(tensor: object) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TensorError(f"is a {type(tensor).__name__}, not a tensor; only tensors are stored")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else str(tensor.layout)
        raise TensorError(f"is a {kind} tensor; make it dense first")
