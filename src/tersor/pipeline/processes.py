"""Changes measured one at a time, here or in processes of their own: the same numbers either way."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from typing import Any

import torch

from tersor.allocate.sensitivity import Change, Effect, OneAtATime, Replaced
from tersor.calibrate.activations import calibration_loader
from tersor.errors import ExportError, SpecError, TargetError, TaskError, TersorError
from tersor.model.restore import trained_model
from tersor.model.trace import Traced
from tersor.pipeline.context import Context
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import Work
from tersor.spec import Fold
from tersor.task import Batch, Task
from tersor.train.randomness import Randomness

AHEAD = 2  # changes that wait, for each process


@dataclass(frozen=True)
class Setting:
    """What is measured, and on what: the trained model, its norms folded or not, on so many batches."""

    fold: bool
    batches: int
    seed: int
    device: str


class Subject:
    """A task's model as a setting has it, with its data."""

    def __init__(self, task: Task, setting: Setting) -> None:
        self.task = task
        self.setting = setting
        self.unfolded = ""  # why norms stay as they are
        self.work = self._made()

    @cached_property
    def traced(self) -> Traced:
        """The graph of the model; raises :class:`TaskError` where there is none."""
        return self.work.traced(self.task)

    @cached_property
    def bench(self) -> OneAtATime:
        """The model on the validation data, else the training data."""
        device = self.setting.device
        return OneAtATime(self.work.model, self.task, self._batches(), device=device)

    def effect(self, change: Change) -> Effect:
        """What one change does."""
        if isinstance(change, Replaced):
            return self.bench.replaced(change)
        return self.bench.pointed(change, self.traced)

    def _made(self) -> Work:
        context = Context(self.task, self.setting.seed, self.setting.device)
        if self.setting.fold:
            work = Work(trained_model(self.task).to(self.setting.device))
            try:
                apply_step(work, Fold(), context)
                return Work(work.model)
            except (TargetError, TaskError, ExportError) as error:
                self.unfolded = str(error)
        return Work(trained_model(self.task).to(self.setting.device))

    def _batches(self) -> list[Batch]:
        task = self.task
        loader = calibration_loader(task) if task.validation is None else task.validation
        with Randomness(loader).seeded(self.setting.seed):
            found = list(islice(loader, self.setting.batches))
        if not found:
            raise TaskError(f"task {task.name!r} has no data to measure changes on: give validation or train")
        return found


def effects(
    subject: Subject, changes: Iterable[tuple[str, Change]], *, jobs: int, remake: Callable[[], Task] | None
) -> Iterator[tuple[str, Effect]]:
    """The effect of each change, by its key, as they become known.

    remake -- a function that pickle can name, which gives the task in another process; without it the task
        itself is sent, where pickle takes it.
    """
    if jobs == 1:
        yield from ((key, subject.effect(change)) for key, change in changes)
        return
    given = _pickled(subject.task if remake is None else remake, jobs)
    order = subject.bench.baseline.order
    with _pool(jobs, given, subject.setting) as pool:
        left = iter(changes)
        running: dict[Future[Effect], str] = {}
        while True:
            for key, change in islice(left, AHEAD * jobs - len(running)):
                running[pool.submit(_effect, change)] = key
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                effect = done.result()
                if effect.order != order:
                    raise TaskError(f"task {subject.task.name!r} gives other samples in another process: "
                                    "order and draw them by a fixed seed, or take jobs=1")  # fmt: skip
                yield running.pop(done), effect


@contextmanager
def _pool(jobs: int, given: bytes, setting: Setting) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start,
        initargs=(given, setting, torch.get_num_threads()),
    )  # fmt: skip
    try:
        yield pool
    except BrokenProcessPool as error:
        raise TersorError("a process ended before its work was done: there may be too little memory for "
                          "so many jobs, or the script that asks for jobs lacks its "
                          "if __name__ == '__main__'") from error  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)


def _pickled(given: Any, jobs: int) -> bytes:
    try:
        return pickle.dumps(given)
    except Exception as error:  # pickle raises whatever the objects in it do
        raise SpecError(f"jobs is {jobs}, and the task cannot be sent to other processes ({error}): give "
                        "remake, a function at the top of a module that makes the task, or jobs=1"
                        ) from error  # fmt: skip


_started: list[tuple[bytes, Setting]] = []  # what this process was started with, and what it made of it
_subjects: list[Subject] = []


def _start(given: bytes, setting: Setting, threads: int) -> None:
    """The beginning of a process; what can fail waits for the first change, whose error is told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends this one
    torch.set_num_threads(threads)
    _started.append((given, setting))


def _effect(change: Change) -> Effect:
    if not _subjects:
        given, setting = _started[0]
        made = pickle.loads(given)
        _subjects.append(Subject(made if isinstance(made, Task) else made(), setting))
    return _subjects[0].effect(change)
