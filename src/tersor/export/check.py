"""Whether a runtime computes what the model does with its activations quantized in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tersor.errors import VerificationError, code_of_the_task
from tersor.export.runtimes import Session
from tersor.export.served import ServedModel, output_structure
from tersor.model.inputs import model_call
from tersor.progress import Progress, silent
from tersor.task import Batch, Task

STEPS = 255  # of an 8-bit output over the range that it takes


@dataclass(frozen=True)
class Agreement:
    """The runtime's outputs against the model's.

    step -- the range of the model's outputs over 255. largest, mean -- differences in these steps.
    """

    samples: int
    step: float
    largest: float
    mean: float


def check_agreement(
    task: Task,
    reference: nn.Module,
    session: Session,
    batches: Iterable[Batch],
    *,
    allowed_steps: float = 1.0,
    progress: Progress = silent,
) -> Agreement:
    """Run both on the batches; :class:`VerificationError` where an output differs by more than that.

    A code that rounds to its neighbour somewhere in the net moves outputs by a fraction of a step.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    samples = 0
    with torch.no_grad():
        for at, batch in enumerate(batches):
            args, kwargs = model_call(task, reference, batch)
            with code_of_the_task(f"task {task.name!r}: forward"):
                wanted = reference(*args, **kwargs)
            given = ServedModel(session, output_structure(wanted))(*args, **kwargs)
            parts += _floats(wanted, given)
            samples += len(pytree.tree_leaves((args, kwargs))[0])
            progress("check", at + 1, 0)
    return _agreement(parts, samples, allowed_steps, session)


def _floats(wanted: object, given: object) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(given), strict=True)
    return [
        (first.double(), second.double())
        for first, second in pairs
        if isinstance(first, Tensor) and first.is_floating_point()
    ]


def _agreement(
    parts: list[tuple[Tensor, Tensor]], samples: int, allowed: float, session: Session
) -> Agreement:
    if not parts:
        raise VerificationError("the model gives no floating output to compare")
    span = max(float(one.max() - one.min()) for one, _ in parts)
    step = max(span / STEPS, 1e-12)
    differences = torch.cat([((one - other).abs() / step).flatten() for one, other in parts])
    found = Agreement(samples, step, float(differences.max()), float(differences.mean()))
    if not found.largest <= allowed:
        raise VerificationError(
            f"{session.runtime} differs from the model by {found.largest:.2f} steps of an 8-bit output "
            f"({found.mean:.3f} in the mean, one step is {step:.3g}), {allowed:g} are allowed"
        )
    return found
