"""The files between the steps of a run: what makes it resumable, and its stage table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter

from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import TersorError
from tersor.pipeline.fingerprint import fingerprint
from tersor.result import StageRecord, Touched
from tersor.spec import Recipe, Step
from tersor.task import Task

WORK, KEPT = ".tersor-run", "stages"


@dataclass(frozen=True)
class Stage:
    """A finished step: its file, and what was done and measured."""

    path: Path
    record: StageRecord


@dataclass
class StageStore:
    """The stages that a run has finished, on disk in ``folder/.tersor-run``."""

    folder: Path
    paths: tuple[Path, ...] = ()  # of the steps, one each
    stages: list[Stage] = field(default_factory=list)
    discarded: bool = False  # whether another run was left unfinished here, and is gone now
    earlier_seconds: float = 0.0  # of the stages and parts of stages that an interrupted run left

    @classmethod
    def open(cls, folder: Path, task: Task, recipe: Recipe, seed: int, device: str) -> StageStore:
        """The store of this very run, else an empty one.

        It is the same run if recipe, seed, weights (a teacher's too), forward, loss and score (their code and
        what they hold), the number of batches, device, threads and versions are; the samples themselves are
        not compared.
        """
        store = cls(folder, tuple(stage_path(folder / WORK, *one) for one in enumerate(recipe.steps)))
        key = fingerprint(task, recipe, seed, device)
        try:
            if not (store.work / "key").exists() or (store.work / "key").read_text() != key:
                store.discarded = (store.work / "key").exists()
                shutil.rmtree(store.work, ignore_errors=True)
                store.work.mkdir(parents=True)
                (store.work / "key").write_text(key)
        except OSError as error:
            raise TersorError(f"cannot work in {folder}: {error.strerror or error}") from error
        store._read()
        return store

    @classmethod
    def of_paths(cls, folder: Path, paths: Sequence[Path]) -> StageStore:
        """A store whose steps end in files that others may have written: nothing is ever removed."""
        store = cls(folder, tuple(paths))
        store._read()
        return store

    def _read(self) -> None:
        """Find the stages that are finished, up to the first that is not."""
        for path in self.paths:
            note = path.with_suffix(".json")
            if not (note.exists() and path.exists()):
                break
            self.stages.append(_read(path, note))
        self.earlier_seconds = sum(stage.record.seconds for stage in self.stages)

    @property
    def work(self) -> Path:
        """Where unfinished runs live."""
        return self.folder / WORK

    @contextmanager
    def timing(self, path: Path) -> Iterator[Callable[[], float]]:
        """A function that tells the seconds of the step that ends in ``path``.

        Those of its interrupted parts are among them, unless the process was killed.
        """
        note, started = path.with_suffix(".seconds"), perf_counter()
        earlier = _seconds(note)
        self.earlier_seconds += earlier
        try:
            yield lambda: earlier + perf_counter() - started
        except BaseException:
            with suppress(OSError, TersorError):  # the first error is the one to tell
                note.write_text(repr(earlier + perf_counter() - started))
            raise

    def add(self, stage: Stage) -> None:
        """Note a finished step, after its file is complete; its training checkpoint is spent."""
        note = stage.path.with_suffix(".json")
        with replacing(note) as partial, disk_errors(note):
            partial.write_text(json.dumps(asdict(stage.record)))
        for spent in (".checkpoint", ".seconds"):
            stage.path.with_suffix(spent).unlink(missing_ok=True)
        self.stages.append(stage)

    def finish(self, keep: bool) -> None:
        """Remove the working folder; with ``keep``, move the stage files to ``folder/stages`` first.

        They take the place of those that an earlier run left there. The key goes first of all: what is left
        of a folder when the process is killed in here is not gone on from.
        """
        kept = self.folder / KEPT
        with disk_errors(kept):
            (self.work / "key").unlink(missing_ok=True)
            if keep:
                kept.mkdir(exist_ok=True)
                for stale in kept.glob("[0-9]*-*.tersor"):
                    stale.unlink()
                for stage in self.stages:
                    stage.path.replace(kept / stage.path.name)
        shutil.rmtree(self.work)


def stage_path(folder: Path, index: int, step: Step) -> Path:
    """The file that a step ends in; its name is made of the index alone where the step's is no word."""
    word = step.name if step.name.replace("-", "").replace("_", "").isalnum() else "step"
    return folder / f"{index}-{word}.tersor"


def _seconds(note: Path) -> float:
    try:
        return float(note.read_text())
    except (OSError, ValueError):  # none were noted, or not to the end
        return 0.0


def _read(path: Path, note: Path) -> Stage:
    stored = json.loads(note.read_text())
    touched = tuple(Touched(**one) for one in stored["touched"])
    return Stage(path, StageRecord(**stored | {"touched": touched}))
