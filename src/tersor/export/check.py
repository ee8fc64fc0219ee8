"""Whether a runtime computes what the model does with its activations quantized in PyTorch.

First as a user sees it: the outputs, within a step of 8 bits. Where a deep net passes that, a code that
rounded to its neighbour may have grown on its way; so each point is compared once more with the runtime's own
values fed in before it. What then differs by more than a step is a node that computes something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import VerificationError, code_of_the_task
from tersor.export.runtimes import Session
from tersor.export.served import ServedModel, output_structure
from tersor.measure.quality import evaluating
from tersor.model.inputs import model_call
from tersor.model.program import GraphModel
from tersor.model.simulate import FakePoint
from tersor.points import spell
from tersor.progress import Progress, silent
from tersor.task import Batch, Task

STEPS = 255  # of an 8-bit output over the range that it takes
ALLOWED = 1.0 + 1e-3  # a code and its neighbour, in float32
NAMED = 5


@dataclass(frozen=True)
class Agreement:
    """The runtime's outputs against the model's, in steps: the range of an output, over 255.

    step -- of the output that differs most.
    local -- the largest difference at any point, in its own steps, where the values before it are the
        runtime's; None if the outputs agreed within a step, so that it was not needed.
    """

    samples: int
    step: float
    largest: float
    mean: float
    local: float | None = None


@dataclass(frozen=True)
class Probe:
    """The same graph with the values at its points among its outputs, after those of the model.

    values -- the names that the points have in the traced graph, in the order of these outputs.
    """

    session: Session
    values: tuple[str, ...]


def compare_outputs(
    task: Task, reference: nn.Module, session: Session, batches: Iterable[Batch], progress: Progress = silent
) -> Agreement:
    """Run both on the batches, each by itself; raises nothing where they differ."""
    outputs: list[_Output] = []
    samples = 0
    with evaluating(reference), torch.no_grad():
        for at, batch in enumerate(batches):
            args, kwargs = model_call(task, reference, batch)
            with code_of_the_task(f"task {task.name!r}: forward"):
                wanted = reference(*args, **kwargs)
            given = ServedModel(session, output_structure(wanted))(*args, **kwargs)
            pairs = _floats(wanted, given)
            outputs = outputs or [_Output() for _ in pairs]
            for output, pair in zip(outputs, pairs, strict=True):
                output.note(*pair)
            tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            samples += len(tensors[0]) if tensors and tensors[0].ndim else 1
            progress("check", at + 1, 0)
    if not outputs:
        raise VerificationError("the model gives no floating output to compare")
    worst = max(outputs, key=_Output.largest)
    mean = sum(one.total / one.step for one in outputs) / max(sum(one.count for one in outputs), 1)
    return Agreement(samples, worst.step, worst.largest(), mean)


class _Output:
    """One of a model's outputs, over the batches: its range has to be known for its step."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), -float("inf")
        self.most = self.total = 0.0  # of the differences, in the output's own unit
        self.count = 0

    def note(self, wanted: Tensor, given: Tensor) -> None:
        if not wanted.numel():
            return
        off = _differences(wanted, given)
        self.most, self.total = max(self.most, float(off.max())), self.total + float(off.sum())
        self.count += off.numel()
        finite = wanted[wanted.isfinite()]
        if finite.numel():
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))

    @property
    def step(self) -> float:
        """What an 8-bit output could tell apart; of a constant one, by its size."""
        span = self.high - self.low if self.high > self.low else abs(self.high)
        return max(span / STEPS, 1e-12) if math.isfinite(span) else 1.0

    def largest(self) -> float:
        """The largest difference, in steps."""
        return self.most / self.step


def _differences(wanted: Tensor, given: Tensor) -> Tensor:
    """Of each element: none of equal infinities, infinite where there is no number; never NaN."""
    off = torch.where(wanted == given, 0.0, (wanted - given).abs())
    return off.nan_to_num(nan=math.inf, posinf=math.inf)


