"""The candidates of every tensor of a stage, and the steps of a recipe that a choice among them means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tersor.allocate.candidates import Candidate, Weighed, candidates_of
from tersor.allocate.solve import Options, least_cost, least_loss
from tersor.allocate.table import Row, chosen_rows, estimate, options_of, weigh, weighable
from tersor.model.attach import Collected
from tersor.patterns import literal
from tersor.pipeline.context import Context, seeded
from tersor.pipeline.run import step_seed
from tersor.pipeline.work import work_after
from tersor.spec import Cluster, Quantize, Rule, Step
from tersor.tensor.prices import price_factors

SHARE, ROUND = "share", "round"
MATRICES = candidates_of("rate", "bits", "fp16", "fp32")
VECTORS = tuple(
    one for one in candidates_of("bits", "fp16", "fp32") if one.name not in ("bits 1", "bits 2", "bits 3")
)
_STEPS: Mapping[str, Candidate] = {one.name: one for one in (*MATRICES, *VECTORS)}


@dataclass(frozen=True, eq=False)
class Allocation:
    """What can be chosen for the tensors of one stage.

    other_bytes -- of the file, beside the codes of these tensors.
    """

    tensors: Mapping[str, Weighed]
    rows: Sequence[Row]
    options: Sequence[Options]
    other_bytes: int
    batches: int

    def within_loss(self, most: float) -> dict[str, Row]:
        """The fewest bytes whose estimated losses add up to no more."""
        return chosen_rows(self.rows, self.options, least_cost(self.options, most))

    def within_bytes(self, most: float) -> dict[str, Row]:
        """The least estimated loss in a file of so many bytes."""
        return chosen_rows(self.rows, self.options, least_loss(self.options, most - self.other_bytes))

    def cheapest(self) -> dict[str, Row]:
        """The fewest bytes that there are."""
        return chosen_rows(self.rows, self.options, tuple(int(one.costs.argmin()) for one in self.options))

    def steps(self, chosen: Mapping[str, Row]) -> tuple[Step, ...]:
        """The steps that make each tensor what was chosen for it."""
        held = {name: _STEPS[row.candidate].step for name, row in chosen.items()}
        shared = {name: one.rate for name, one in held.items() if isinstance(one, Cluster)}
        rounded = {name: one for name, one in held.items() if isinstance(one, Quantize)}
        return (*self._share(shared), *_round(rounded))

    def _share(self, rates: Mapping[str, float]) -> tuple[Step, ...]:
        if not rates:
            return ()
        # The step prices a bit over its own tensors, the table over all: one factor lies between the two.
        own = [self.tensors[name] for name in rates]
        factors = price_factors(
            {one.name: one.weight.float().numpy() for one in own},
            {one.name: one.importance for one in own},
            {one.name: one.mask for one in own},
        )
        largest = max(own, key=lambda one: one.weight.numel())
        scale = largest.price / factors[largest.name]
        usual = Counter(rates.values()).most_common(1)[0][0]
        rules = tuple(
            Rule(literal(name), override={"rate": rate * scale})
            for name, rate in rates.items()
            if rate != usual
        )
        step = Cluster(
            name=SHARE, targets=tuple(map(literal, rates)), rules=rules, rate=usual * scale,
            importance="output", fisher_batches=self.batches,
        )  # fmt: skip
        return (step,)


def _round(steps: Mapping[str, Quantize]) -> tuple[Step, ...]:
    if not steps:
        return ()
    usual = Counter(one.bits for one in steps.values()).most_common(1)[0][0]
    plain = next(one for one in steps.values() if one.bits == usual)
    rules = tuple(
        Rule(literal(name), override={"bits": one.bits, "scale": one.scale})
        for name, one in steps.items()
        if one != plain
    )
    return (replace(plain, name=ROUND, targets=tuple(map(literal, steps)), rules=rules),)


def allocation_after(
    steps: tuple[Step, ...], collected: Collected, bytes_of: Mapping[str, int], file_bytes: int,
    context: Context, *, batches: int,
) -> Allocation:  # fmt: skip
    """The candidates of what ``steps`` end in, ``collected``.

    bytes_of, file_bytes -- of its file, the former without what the index holds of each tensor.
    """
    work = work_after(context.task, collected, steps)
    work.model.to(context.device)
    inner = replace(context, seed=step_seed(context.seed, len(steps)))
    with seeded(inner):  # as the clustering step will be, so that it finds the same importance
        tensors = weigh(
            work.model, context.task, weighable(work.model), batches=batches, device=context.device,
            progress=context.progress,
        )  # fmt: skip
    rows = []
    for matrices, candidates in ((True, MATRICES), (False, VECTORS)):
        own = [one for one in tensors if (one.weight.ndim > 1) == matrices]
        rows += estimate(own, candidates, speed="balanced", seed=inner.seed, progress=context.progress)
    other = file_bytes - sum(bytes_of[one.name] for one in tensors)
    return Allocation({one.name: one for one in tensors}, rows, options_of(rows), other, batches)
