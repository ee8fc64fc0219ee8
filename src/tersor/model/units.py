"""Which channels of a model are one: classes of labels that have to be removed together, or cannot be."""

from __future__ import annotations

import torch
from torch import Tensor


class Units:
    """Labels of channels, joined into units; 0 is the label of what belongs to no unit.

    A unit is removed as a whole, or, once it is fixed, not at all: then with the reason.

    >>> units = Units()
    >>> a, b = units.fresh(3), units.fresh(3)
    >>> units.join(a, b.flip(0))
    >>> units.fix(b[:1], "the output of the model")
    >>> units.find(a).tolist() == units.find(b.flip(0)).tolist(), [units.reason(one) for one in a.tolist()]
    (True, ['', '', 'the output of the model'])
    """

    def __init__(self) -> None:
        self._parents = torch.zeros(1, dtype=torch.int64)
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Tensor:
        """``count`` labels that no one has yet."""
        made = torch.arange(len(self._parents), len(self._parents) + count)
        self._parents = torch.cat((self._parents, made))
        return made

    def find(self, labels: Tensor) -> Tensor:
        """One label for all of a unit, in place of each."""
        return self._parents[labels]

    def join(self, first: Tensor, second: Tensor) -> None:
        """Make one unit of each pair of labels, of equal shape; pairs with a 0 are left alone."""
        a, b = self.find(first).reshape(-1), self.find(second).reshape(-1)
        while True:
            differ = (a != b) & (a != 0) & (b != 0)
            if not bool(differ.any()):
                break
            a, b = a[differ], b[differ]
            self._parents.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
            while not torch.equal(self._parents, above := self._parents[self._parents]):
                self._parents = above
            a, b = self.find(a), self.find(b)
        for label in list(self._reasons):
            kept = int(self._parents[label])
            if kept != label:
                self._reasons.setdefault(kept, self._reasons.pop(label))

    def staying(self, removed: Tensor) -> Tensor:
        """For each label whether it stays when the units of ``removed`` go."""
        gone = torch.zeros(len(self._parents), dtype=torch.bool)
        gone[self.find(removed)] = True
        return ~gone[self._parents]

    def fix(self, labels: Tensor, reason: str) -> None:
        """Keep these units, and say why; the first reason stays."""
        for one in torch.unique(self.find(labels)).tolist():
            if one:
                self._reasons.setdefault(one, reason)

    def reason(self, label: int) -> str:
        """Why a unit is kept; "" if it can be removed."""
        return self._reasons.get(int(self._parents[label]), "")

    def free(self, labels: Tensor) -> Tensor:
        """True where a unit can be removed."""
        found = self.find(labels)
        fixed = torch.tensor([0, *self._reasons])
        return ~torch.isin(found, fixed)


def varying(labels: Tensor) -> tuple[int, ...]:
    """The dimensions along which labels differ."""
    return tuple(
        dim
        for dim in range(labels.ndim)
        if labels.shape[dim] > 1
        and labels.stride(dim) != 0
        and bool((labels != labels.narrow(dim, 0, 1)).any())
    )
