"""Which weights share a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tersor.checks import check_block, check_kinds, one_of, require
from tersor.errors import SpecError
from tersor.spec.rule import Rule
from tersor.spec.training import Train

WEIGHED_BY = ("fisher", "output")
Init = Literal["optimal", "exact", "linear", "random", "density", "kmeans++"]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Let the weights of a group share the few values of a codebook.

    ``bits`` (at most 2^bits values) or ``clusters``, or ``rate`` for an entropy-constrained codebook:
    the least of squared error + rate x (mean squared weight) x bits, where bits are the code lengths and
    32 for each value of the codebook, with at most 2^bits values (default 2^8). ``init`` is ``optimal``
    (histogram route), ``exact`` (all unique values), or a start for Lloyd's iterations. ``keep_zero``
    holds an exact 0.0 in the codebook (always so where weights were pruned). ``importance="fisher"``
    weighs errors by the squared gradient of the loss over ``fisher_batches`` training batches, ``output``
    by how much the outputs change, for which any data will do, without labels
    (:func:`tersor.calibrate.curvature.output_curvature`). While its
    ``train`` phase runs, centroids move by the ``gradient`` of the loss (summed over their members), or
    each weight moves alone and shows the ``mean`` of its members; codes are assigned anew every
    ``reassign`` epochs (0: never).

    Sources: Han et al. 2016 (Deep Compression) section 3; Choi et al. 2017 (Towards the Limit of
    Network Quantization) sections 3 and 4.
    """

    kind: ClassVar[str] = "cluster"
    name: str = "cluster"
    targets: tuple[str, ...] = ("*",)
    rules: tuple[Rule, ...] = ()
    bits: int | None = None
    clusters: int | None = None
    rate: float = 0.0
    init: Init = "optimal"
    granularity: Literal["tensor", "channel", "block"] = "tensor"
    axis: int = 0
    block_size: int = 0
    keep_zero: bool = False
    biases: bool = False
    importance: Literal["none", "fisher", "output"] = "none"
    fisher_batches: int = 32
    update: Literal["gradient", "mean"] = "gradient"
    reassign: int = 0
    train: Train | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.bits is not None and self.clusters is not None:
            raise SpecError(f"cluster takes bits or clusters, not both: {self.bits}, {self.clusters}")
        if self.bits is None and self.clusters is None and self.rate == 0:
            raise SpecError("cluster takes bits, clusters or rate; none is given")
        if self.bits is not None:
            require(1 <= self.bits <= 16, "bits", self.bits, "from 1 to 16")
        if self.clusters is not None:
            require(1 <= self.clusters <= 65536, "clusters", self.clusters, "from 1 to 65536")
        require(self.rate >= 0, "rate", self.rate, "0 or more")
        require(self.reassign >= 0, "reassign", self.reassign, "0 or more epochs")
        require(self.fisher_batches > 0, "fisher_batches", self.fisher_batches, "at least 1")
        one_of(self, "init", ("optimal", "exact", "linear", "random", "density", "kmeans++"))
        one_of(self, "granularity", ("tensor", "channel", "block"))
        one_of(self, "importance", ("none", *WEIGHED_BY))
        one_of(self, "update", ("gradient", "mean"))
        check_block(self.granularity, self.block_size)
        if self.rate and self.init not in ("optimal", "exact"):
            raise SpecError(f"an entropy-constrained codebook starts from optimal, not {self.init!r}")

    @property
    def max_clusters(self) -> int:
        """The most values that a group's codebook may hold."""
        return self.clusters if self.clusters is not None else 2 ** (self.bits or 8)
