"""The files between the steps of a run: what makes it resumable, and its stage table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sized
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

import tersor
from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import TersorError
from tersor.model.restore import trained_model
from tersor.recipe.load import dump_recipe
from tersor.result import StageRecord, Touched
from tersor.spec import Recipe
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

    @classmethod
    def open(cls, folder: Path, task: Task, recipe: Recipe, seed: int, device: str) -> StageStore:
        """The store of this very run, else an empty one.

        It is the same run if recipe, seed, weights, the code of loss and score, the number of batches,
        device, threads and versions are; the samples themselves are not compared.
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
        return store

    @property
    def work(self) -> Path:
        """Where unfinished runs live."""
        return self.folder / WORK

    def path(self, index: int, name: str) -> Path:
        """The file that a step ends in; its name is made of the index alone where ``name`` is no word."""
        word = name if name.replace("-", "").replace("_", "").isalnum() else "step"
        return self.work / f"{index}-{word}.tersor"

    def add(self, stage: Stage) -> None:
        """Note a finished step, after its file is complete; its training checkpoint is spent."""
        note = stage.path.with_suffix(".json")
        with replacing(note) as partial, disk_errors(note):
            partial.write_text(json.dumps(asdict(stage.record)))
        stage.path.with_suffix(".checkpoint").unlink(missing_ok=True)
        self.stages.append(stage)

    def finish(self, keep: bool) -> None:
        """Remove the working folder; with ``keep``, move the stage files to ``folder/stages`` first."""
        if keep:
            kept = self.folder / KEPT
            kept.mkdir(exist_ok=True)
            for stage in self.stages:
                stage.path.replace(kept / stage.path.name)
        shutil.rmtree(self.work)


def _read(path: Path, note: Path) -> Stage:
    stored = json.loads(note.read_text())
    touched = tuple(Touched(**one) for one in stored["touched"])
    return Stage(path, StageRecord(**stored | {"touched": touched}))


def _fingerprint(task: Task, recipe: Recipe, seed: int, device: str) -> str:
    digest = blake2b(digest_size=16)
    versions = (tersor.__version__, torch.__version__, np.__version__)
    counts = [len(one) if isinstance(one, Sized) else None for one in (task.train, task.validation)]
    digest.update(repr((versions, seed, device, torch.get_num_threads(), counts)).encode())
    for function in (task.forward, task.loss, task.score, task.metric):
        code = getattr(function, "__code__", None)
        digest.update(repr((code.co_code, code.co_names)).encode() if code else b"-")
    digest.update(dump_recipe(recipe).encode())
    for name, tensor in trained_model(task).state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
