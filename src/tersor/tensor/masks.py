"""Which weights stay: True where a weight is kept, False where it is pruned to zero.

A ranking prunes what has the least score. Here each weight is alone; :mod:`tersor.tensor.units` ranks slices
and blocks, :mod:`tersor.tensor.pruning` does what a spec says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    kept: Sequence[Mask | None] = (),
    fraction: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    percentile: float | None = None,
) -> list[Mask]:
    """Prune the weights of least |w|, all tensors ranked together (Han et al. 2015).

    As :func:`lowest_masks`, with |w| for the score.
    """
    amounts = {"fraction": fraction, "count": count, "threshold": threshold, "percentile": percentile}
    return _lowest(_Ranking(values, kept, magnitude), names, amounts)


def lowest_masks(
    scores: Sequence[torch.Tensor],
    *,
    names: Sequence[str] = (),
    kept: Sequence[Mask | None] = (),
    fraction: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    percentile: float | None = None,
) -> list[Mask]:
    """Prune what has the least score, all tensors ranked together; scores may be negative.

    Exactly one amount. A ``fraction`` of n weights is round(fraction x n) of them, met exactly as a
    ``count`` is: of equal scores the first ones go first, and before all others those that ``kept`` says
    were pruned before, which count. A ``threshold`` on the score, or the one at a ``percentile`` of the
    scores (linear between ranks), prunes what lies strictly below it. Raises :class:`TensorError` for NaN
    and Inf, which calls the tensor by its place among ``names``.

    >>> lowest_masks([torch.tensor([0.5, -2.0]), torch.tensor([0.1])], count=2)
    [array([ True, False]), array([False])]
    """
    amounts = {"fraction": fraction, "count": count, "threshold": threshold, "percentile": percentile}
    return _lowest(_Ranking(scores, kept, as_scores), names, amounts)


def as_scores(values: torch.Tensor) -> NDArray[np.floating]:
    """The values as they are, in at least single precision, in memory of the CPU."""
    wide = values.detach()
    if wide.dtype != torch.float64:
        wide = wide.to(torch.float32)
    scores: NDArray[np.floating] = wide.cpu().contiguous().numpy()
    return scores


def magnitude(values: torch.Tensor) -> NDArray[np.floating]:
    """|values|, as :func:`as_scores` gives them.

    >>> magnitude(torch.tensor([-1.5, 2.0]))
    array([1.5, 2. ], dtype=float32)
    """
    return as_scores(values.detach().abs())


def check_finite(values: torch.Tensor, where: str = "") -> None:
    """Raise :class:`TensorError` for NaN and Inf, which have no rank."""
    bad = count_non_finite(values)
    if bad:
        raise TensorError(f"{bad} of {values.numel()} values{where} are NaN or Inf: they have no rank")


@dataclass(frozen=True)
class _Ranking:
    """Scores that are computed when they are read, so that they are held for one tensor at a time."""

    values: Sequence[torch.Tensor]
    kept: Sequence[Mask | None]
    score: Callable[[torch.Tensor], NDArray[np.floating]]

    def __getitem__(self, at: int) -> NDArray[np.floating]:
        """The scores of one tensor; of what was pruned before, lower than any other."""
        scores = self.score(self.values[at])
        before = self.kept[at] if self.kept else None
        return scores if before is None else np.where(before, scores, -np.inf)

    def __len__(self) -> int:
        return len(self.values)

    def together(self) -> NDArray[np.floating]:
        """All of them, flat; a copy."""
        return np.concatenate([self[at].reshape(-1) for at in range(len(self))])


def _lowest(ranking: _Ranking, names: Sequence[str], amounts: dict[str, float | None]) -> list[Mask]:
    given = one_amount("a mask", amounts)
    amount = amounts[given]
    assert amount is not None
    for at, one in enumerate(ranking.values):
        name = names[at] if names else f"tensor {at}"
        check_finite(one, f" in {name}" if len(ranking) > 1 else "")
    total = sum(one.numel() for one in ranking.values)
    if given in ("threshold", "percentile"):
        border = amount if given == "threshold" else _percentile(ranking, amount) if total else 0.0
        return [np.asarray(ranking[at] >= border) for at in range(len(ranking))]
    pruned = round(amount * total) if given == "fraction" else int(amount)
    if not 0 <= pruned <= total:
        raise SpecError(f"{pruned} weights are to be pruned of {total}: ask for at most {total}")
    return _keep_all_but(ranking, pruned)


def _percentile(ranking: _Ranking, percentile: float) -> float:
    ranked = ranking.together()
    if ranking.kept:
        known = ranked[np.isfinite(ranked)]
        np.maximum(ranked, min(0.0, known.min(initial=0.0)), out=ranked)
    return float(np.percentile(ranked, percentile, overwrite_input=True))


def _keep_all_but(ranking: _Ranking, pruned: int) -> list[Mask]:
    if not pruned:
        return [np.ones(tuple(one.shape), np.bool_) for one in ranking.values]
    ranked = ranking.together()
    ranked.partition(pruned - 1)
    border = ranked[pruned - 1]
    left = pruned - int(np.count_nonzero(ranked[:pruned] < border))
    del ranked
    masks = []
    for at in range(len(ranking)):
        scores = ranking[at]
        mask = np.asarray(scores > border)  # of a scalar, NumPy makes no array to write to
        ties = np.flatnonzero(scores.reshape(-1) == border)
        mask.reshape(-1)[ties[left:]] = True
        left = max(left - len(ties), 0)
        masks.append(mask)
    return masks
