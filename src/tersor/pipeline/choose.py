"""Which units go: ranked by importance, as many as a step says, rounded to what kernels like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor.errors import TargetError
from tersor.model.coupling import Coupling
from tersor.model.shrink import Group, macs
from tersor.spec import Shrink

_SCALELESS = ("l1", "l2", "norm_scale")  # weights of different layers have different sizes
_STEPS = 1000


@dataclass(frozen=True, eq=False)
class Ranked:
    """A group with its units from the least important on.

    allowed -- for each number of units removed, whether the layers may be left so.
    most -- the most units that could go if no number had to be rounded.
    """

    group: Group
    step: Shrink
    units: Tensor
    scores: NDArray[np.float64]
    allowed: NDArray[np.bool_]
    most: int

    def rounded(self, count: int) -> int:
        """The most units up to ``count`` that may go."""
        return int(np.flatnonzero(self.allowed[: count + 1])[-1])


def rank(coupling: Coupling, group: Group, step: Shrink, importance: Tensor) -> Ranked:
    """Order the units of a group, the first of equals first; scores as ``scope`` compares them."""
    scores = importance[group.units].numpy()
    order = np.argsort(scores, kind="stable")
    scores, units = scores[order], group.units[torch.from_numpy(order)]
    if step.scope == "global" and step.importance in _SCALELESS and scores.mean() > 0:
        scores = scores / scores.mean()
    allowed, some_left = (np.ones(len(units) + 1, np.bool_) for _ in range(2))
    for axis in group.axes:
        labels = coupling.units.find(coupling.axes[axis])
        widths = (labels[None] == units[:, None]).sum(1).numpy()
        left = len(labels) - np.concatenate(([0], np.cumsum(widths)))
        some_left &= left >= 1
        allowed &= some_left & (left % step.round_to == 0)
    allowed[0] = True
    return Ranked(group, step, units, scores, allowed, int(np.flatnonzero(some_left)[-1]))


def choose(coupling: Coupling, ranked: Sequence[Ranked]) -> Tensor:
    """The labels of the units that go.

    Raises :class:`TargetError` for an amount that is more than there is.
    """
    buckets: dict[object, list[Ranked]] = {}
    for at, one in enumerate(ranked):
        amount = (one.step.amount, getattr(one.step, one.step.amount))
        together = one.step.scope == "global" or one.step.amount == "macs"
        buckets.setdefault(amount if together else (amount, at), []).append(one)
    gone = [torch.zeros(0, dtype=torch.int64)]
    for bucket in sorted(buckets.values(), key=lambda some: some[0].step.amount == "macs"):
        step = bucket[0].step
        if step.amount == "macs":
            counts = _to_macs(coupling, bucket, torch.cat(gone))
        else:
            counts = _counted(bucket, _total(bucket, step))
        gone += [one.units[: one.rounded(count)] for one, count in zip(bucket, counts, strict=True)]
    return torch.cat(gone)


def _total(bucket: Sequence[Ranked], step: Shrink) -> int:
    """How many units of a bucket go."""
    scores = np.concatenate([one.scores for one in bucket])
    if step.threshold is not None:
        return int((scores < step.threshold).sum())
    if step.percentile is not None:
        return int((scores < np.percentile(scores, step.percentile)).sum())
    if step.fraction is not None:
        return round(step.fraction * len(scores))
    count = int(step.count or 0)
    most = sum(int(np.flatnonzero(one.allowed)[-1]) for one in bucket)
    if count > most:
        names = ", ".join(one.group.layers[0] for one in bucket[:3]) + ", ..." * (len(bucket) > 3)
        raise TargetError(f"count is {count}: of the {len(scores)} units of {names} at most {most} can go")
    return count


def _counted(bucket: Sequence[Ranked], total: int) -> list[int]:
    """How many of each group are among the ``total`` least important of all."""
    scores = np.concatenate([one.scores for one in bucket])
    owner = np.repeat(np.arange(len(bucket)), [len(one.scores) for one in bucket])
    first = owner[np.argsort(scores, kind="stable")[:total]]
    return np.bincount(first, minlength=len(bucket)).tolist()  # type: ignore[no-any-return]


def _to_macs(coupling: Coupling, bucket: Sequence[Ranked], gone: Tensor) -> list[int]:
    """The fewest units whose removal leaves the share of multiply-accumulates that is asked for."""
    step = bucket[0].step
    whole = macs(coupling, torch.zeros(0, dtype=torch.int64))
    units = sum(len(one.units) for one in bucket)

    def counts_at(amount: int) -> list[int]:
        if step.scope == "global":
            return _counted(bucket, amount)
        return [int(amount / _STEPS * len(one.units)) for one in bucket]

    def share(counts: Sequence[int], *, exact: bool = False) -> float:
        some = [one.units[: n if exact else one.rounded(n)] for one, n in zip(bucket, counts, strict=True)]
        return macs(coupling, torch.cat([gone, *some])) / whole

    most = units if step.scope == "global" else _STEPS
    wanted = float(step.macs or 0)
    if share(counts_at(most)) > wanted:
        least_shares = share(counts_at(most)), share([one.most for one in bucket], exact=True)
        raise TargetError(_out_of_reach(step, *least_shares))
    least = _least(lambda amount: share(counts_at(amount)) <= wanted, most)
    counts, after = counts_at(max(least - 1, 0)), counts_at(least)
    for at, count in enumerate(after):  # rounded layers change several at once: no more of them than needed
        if share(counts) > wanted:
            counts[at] = count
    return _given_back(bucket, counts, lambda some: share(some) <= wanted)


def _out_of_reach(step: Shrink, rounded: float, exact: float) -> str:
    """What to ask for instead of a share that is less than what can be left; to ask, it is rounded up."""
    text = (
        f"macs is {step.macs}: with every channel gone that can go, {rounded:.3f} of the "
        f"multiply-accumulates are left; give macs of at least {ceil(rounded * 1000) / 1000:g}"
    )
    if exact <= float(step.macs or 0):
        return f"{text}, or a smaller round_to: it is {step.round_to}, and with 1 {exact:.3f} would be left"
    return f"{text}, or skip fewer layers"


def _given_back(
    bucket: Sequence[Ranked], counts: Sequence[int], fits: Callable[[Sequence[int]], bool]
) -> list[int]:
    """The counts without units that need not go: the most important of the last of each group is first.

    Scores of one layer are compared to their mean, as those of all are that are ranked together.
    """
    left = [one.rounded(count) for one, count in zip(bucket, counts, strict=True)]
    scores = [_comparable(one) for one in bucket]
    some = {at for at, count in enumerate(left) if count}
    while some:
        at = max(sorted(some), key=lambda at: scores[at][left[at] - 1])
        tried = [*left[:at], bucket[at].rounded(left[at] - 1), *left[at + 1 :]]
        fitting = fits(tried)
        if fitting:
            left = tried
        if not fitting or not left[at]:  # what does not fit now never will: what is given back only adds
            some.remove(at)
    return left


def _comparable(one: Ranked) -> NDArray[np.float64]:
    mean = one.scores.mean()
    return one.scores / mean if one.step.scope == "layer" and mean > 0 else one.scores


def _least(holds: Callable[[int], bool], most: int) -> int:
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def left_of(coupling: Coupling, removed: Tensor) -> Mapping[tuple[str, int], tuple[int, int]]:
    """For each axis that makes channels how many there were, and how many are left."""
    axes = (*coupling.makers, *coupling.carriers)
    found = {axis: coupling.units.find(coupling.axes[axis]) for axis in axes}
    return {axis: (len(one), int((~torch.isin(one, removed)).sum())) for axis, one in found.items()}
