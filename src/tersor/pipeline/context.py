"""What a step needs beside itself, and the training inside one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from tersor.calibrate.activations import calibration_loader
from tersor.model.program import GraphModel
from tersor.model.simulate import points_of
from tersor.pipeline.work import Work
from tersor.progress import Progress, inside, silent
from tersor.result import Touched
from tersor.spec import Step, Train
from tersor.task import Task
from tersor.train.control import Control
from tersor.train.loop import fit
from tersor.train.randomness import Randomness
from tersor.train.teaching import teaching_for


@dataclass(frozen=True)
class Context:
    """What a step needs beside itself; ``checkpoint`` is where what trains in it goes on from.

    rounding_steps -- how long each layer's rounding is learned; None: as long as it takes.
    """

    task: Task
    seed: int = 0
    device: str = "cpu"
    checkpoint: Path | None = None
    progress: Progress = silent
    rounding_steps: int | None = None


def inside_step(step: Step, context: Context) -> Context:
    """The context of the step's own training: its progress names the step."""
    return replace(context, progress=inside(context.progress, step.name))


def seeded(context: Context) -> AbstractContextManager[None]:
    """What data is drawn in outside of training: with the seed of the run, whatever was drawn before."""
    return Randomness(calibration_loader(context.task)).seeded(context.seed)


def chance_kept(task: Task) -> ExitStack:
    """Whatever is drawn inside, by loaders too, afterwards every generator is as it was.

    Even a task that is made from another one draws: it looks at the loaders' iterators.
    """
    stack = ExitStack()
    for loader in (task.train, task.validation, task.test):
        stack.enter_context(Randomness(() if loader is None else loader).seeded(0))
    return stack


def train_(
    work: Work, phase: Train, context: Context, controls: Sequence[Control] = (), *,
    run: nn.Module | None = None,
) -> list[Touched]:  # fmt: skip
    """Train the model, with its points in force if it has any; ``run`` is what runs it, if there is one.

    Returns what is to be recorded of its teacher.
    """
    run = work.runnable(context.task) if run is None else run
    teaching, rows = teaching_for(
        phase, context.task, run, seed=context.seed, device=context.device,
        progress=inside(context.progress, phase.name),
    )  # fmt: skip
    controls = [*controls, teaching] if teaching else controls
    try:
        fit(run if teaching is None else teaching.student, context.task, phase, seed=context.seed,
            device=context.device, controls=controls, checkpoint=context.checkpoint,
            progress=context.progress)  # fmt: skip
    finally:
        if teaching is not None:
            teaching.close()
    if isinstance(run, GraphModel):
        work.points = points_of(run)
    return rows


def taught(work: Work, step: Step, context: Context) -> list[Touched]:
    """What the record of the step's training will say of a teacher; nothing trains."""
    phase = step if isinstance(step, Train) else getattr(step, "train", None)
    if phase is None:
        return []
    teaching, rows = teaching_for(
        phase, context.task, work.runnable(context.task), seed=context.seed, device=context.device
    )
    if teaching is not None:
        teaching.close()
    return rows
