"""One price of a bit for tensors that matter differently."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def price_factors(
    weights: Mapping[str, F32], importance: Mapping[str, F32], masks: Mapping[str, NDArray[np.bool_] | None]
) -> dict[str, float]:
    """What each tensor's rate is to be multiplied by, so that a bit costs the same expected loss in all.

    A rate is in units of the tensor's own mean importance times mean squared weight; with these factors it is
    in that of all of them together, so a tensor that matters little may lose more (Choi et al. 2017, Towards
    the limit of network quantization, section 3). Weights that are pruned do not count.

    >>> one, matters = np.ones(4, np.float32), np.full(4, 3, np.float32)
    >>> price_factors({"a": one, "b": one}, {"a": one, "b": matters}, {})["a"]
    2.0
    """
    energies, counts = {}, {}
    for name, weight in weights.items():
        mask = masks.get(name)
        kept = np.ones(weight.shape, np.bool_) if mask is None else mask & (weight != 0)
        counts[name] = int(kept.sum())
        square = np.square(weight[kept], dtype=np.float64)
        energies[name] = float(importance[name][kept].mean() * square.mean()) if counts[name] else 0.0
    overall = sum(energies[name] * counts[name] for name in energies) / max(sum(counts.values()), 1)
    return {name: overall / energy if energy else 1.0 for name, energy in energies.items()}