def check_agreement(
    task: Task,
    reference: nn.Module,
    session: Session,
    probe: Probe | None,
    batches: list[Batch],
    *,
    progress: Progress = silent,
) -> Agreement:
    """The agreement of ``session`` with ``reference``; :class:`VerificationError` where there is none.

    The error names the first points at which the runtime goes another way.
    """
    found = compare_outputs(task, reference, session, batches, progress)
    if found.largest <= 1.0:
        return found
    differing = (
        f"{session.runtime} differs from the model by {found.largest:.2f} steps of an 8-bit output "
        f"({found.mean:.3f} in the mean, one step is {found.step:.3g})"
    )
    if probe is None or not isinstance(reference, GraphModel):
        raise VerificationError(f"{differing}; 1 is allowed")
    local = _compare_points(task, reference, probe, batches)
    wrong = {name: steps for name, steps in local.items() if not steps <= ALLOWED}
    if wrong:
        first = ", ".join(f"{name}: {steps:.1f} steps" for name, steps in list(wrong.items())[:NAMED])
        raise VerificationError(
            f"{differing}. Fed with the runtime's own values, {len(wrong)} of {len(local)} values differ by "
            f"more than a step; the first: {first}"
        )
    return replace(found, local=max(local.values(), default=0.0))


class _Forced(nn.Module):
    """A tap that compares what arrives, quantized, with the runtime's value, and goes on with the latter."""

    def __init__(self, point: FakePoint) -> None:
        super().__init__()
        self.point = point
        self.given: Tensor | None = None
        self.largest = 0.0

    def forward(self, value: Tensor) -> Tensor:
        """The runtime's value."""
        assert self.given is not None
        template = self.point.template
        if template.dynamic:  # the runtime's value before it is quantized: a step is that of the batch
            span = float(value.max().clamp(min=0) - value.min().clamp(max=0))
            self._note(value, self.given, max(1e-12, span / STEPS) if math.isfinite(span) else math.inf)
            rounded: Tensor = self.point(self.given)
            return rounded
        self._note(self.point(value), self.given, template.scale)
        return self.given

    def _note(self, mine: Tensor, theirs: Tensor, step: float) -> None:
        if mine.numel():
            most = float(_differences(mine, theirs).max())
            self.largest = max(self.largest, most / step if math.isfinite(step) else math.inf)


def _compare_points(
    task: Task, reference: GraphModel, probe: Probe, batches: Iterable[Batch]
) -> dict[str, float]:
    """The largest difference at each point, and of each output, in steps; in the order of the graph."""
    forced = {value: _Forced(tap) for value, tap in reference.tapped.items() if isinstance(tap, FakePoint)}
    run = GraphModel(reference.model, reference.traced, forced, readers=reference.readers)
    outputs: list[_Output] = []
    with evaluating(run), torch.no_grad():
        for batch in batches:
            args, kwargs = model_call(task, run.model, batch)
            everything = ServedModel(probe.session)(*args, **kwargs)
            probed = everything[len(everything) - len(probe.values) :]
            for value, given in zip(probe.values, probed, strict=True):
                forced[value].given = given
            wanted = run(*args, **kwargs)
            given = pytree.tree_unflatten(
                list(everything[: len(everything) - len(probe.values)]), output_structure(wanted)
            )
            pairs = _floats(wanted, given)
            outputs = outputs or [_Output() for _ in pairs]
            for output, pair in zip(outputs, pairs, strict=True):
                output.note(*pair)
    local = {spell(tap.point.template.key): tap.largest for tap in forced.values()}
    return local | {"the output": max(map(_Output.largest, outputs))}


def _floats(wanted: object, given: object) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(given), strict=True)
    return [
        (first.double(), second.double())
        for first, second in pairs
        if isinstance(first, Tensor) and first.is_floating_point()
    ]
