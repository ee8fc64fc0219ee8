"""Samples of a model's inputs, as a user has them: arrays by input name, in batches."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from tersor.errors import TaskError, code_of_the_task, did_you_mean, in_context
from tersor.export.runtimes import Port

Array = NDArray[Any]
Samples = str | Path | Mapping[str, Array] | Iterable[Mapping[str, Array]]

BATCH = 32


def batches_of(data: Samples, ports: Sequence[Port], *, most: int) -> list[list[Array]]:
    """The first ``most`` batches: arrays in the order of the inputs, in their dtypes.

    data -- an ``.npz`` file or a mapping with one array an input, the first axis the samples, cut into
        batches of 32 or of what the model is fixed at; or an iterable of batches, which are such mappings.

    Raises :class:`TaskError` for names, dtypes and shapes that are not the model's, for NaN and infinities,
    and where there is no batch.
    """
    if isinstance(data, str | Path):
        with in_context(str(data)):
            return batches_of(_read_npz(Path(data), ports), ports, most=most)
    if isinstance(data, Mapping):
        _ordered(data, ports, whole=True)
    given = _cut(data, ports) if isinstance(data, Mapping) else data
    with code_of_the_task("the data"):
        found = [_ordered(batch, ports) for batch in islice(given, most)]
    if not found:
        raise TaskError("the data hold no batch: scales of activations are calibrated on them")
    return found


def _read_npz(path: Path, ports: Sequence[Port]) -> dict[str, Array]:
    arrays = ", ".join(f"{port.name}=..." for port in ports if port.name.isidentifier()) or "image=..."
    advice = f"save one array an input with np.savez(file, {arrays})"
    if not path.is_file():
        raise TaskError("there is no such file")
    try:
        with path.open("rb") as content:  # NumPy would leave a file open that it cannot read
            file = np.load(content, allow_pickle=False)
            if isinstance(file, np.lib.npyio.NpzFile):
                return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise TaskError(f"it is no .npz file of numbers, or cut off: {advice}") from error
    raise TaskError(f"it holds one array without a name: {advice}")


def _cut(data: Mapping[str, Array], ports: Sequence[Port]) -> Iterator[dict[str, Array]]:
    """Batches of the size that the model is fixed at, else of 32; what is left over then is one too."""
    sizes = {name: len(array) if np.ndim(array) else 0 for name, array in data.items()}
    if len(set(sizes.values())) > 1:
        raise TaskError(f"the arrays have {sizes} samples: the first axis has to be that of one batch after "
                        "the other, the same for all")  # fmt: skip
    fixed = {port.shape[0] for port in ports if port.shape and isinstance(port.shape[0], int)}
    size = int(min(fixed, default=BATCH))
    total = next(iter(sizes.values()), 0)
    if fixed and total < size:
        raise TaskError(f"the model is fixed at batches of {size}, and the data have {total} samples")
    for start in range(0, total, size):
        if not fixed or start + size <= total:
            yield {name: array[start : start + size] for name, array in data.items()}


def _ordered(batch: Any, ports: Sequence[Port], *, whole: bool = False) -> list[Array]:
    names = [port.name for port in ports]
    if not isinstance(batch, Mapping):
        raise TaskError(f"a batch is a {type(batch).__name__}: it has to be a dict of arrays by input name")
    for name in batch:
        if name not in names:
            raise TaskError(f"the model has no input {name!r}.{did_you_mean(str(name), names)}")
    missing = [name for name in names if name not in batch]
    if missing:
        raise TaskError(f"the data have nothing for the input {missing[0]!r}: inputs are {', '.join(names)}")
    return [_fitting(np.asarray(batch[port.name]), port, whole=whole) for port in ports]


def _fitting(array: Array, port: Port, *, whole: bool) -> Array:
    """The array in the dtype of the input; ``whole`` where its first axis is all samples, not a batch."""
    if array.dtype.kind != np.dtype(port.dtype).kind:
        raise TaskError(f"{port.name!r} is {array.dtype}, and the model takes {port.dtype}: "
                        f"convert it with .astype({port.dtype!r})")  # fmt: skip
    if array.dtype.kind == "f" and (bad := int((~np.isfinite(array)).sum())):
        raise TaskError(f"{port.name!r} holds {bad:,} NaN or infinite values of {array.size:,}: leave out "
                        "the samples that hold them")  # fmt: skip
    if port.shape is not None:
        wanted = ("samples", *port.shape[1:]) if whole and port.shape else port.shape
        if not replace(port, shape=wanted, dtype=array.dtype.name).takes(array):
            sizes = ", ".join(map(str, wanted))
            raise TaskError(f"{port.name!r} has the shape {array.shape}, and the model takes ({sizes})")
    return array if whole else np.ascontiguousarray(array, port.dtype)
