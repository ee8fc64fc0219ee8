"""A teacher beside the training loop: asked once a batch, and learned from as a phase says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tersor.errors import SpecError, TaskError, code_of_the_task
from tersor.measure.quality import evaluating, to_device
from tersor.model.restore import trained_model
from tersor.progress import Progress, silent
from tersor.result import Touched
from tersor.spec import Distill, Train
from tersor.task import Batch, Output, Task
from tersor.train.control import Control
from tersor.train.distill import labels_of, logits_of, output_loss
from tersor.train.randomness import Randomness

TEACHER = "(teacher)"


class Teaching(Control):
    """What a frozen ``teacher`` says of each batch, as part of the loss.

    The teacher stays in evaluation mode and without gradients; it draws the random numbers that the student
    draws after it, so that a ``forward`` that augments shows both the same.
    """

    def __init__(
        self, teacher: nn.Module, forward: Callable[[nn.Module, Batch], Output], spec: Distill
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.forward = forward
        self.spec = spec
        self._said: Tensor | None = None

    def before_forward(self, batch: Batch) -> None:
        """Ask the teacher."""
        output = self.ask(batch)
        self._said = _logits(output, self.spec, "the teacher") if self.spec.soft else None

    def loss(self, loss: Tensor, output: Output, batch: Batch) -> Tensor:
        """The task's own ``loss`` with the teacher's part in it."""
        total = self.spec.hard * loss
        if self._said is not None:
            own = _logits(output, self.spec, "the model in training")
            total = total + self.spec.soft * output_loss(self.spec, own, self._said, batch)
        return total

    def ask(self, batch: Batch) -> Output:
        """What the teacher says."""
        with _chance_kept(), torch.no_grad(), code_of_the_task("the teacher's forward"):
            return self.forward(self.teacher, batch)


def teaching_for(
    phase: Train, task: Task, student: nn.Module, *, seed: int = 0, device: str = "cpu",
    progress: Progress = silent,
) -> tuple[Teaching | None, list[Touched]]:  # fmt: skip
    """The teaching of a phase, tried on one batch, and what to record of it: nothing where none is asked for.

    Where nobody asked for more than the default and the output cannot be softened, there is no teaching, and
    the record says why. Raises :class:`TaskError` for one that was asked for and cannot be.
    """
    if phase.teacher == "none" or task.train is None or task.loss is None:
        return None, []
    if phase.distill.layers:
        raise SpecError("distill.layers is not there yet")
    source = task if task.teacher is None else task.teacher
    asked = phase.distill != Distill() or task.teacher is not None
    with Randomness(task.train).seeded(seed):
        first = next(iter(task.train), None)
        if first is None:
            return None, []
        batch = to_device(first, device)
        teaching = Teaching(trained_model(source).to(device), source.forward, phase.distill)
        said = teaching.ask(batch)
        with evaluating(student), torch.no_grad(), code_of_the_task(f"task {task.name!r}: forward"):
            output = task.forward(student, batch)
    reason = _check_outputs(output, said, phase.distill) if phase.distill.soft else ""
    if not reason and not asked:
        logits = logits_of(output, phase.distill)
        labels = logits if isinstance(logits, str) else labels_of(batch, logits, phase.distill)
        reason = labels if isinstance(labels, str) else ""
    if reason and asked:
        raise TaskError(f"task {task.name!r} cannot be taught as distill says: {reason}")
    if reason:
        return None, [Touched(TEACHER, False, f"trained by the task's own loss alone: {reason}")]
    if phase.distill.decoupled is not None:
        output_loss(phase.distill, *_pair(output, said, phase.distill), batch)
    return teaching, [Touched(TEACHER, True, _words(phase.distill, task))]


def _check_outputs(output: Output, said: Output, spec: Distill) -> str:
    """Why soft targets are not possible, or ""."""
    own, taught = logits_of(output, spec), logits_of(said, spec)
    if isinstance(own, str):
        return own
    if isinstance(taught, str):
        return f"of the teacher, {taught}"
    if own.shape != taught.shape:
        return (
            f"the teacher's output has the shape {tuple(taught.shape)}, the student's {tuple(own.shape)}: "
            "soft targets need the same (soft: 0 leaves them out)"
        )
    return ""


def _pair(output: Output, said: Output, spec: Distill) -> tuple[Tensor, Tensor]:
    return _logits(output, spec, "the student"), _logits(said, spec, "the teacher")


def _words(spec: Distill, task: Task) -> str:
    words = ["the uncompressed model" if task.teacher is None else f"task {task.teacher.name!r}"]
    if spec.soft:
        words.append(f"soft targets at temperature {spec.temperature:g}")
        if spec.decoupled is not None:
            words.append("decoupled, {:g} and {:g}".format(*spec.decoupled))
    return ", ".join([*words, f"loss {spec.soft:g} soft + {spec.hard:g} own"])


def _logits(output: Output, spec: Distill, whose: str) -> Tensor:
    found = logits_of(output, spec)
    if isinstance(found, str):
        raise TaskError(f"{whose}: {found}; set teacher: none, or distill to what the output is")
    return found


@contextmanager
def _chance_kept() -> Iterator[None]:
    chance = Randomness(())
    before = chance.state()
    try:
        yield
    finally:
        chance.set_state(before)
