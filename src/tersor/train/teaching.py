"""A teacher beside the training loop: asked once a batch, and learned from as a phase says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tersor.errors import TaskError, TersorError, code_of_the_task, in_context
from tersor.measure.outputs import labels_of, logits_of, other_axis
from tersor.measure.quality import evaluating
from tersor.model.program import GraphModel
from tersor.model.restore import trained_model
from tersor.progress import Progress, silent
from tersor.result import TEACHER, Touched
from tersor.spec import Distill, Train
from tersor.task import Batch, Output, Task, to_device
from tersor.train.control import Control
from tersor.train.distill import output_loss
from tersor.train.matching import LayerTerms, pairs_of, sides_of
from tersor.train.randomness import Randomness
from tersor.train.watching import watch


class Teaching(Control):
    """What a frozen ``teacher`` says of each batch, as part of the loss of ``student``, which is what trains.

    The teacher stays in evaluation mode and without gradients; it draws the random numbers that the student
    draws after it, so that a ``forward`` that augments shows both the same.
    """

    def __init__(
        self, spec: Distill, student: nn.Module, teacher: nn.Module,
        forward: Callable[[nn.Module, Batch], Output],
    ) -> None:  # fmt: skip
        self.spec = spec
        self.teacher = teacher.eval().requires_grad_(False)
        self.forward = forward
        inner = student.model if isinstance(student, GraphModel) else student
        with in_context("distill.layers"):
            self._sides = [sides_of(one, inner, teacher) for one in spec.layers]
        ours = dict.fromkeys(path for one in self._sides for path in one.student)
        theirs = dict.fromkeys(path for one in self._sides for path in one.teacher)
        with in_context("distill.layers"):
            self.student, self._ours = watch(student, ours)
        _, self._theirs = watch(teacher, theirs)
        self._terms: LayerTerms | None = None
        self._said: Tensor | None = None

    def pair(self) -> list[tuple[str, str]]:
        """Pair the layers by what they gave when student and teacher ran last; returns the pairs in words."""
        if not self._sides:
            return []
        pairs = [pair for sides in self._sides for pair in pairs_of(sides, self._ours, self._theirs)]
        self._terms = LayerTerms(pairs, self._ours, self._theirs)
        return self._terms.described()

    def learner(self) -> nn.Module | None:
        """The adapters between layers of other sizes."""
        return self._terms

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
        return total if self._terms is None else total + self._terms()

    def ask(self, batch: Batch) -> Output:
        """What the teacher says."""
        self._ours.clear()
        self._theirs.clear()
        with _chance_kept(), torch.no_grad(), code_of_the_task("the teacher's forward"):
            return self.forward(self.teacher, batch)

    def close(self) -> None:
        """Leave the student as it was, for others to train."""
        self._ours.close()
        self._theirs.close()


def teaching_for(
    phase: Train, task: Task, student: nn.Module, *, seed: int = 0, device: str = "cpu",
    progress: Progress = silent,
) -> tuple[Teaching | None, list[Touched]]:  # fmt: skip
    """The teaching of a phase, tried on one batch, and what to record of it: nothing where none is asked for.

    Where nobody asked for more than the default and the output cannot be softened, there is no teaching, and
    the record says why. ``progress`` is told what the record is. Raises :class:`TaskError` and
    :class:`TargetError` for a teaching that was asked for and cannot be.
    """
    if phase.teacher == "none" or task.train is None or task.loss is None:
        return None, []
    source, spec = task.reference, phase.distill
    asked = spec != Distill() or task.teacher is not None
    with Randomness(task.train).seeded(seed):
        first = next(iter(task.train), None)
        if first is None:
            return None, []  # the loop says what is wrong
        teaching = Teaching(spec, student, trained_model(source).to(device), source.forward)
        try:
            reason = _obstacle(teaching, task, to_device(first, device), asked)
            if reason and asked:
                raise TaskError(f"task {task.name!r} cannot be taught as distill says: {reason}")
            with in_context("distill.layers"):
                layers = [] if reason else teaching.pair()
        except TersorError:
            teaching.close()
            raise
    rows = [Touched(TEACHER, True, _words(spec, task))]
    rows += [Touched(f"{TEACHER} {path}", True, words) for path, words in layers]
    if reason:
        rows = [Touched(TEACHER, False, f"trained by the task's own loss alone: {reason}")]
    for done, row in enumerate(rows):
        progress("teacher", done + 1, len(rows), f"{row.name.removeprefix(TEACHER)} {row.detail}".strip())
    return None if reason else teaching, rows


def _obstacle(teaching: Teaching, task: Task, batch: Batch, asked: bool) -> str:
    """Run teacher and student on a batch; why soft targets are not possible, or ""."""
    said = teaching.ask(batch)
    with evaluating(teaching.student), torch.no_grad(), code_of_the_task(f"task {task.name!r}: forward"):
        output = task.forward(teaching.student, batch)
    spec = teaching.spec
    if not spec.soft:
        return ""
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
    labels = labels_of(batch, own, spec)
    if isinstance(labels, Tensor):
        return ""
    axis = other_axis(batch, own, spec)
    if axis is not None:
        return f"{labels}: they fit class_axis: {axis}"
    return labels if spec.decoupled is not None or not asked else ""


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
