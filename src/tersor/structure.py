"""What was changed in a model, against what ``build()`` gives: plain words that a file can hold.

Changes are applied in order (:mod:`tersor.model.structure`), before any tensor is filled in. They name no
class and no code: a path, a word of the table below, an integer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tersor.errors import SpecError, did_you_mean

# The words, in the order of their numbers in the file, each with the least and the greatest integer.
ATTRIBUTES: Mapping[str, tuple[int, int]] = {
    "identity": (1, 1),  # the module is replaced by nn.Identity: a batch norm that was folded
    "bias": (1, (1 << 31) - 1),  # the module gains a bias of that many zeros, in the dtype of its weight
    "input_scale": (1, (1 << 31) - 1),  # a linear layer multiplies what it reads, feature by feature
    "outputs": (1, (1 << 31) - 1),  # a layer makes, or a norm passes on, only that many channels
    "inputs": (1, (1 << 31) - 1),  # a layer reads only that many channels
    "groups": (1, (1 << 31) - 1),  # a depthwise convolution or a group norm has only that many groups
    "heads": (1, (1 << 31) - 1),  # a module counts only that many attention heads
}


@dataclass(frozen=True)
class Change:
    """One thing that differs: at the module ``path``, ``attribute`` became ``value``.

    Raises :class:`SpecError` for a word that is not known, or an integer that it cannot have.

    >>> Change("features.1", "identity", 1)
    Change(path='features.1', attribute='identity', value=1)
    """

    path: str
    attribute: str
    value: int

    def __post_init__(self) -> None:
        if self.attribute not in ATTRIBUTES:
            raise SpecError(
                f"{self.path}: {self.attribute!r} is no change of a module."
                f"{did_you_mean(self.attribute, ATTRIBUTES)}"
            )
        least, greatest = ATTRIBUTES[self.attribute]
        if not least <= self.value <= greatest:
            raise SpecError(
                f"{self.path}: {self.attribute} is {self.value}: it has to be {least} to {greatest}"
            )
