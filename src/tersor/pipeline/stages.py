"""The files between the steps of a run: what makes it resumable, and its stage table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

import tersor
from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import TersorError
from tersor.model.restore import trained_model
from tersor.recipe.load import dump_recipe
from tersor.result import StageRecord, Touched
from tersor.spec import Prune, Recipe
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
    stages: list[Stage] = field(default_factory=list)
    earlier_seconds: float = 0.0  # of the stages and parts of stages that an interrupted run left

    @classmethod
    def open(cls, folder: Path, task: Task, recipe: Recipe, seed: int, device: str) -> StageStore:
        """The store of this very run, else an empty one.

        It is the same run if recipe, seed, weights (a teacher's too), the code of loss and score, the number
        of batches, device, threads and versions are; the samples themselves are not compared.
        """
        store = cls(folder)
        key = _fingerprint(task, recipe, seed, device)
        try:
            if not (store.work / "key").exists() or (store.work / "key").read_text() != key:
                shutil.rmtree(store.work, ignore_errors=True)
                store.work.mkdir(parents=True)
                (store.work / "key").write_text(key)
        except OSError as error:
            raise TersorError(f"cannot work in {folder}: {error.strerror or error}") from error
        for index, step in enumerate(recipe.steps):
            note = store.path(index, step.name).with_suffix(".json")
            if not note.exists():
                break
            store.stages.append(_read(store.path(index, step.name), note))
        store.earlier_seconds = sum(stage.record.seconds for stage in store.stages)
        return store

    @property
    def work(self) -> Path:
        """Where unfinished runs live."""
        return self.folder / WORK

    def path(self, index: int, name: str) -> Path:
        """The file that a step ends in; its name is made of the index alone where ``name`` is no word."""
        word = name if name.replace("-", "").replace("_", "").isalnum() else "step"
        return self.work / f"{index}-{word}.tersor"

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

        They take the place of those that an earlier run left there.
        """
        kept = self.folder / KEPT
        with disk_errors(kept):
            if keep:
                kept.mkdir(exist_ok=True)
                for stale in kept.glob("[0-9]*-*.tersor"):
                    stale.unlink()
                for stage in self.stages:
                    stage.path.replace(kept / stage.path.name)
        shutil.rmtree(self.work)


def _seconds(note: Path) -> float:
    try:
        return float(note.read_text())
    except (OSError, ValueError):  # none were noted, or not to the end
        return 0.0


def _read(path: Path, note: Path) -> Stage:
    stored = json.loads(note.read_text())
    touched = tuple(Touched(**one) for one in stored["touched"])
    return Stage(path, StageRecord(**stored | {"touched": touched}))


def _fingerprint(task: Task, recipe: Recipe, seed: int, device: str) -> str:
    digest = blake2b(digest_size=16)
    versions = (tersor.__version__, torch.__version__, np.__version__)
    counts = [len(one) if isinstance(one, Sized) else None for one in (task.train, task.validation)]
    digest.update(repr((versions, seed, device, torch.get_num_threads(), counts)).encode())
    for function in (task.forward, task.reference.forward, task.loss, task.score, task.metric):
        code = getattr(function, "__code__", None)
        digest.update(repr((code.co_code, code.co_names)).encode() if code else b"-")
    digest.update(dump_recipe(recipe).encode())
    for mask in (Path(step.mask) for step in recipe.steps if isinstance(step, Prune) and step.mask):
        digest.update(mask.read_bytes() if mask.is_file() else b"-")
    for one in (task,) if task.teacher is None else (task, task.reference):
        for name, tensor in trained_model(one).state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
