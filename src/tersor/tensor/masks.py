"""Which weights stay: True where a weight is kept, False where it is pruned to zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tersor.checks import one_amount
from tersor.errors import SpecError, TensorError
from tersor.tensor.finite import count_non_finite

Mask = NDArray[np.bool_]


def magnitude_mask(
    values: torch.Tensor,
    *,
    fraction: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    percentile: float | None = None,
) -> Mask:
    """:func:`magnitude_masks` of one tensor.

    >>> magnitude_mask(torch.tensor([0.1, -0.4, 0.2, -0.3]), fraction=0.5)
    array([False,  True, False,  True])
    """
    return magnitude_masks(
        [values], fraction=fraction, count=count, threshold=threshold, percentile=percentile
    )[0]


def magnitude_masks(
    values: Sequence[torch.Tensor],
    *,
    names: Sequence[str] = (),
    fraction: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    percentile: float | None = None,
) -> list[Mask]:
    """Prune the weights of least |w|, all tensors ranked together (Han et al. 2015).

    Exactly one amount. A ``fraction`` of n weights is round(fraction x n) of them, met exactly as a
    ``count`` is: of equal magnitudes the first ones go first. A ``threshold``, or the one at a
    ``percentile`` of |w| (linear between ranks), prunes what lies strictly below it. Raises
    :class:`TensorError` for NaN and Inf, which calls the tensor by its place among ``names``.
    """
    amounts = {"fraction": fraction, "count": count, "threshold": threshold, "percentile": percentile}
    one_amount("a mask", amounts)
    for at, one in enumerate(values):
        name = names[at] if names else f"tensor {at}"
        _check_finite(one, f" in {name}" if len(values) > 1 else "")
    total = sum(one.numel() for one in values)
    if threshold is not None or not total:
        return [np.asarray(_magnitude(one) >= (threshold or 0.0)) for one in values]
    if percentile is not None:
        border = np.percentile(_ranked(values), percentile, overwrite_input=True)
        return [np.asarray(_magnitude(one) >= border) for one in values]
    pruned = round(fraction * total) if fraction is not None else int(count or 0)
    if not 0 <= pruned <= total:
        raise SpecError(f"{pruned} weights are to be pruned of {total}: ask for at most {total}")
    return _keep_all_but(values, pruned)


def _keep_all_but(values: Sequence[torch.Tensor], pruned: int) -> list[Mask]:
    if not pruned:
        return [np.ones(tuple(one.shape), np.bool_) for one in values]
    ranked = _ranked(values)
    ranked.partition(pruned - 1)
    border = ranked[pruned - 1]
    left = pruned - int(np.count_nonzero(ranked[:pruned] < border))
    del ranked
    masks = []
    for one in values:
        magnitude = _magnitude(one)
        mask = np.asarray(magnitude > border)  # of a scalar, NumPy makes no array to write to
        ties = np.flatnonzero(magnitude.reshape(-1) == border)
        mask.reshape(-1)[ties[left:]] = True
        left = max(left - len(ties), 0)
        masks.append(mask)
    return masks


def _ranked(values: Sequence[torch.Tensor]) -> NDArray[np.floating]:
    return np.concatenate([_magnitude(one).reshape(-1) for one in values])


def _magnitude(values: torch.Tensor) -> NDArray[np.floating]:
    wide = values.detach().abs()
    if wide.dtype != torch.float64:
        wide = wide.to(torch.float32)
    magnitude: NDArray[np.floating] = wide.cpu().contiguous().numpy()
    return magnitude


def _check_finite(values: torch.Tensor, where: str) -> None:
    bad = count_non_finite(values)
    if bad:
        raise TensorError(f"{bad} of {values.numel()} values{where} are NaN or Inf: they have no rank")
