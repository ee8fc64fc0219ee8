"""How files are timed: exported, opened in ONNX Runtime, and called in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from tersor.artifact.io import save
from tersor.checks import one_of, whole_number
from tersor.export.runtimes import open_session
from tersor.measure.latency import FEWEST_ROUNDS, Clock, compare_latency
from tersor.model.restore import trained_model
from tersor.pipeline.export import export_model
from tersor.pipeline.feeds import Feeds, task_feeds
from tersor.task import Task


@dataclass(frozen=True)
class Timing:
    """How files are timed: samples at once, rounds, threads of the runtime, and which clock.

    ``cpu`` counts the time of all threads on the processor: steadier on a busy machine.
    """

    batch_size: int = 1
    rounds: int = 30
    threads: int = 1
    clock: Literal["wall", "cpu"] = "wall"

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("rounds", FEWEST_ROUNDS), ("threads", 1)):
            whole_number(name, getattr(self, name), least)
        one_of(self, "clock", ("wall", "cpu"))

    @property
    def reads(self) -> Clock:
        """The clock itself."""
        return time.process_time if self.clock == "cpu" else time.perf_counter

    def call(self, exported: Path, feeds: Feeds) -> Callable[[], object]:
        """One call of an exported file on a batch, which has run once already."""
        session = open_session(str(exported), threads=self.threads)
        arrays = feeds(session, self.batch_size)
        session.run(arrays)
        return lambda: session.call(arrays)


@dataclass(frozen=True)
class Ratio:
    """The time of one call by that of the uncompressed model, and the upper end of its 95 % interval."""

    ratio: float
    high: float


class Stopwatch:
    """Times files of a task beside the uncompressed model, whose exported file it makes once."""

    def __init__(self, task: Task, timing: Timing) -> None:
        self.task = task
        self.timing = timing
        self._dense: Callable[[], object] | None = None

    def ratio(self, path: Path) -> Ratio:
        """How many times the uncompressed model's latency a ``.tersor`` file takes."""
        with TemporaryDirectory(prefix="tersor-") as folder:
            if self._dense is None:
                dense = Path(folder, "dense.tersor")
                save(trained_model(self.task.reference), dense)
                self._dense = self._call(self.task.reference, dense)
            calls = {"dense": self._dense, "file": self._call(self.task, path)}
        found = compare_latency(calls, rounds=self.timing.rounds, clock=self.timing.reads)[1]
        return Ratio(found.ratio, found.ratio_high)

    def _call(self, task: Task, path: Path) -> Callable[[], object]:
        with TemporaryDirectory(prefix="tersor-") as folder:
            exported = export_model(task, path, Path(folder, "model.onnx"), batches=1)
            return self.timing.call(exported.path, task_feeds(task))
