"""How long training takes here, by a few of its steps."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from time import perf_counter
from typing import cast

from tersor.model.restore import trained_model
from tersor.pipeline.context import Context, train_
from tersor.pipeline.work import Work
from tersor.progress import silent
from tersor.spec import Train

STEPS = 12


def seconds_an_epoch(context: Context) -> float:
    """The seconds of a pass over the training data with the teacher, by a few steps on a copy.

    The quicker of two runs; an estimate.
    """
    batches = len(cast(Sized, context.task.train))
    steps = min(STEPS, batches)
    phase = Train(epochs=steps / batches)
    quiet = replace(context, progress=silent, checkpoint=None)
    seconds = []
    for _ in range(2):  # the first warms caches, and compiles
        work = Work(trained_model(context.task))
        started = perf_counter()
        train_(work, phase, quiet)
        seconds.append(perf_counter() - started)
    return min(seconds) / steps * batches
