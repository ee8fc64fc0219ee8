"""What each candidate of each tensor costs in the file, and what it is expected to lose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tersor.allocate.candidates import Candidate, Weighed, held_as
from tersor.allocate.solve import Choice, Options
from tersor.artifact.forms import coded_bytes
from tersor.calibrate.curvature import damped, output_curvature
from tersor.errors import in_context
from tersor.model.select import COMPRESSIBLE, Storage, storages
from tersor.progress import Progress, silent
from tersor.spec import Speed
from tersor.task import Task
from tersor.tensor.prices import price_factors


@dataclass(frozen=True)
class Row:
    """One candidate of one tensor.

    size_bytes -- in the file, by the very coder; estimated_loss -- of the outputs, to second order: nats a
        sample of a classifier, else the relative squared error.
    """

    tensor: str
    candidate: str
    size_bytes: int
    estimated_loss: float


def weigh(
    model: torch.nn.Module,
    task: Task,
    storages_: Sequence[Storage],
    *,
    batches: int,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[Weighed]:
    """Each storage with the curvature of the outputs, as a clustering by ``importance: output`` takes it."""
    names = {one.name for one in storages_}
    found = output_curvature(model, task, names, batches=batches, seed=seed, device=device, progress=progress)
    importance = {name: damped(one) for name, one in found.items()}
    weights = {one.name: one.dense().detach().cpu() for one in storages_}
    masks = {one.name: one.mask() for one in storages_}
    factors = price_factors({name: one.float().numpy() for name, one in weights.items()}, importance, masks)
    return [Weighed(name, weights[name], importance[name], masks[name], factors[name]) for name in weights]


def weighable(model: torch.nn.Module) -> list[Storage]:
    """The storages that candidates are made for: floating, not empty, and alone in their memory."""
    return [
        one for one in storages(model)
        if one.dtype in COMPRESSIBLE and not one.entangled and 0 not in one.shape
    ]  # fmt: skip


def estimate(
    tensors: Iterable[Weighed],
    candidates: Sequence[Candidate],
    *,
    speed: Speed = "small",
    seed: int = 0,
    progress: Progress = silent,
) -> list[Row]:
    """A row for each candidate of each tensor, with the bytes that the coder makes of it."""
    listed = list(tensors)
    rows = []
    for done, tensor in enumerate(listed):
        progress("candidates", done, len(listed), tensor.name)
        with in_context(tensor.name):
            for candidate in candidates:
                held = held_as(tensor, candidate, seed=seed)
                rows.append(Row(tensor.name, candidate.name, coded_bytes(held, speed), tensor.loss(held)))
    progress("candidates", len(listed), len(listed))
    return rows


def options_of(rows: Iterable[Row]) -> list[Options]:
    """The rows as tables for the solver, tensor by tensor."""
    return [
        Options(
            name,
            np.array([row.size_bytes for row in own], np.float64),
            np.array([row.estimated_loss for row in own]),
        )
        for name, own in _by_tensor(rows).items()
    ]


def chosen_rows(rows: Sequence[Row], options: Sequence[Options], choice: Choice) -> dict[str, Row]:
    """The row that a choice means, by the name of its tensor."""
    by_tensor = _by_tensor(rows)
    return {one.name: by_tensor[one.name][index] for one, index in zip(options, choice, strict=True)}


def _by_tensor(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.tensor, []).append(row)
    return found
