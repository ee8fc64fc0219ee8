"""Samples of a model's inputs, as a user has them: arrays by input name, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.errors import TaskError, code_of_the_task, did_you_mean
from tersor.export.runtimes import Port

Array = NDArray[Any]
Samples = str | Path | Mapping[str, Array] | Iterable[Mapping[str, Array]]

BATCH = 32


def batches_of(data: Samples, ports: Sequence[Port], *, most: int) -> list[list[Array]]:
    """The first ``most`` batches: arrays in the order of the inputs, in their dtypes.

    data -- an ``.npz`` file or a mapping with one array an input, the first axis the samples, cut into
        batches of 32 or of what the model is fixed at; or an iterable of batches, which are such mappings.

    Raises :class:`TaskError` for names that are not the model's, and where there is no batch.
    """
    if isinstance(data, str | Path):
        data = _read_npz(Path(data))
    given = _cut(data, ports) if isinstance(data, Mapping) else data
    with code_of_the_task("the data"):
        found = [_ordered(batch, ports) for batch in islice(given, most)]
    if not found:
        raise TaskError("the data hold no batch: scales of activations are calibrated on them")
    return found


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise TaskError(f"{path} holds one array without a name: write it with numpy.savez")
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise TaskError(f"{path} is no .npz file of arrays: {error}") from error


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


def _ordered(batch: Any, ports: Sequence[Port]) -> list[Array]:
    names = [port.name for port in ports]
    if not isinstance(batch, Mapping):
        raise TaskError(f"a batch is a {type(batch).__name__}: it has to be a dict of arrays by input name")
    for name in batch:
        if name not in names:
            raise TaskError(f"the model has no input {name!r}.{did_you_mean(str(name), names)}")
    missing = [name for name in names if name not in batch]
    if missing:
        raise TaskError(f"the data have nothing for the input {missing[0]!r}: inputs are {', '.join(names)}")
    arrays = [np.asarray(batch[name]) for name in names]
    return [
        np.ascontiguousarray(array, port.dtype) if array.dtype.kind == np.dtype(port.dtype).kind else array
        for array, port in zip(arrays, ports, strict=True)
    ]
