"""A model in the hands of a step: what a stage file holds, as modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from tersor.artifact.io import Reader, write
from tersor.artifact.sections import encode_changes, encode_points
from tersor.model.attach import Collected, attach_collected_, collect
from tersor.model.inputs import model_inputs
from tersor.model.restore import trained_model
from tersor.model.simulate import simulated
from tersor.model.trace import Traced, trace
from tersor.points import QuantPoint
from tersor.result import Ledger
from tersor.spec import Cluster, Speed, Step
from tersor.structure import Change
from tersor.task import Task


@dataclass
class Work:
    """The model that a step changes, in place; with what is not in its parameters.

    points -- where its activations are quantized; changes -- what it differs by from what ``build`` gives.
    """

    model: nn.Module
    points: tuple[QuantPoint, ...] = ()
    changes: tuple[Change, ...] = ()

    def collected(self) -> Collected:
        """What a file holds of it."""
        return replace(collect(self.model), points=self.points, changes=self.changes)

    def traced(self, task: Task) -> Traced:
        """Its graph."""
        return trace(self.model, model_inputs(task, self.model))

    def runnable(self, task: Task) -> nn.Module:
        """The model itself, or with its points in force if it has any."""
        return simulated(self.model, self.traced(task), self.points) if self.points else self.model


def work_after(task: Task, collected: Collected, steps: Sequence[Step]) -> Work:
    """What the step after ``steps`` starts from: a fresh model that holds ``collected``.

    Its codebooks learn as the last clustering among them says.
    """
    model = trained_model(task)
    before = [step.update for step in steps if isinstance(step, Cluster)]
    attach_collected_(model, collected, update=before[-1] if before else "gradient")
    return Work(model, collected.points, collected.changes)


def write_collected(path: Path, collected: Collected, speed: Speed) -> Ledger:
    """The file of a model between two steps."""
    return write(
        path,
        collected.tensors.items(),
        aliases=collected.aliases,
        points=encode_points(collected.points),
        structure=encode_changes(collected.changes),
        speed=speed,
    )


def read_collected(path: Path) -> Collected:
    """The inverse of :func:`write_collected`."""
    with Reader(path) as reader:
        tensors = {name: reader.read(name) for name in reader.names}
        return Collected(tensors, dict(reader.aliases), reader.points, reader.changes)
