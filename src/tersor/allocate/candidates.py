"""The ways in which one tensor may be held, each as the step of a recipe that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from tersor.errors import SpecError, did_you_mean
from tersor.spec import Cluster, Prune, Quantize
from tersor.tensor.affine import to_float16
from tersor.tensor.cluster import cluster_tensor
from tersor.tensor.compressed import CompressedTensor, raw
from tersor.tensor.pruning import Prunable, prune_masks
from tersor.tensor.scales import grid_for, quantize_tensor

HALF = 16
RATES = tuple(float(2.0**-power) for power in np.arange(0.0, 13.0, 0.5))


@dataclass(frozen=True)
class Candidate:
    """A way to hold a tensor: the step that makes it so; None leaves it as it is."""

    name: str
    step: Cluster | Quantize | Prune | None


def _by_name(*candidates: Candidate) -> Mapping[str, tuple[Candidate, ...]]:
    families: dict[str, tuple[Candidate, ...]] = {}
    for one in candidates:
        family = one.name.partition(" ")[0]
        families[family] = (*families.get(family, ()), one)
    return families


def _grid(bits: int, granularity: str) -> Quantize:
    return Quantize(
        bits=bits, scale="max" if bits == 8 else "mse", activations="none",
        granularity="channel" if granularity == "channel" else "tensor",
    )  # fmt: skip


FAMILIES: Mapping[str, tuple[Candidate, ...]] = _by_name(
    Candidate("fp32", None),
    Candidate("fp16", Quantize(bits=HALF, activations="none")),
    *(Candidate(f"bits {bits}", _grid(bits, "tensor")) for bits in range(1, 9)),
    *(Candidate(f"channel-bits {bits}", _grid(bits, "channel")) for bits in range(1, 9)),
    *(
        Candidate(f"values {2**power}", Cluster(clusters=2**power, importance="output"))
        for power in range(1, 9)
    ),
    *(Candidate(f"rate {rate:.4g}", Cluster(rate=rate, importance="output")) for rate in RATES),
    *(
        Candidate(f"sparsity {percent}", Prune(fraction=percent / 100))
        for percent in (0, 25, 50, 75, 90, 95, 99)
    ),
)


def candidates_of(*families: str) -> tuple[Candidate, ...]:
    """All candidates of some families, in their order; a single one by its own name.

    >>> [one.name for one in candidates_of("fp32", "bits", "values 4")][-2:]
    ['bits 8', 'values 4']
    """
    single = {one.name: (one,) for family in FAMILIES.values() for one in family}
    for name in families:
        if name not in FAMILIES and name not in single:
            raise SpecError(f"there are no candidates {name!r}.{did_you_mean(name, FAMILIES)}")
    found = (one for name in families for one in (FAMILIES[name] if name in FAMILIES else single[name]))
    return tuple({one.name: one for one in found}.values())


@dataclass(frozen=True, eq=False)
class Weighed:
    """A tensor with how much each of its weights matters to the outputs.

    importance -- like the tensor, in units of the loss for a squared weight; price -- what rates are
        multiplied by (:func:`tersor.tensor.prices.price_factors`).
    """

    name: str
    weight: torch.Tensor
    importance: NDArray[np.float32]
    mask: NDArray[np.bool_] | None = None
    price: float = 1.0

    def loss(self, held: CompressedTensor) -> float:
        """Half the sum of squared changes times importance: what the outputs change by, to second order."""
        moved = held.decode().double().numpy() - self.weight.double().numpy()
        return 0.5 * float((np.square(moved) * self.importance).sum())


def held_as(tensor: Weighed, candidate: Candidate, *, seed: int = 0) -> CompressedTensor:
    """The tensor as the candidate's step makes it."""
    step = candidate.step
    if step is None:
        return raw(tensor.weight, tensor.mask)
    return cast(_Make, _MAKE[type(step)])(tensor, step, seed)


_Make = Callable[[Weighed, Cluster | Quantize | Prune, int], CompressedTensor]


def _shared(tensor: Weighed, step: Cluster, seed: int) -> CompressedTensor:
    priced = replace(step, rate=step.rate * tensor.price)
    return cluster_tensor(tensor.weight, priced, mask=tensor.mask, importance=tensor.importance, seed=seed)


def _rounded(tensor: Weighed, step: Quantize, seed: int) -> CompressedTensor:
    if step.bits == HALF:
        return raw(to_float16(tensor.weight, mask=tensor.mask).decode().to(tensor.weight.dtype), tensor.mask)
    grid = grid_for(step, tensor.weight.ndim)
    return quantize_tensor(
        tensor.weight, grid, method=step.scale, percentile=step.percentile, mask=tensor.mask
    )


def _pruned(tensor: Weighed, step: Prune, seed: int) -> CompressedTensor:
    (kept,) = prune_masks([Prunable(tensor.name, tensor.weight, tensor.mask)], step)
    return raw(torch.where(torch.from_numpy(kept), tensor.weight, 0.0), kept)


_MAKE = {Cluster: _shared, Quantize: _rounded, Prune: _pruned}
