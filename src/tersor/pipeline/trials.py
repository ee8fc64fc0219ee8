"""Recipes that are tried one after another: each beginning that two of them share is run once.

What was found is noted in a file that only grows, so that a search that was killed goes on with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from shutil import rmtree
from time import perf_counter
from typing import Any

import numpy as np

from tersor.artifact.io import Reader
from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import ExportError, TersorError, VerificationError
from tersor.measure.certainty import Told
from tersor.measure.moved import Moved, Originals, score_and_change
from tersor.model.restore import trained_model
from tersor.pipeline.allocation import Allocation, allocation_after
from tersor.pipeline.context import Context
from tersor.pipeline.load import evaluate, runnable
from tersor.pipeline.run import file_speed, run_steps
from tersor.pipeline.stages import Stage, StageStore
from tersor.pipeline.tail import trains
from tersor.pipeline.timing import Ratio, Stopwatch
from tersor.pipeline.work import read_collected, write_collected
from tersor.recipe.load import dump_recipe
from tersor.result import Score
from tersor.spec import Code, Recipe, Step
from tersor.train.randomness import Randomness

NOTES, STAGES, TRIALS = "search.jsonl", "stages", "trials"
_BEGINNING = b'{"key": "'  # of each line of notes


@dataclass(frozen=True)
class Trial:
    """A recipe that was run to its end: its file, and how that scored on the validation data."""

    recipe: Recipe
    path: Path
    size_bytes: int
    score: Score
    seconds: float
    change: float | None = None  # of the outputs, the mean over the validation data
    told: tuple[Told, Told] | None = None  # its drop on either half, by probabilities
    latency: Ratio | None = None  # by that of the uncompressed model, where that is looked for, and it runs
    noted: bool = False  # whether it had been run before

    @property
    def trained(self) -> bool:
        """Whether it learned anything after the original."""
        return any(map(trains, self.recipe.steps))


class Notes:
    """What a search (or other long work, its ``kind``) has found, by keys, one JSON line each.

    Each is on the disk before it is used. A line that was not written to its end is dropped. ``key`` says
    whose notes they are: those of another search are an error, so that nobody's work is lost.
    """

    def __init__(self, path: Path, key: str, kind: str = "search") -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        self.fresh = False  # whether nothing had been noted
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        for line in whole:
            self.known.update(self._entry(line))
        if self.known.setdefault(kind, key) != key or (whole and next(iter(self.known)) != kind):
            raise TersorError(f"{path} is of another {kind}: its task, data, weights, settings, seed or "
                              "versions differ; name another place, or delete this one")  # fmt: skip
        if len(whole) < len(lines):
            if not whole and not lines[0].startswith(_BEGINNING[: len(lines[0])]):
                raise self._foreign()
            with disk_errors(path), path.open("r+b") as file:
                file.truncate(sum(map(len, whole)))
        if not whole:
            self._append(kind, key)
            self.fresh = True

    def once(self, key: str, find: Callable[[], Any]) -> Any:
        """What was noted under ``key``, else what ``find`` gives, noted from now on; plain data."""
        if key not in self.known:
            value = json.loads(json.dumps(find()))
            self._append(key, value)
            self.known[key] = value
        return self.known[key]

    def _entry(self, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            return {entry["key"]: entry["value"]}
        except (ValueError, KeyError, TypeError):
            raise self._foreign() from None

    def _foreign(self) -> TersorError:
        return TersorError(f"{self.path} exists, and holds no notes of tersor: name another place")

    def _append(self, key: str, value: Any) -> None:
        line = json.dumps({"key": key, "value": value}) + "\n"
        with disk_errors(self.path), self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


class Trials:
    """Runs recipes in ``folder``; what an earlier process finished is taken from there."""

    def __init__(
        self, folder: Path, context: Context, notes: Notes, stopwatch: Stopwatch | None = None
    ) -> None:
        self.folder = folder
        self.context = context
        self.notes = notes
        self.stopwatch = stopwatch
        self._allocated: tuple[str, Allocation] | None = None
        for one in (STAGES, TRIALS):
            with disk_errors(folder):
                if notes.fresh:  # what is there is of a search whose notes are gone
                    rmtree(folder / one, ignore_errors=True)
                (folder / one).mkdir(parents=True, exist_ok=True)

    def run(self, recipe: Recipe) -> Trial:
        """The trial of a recipe, from the notes if it is there."""
        name = _digest(dump_recipe(recipe))
        path = self.folder / TRIALS / f"{name}.tersor"
        noted = f"trial {name}" in self.notes.known
        found = self.notes.once(f"trial {name}", lambda: self._run(recipe, path))
        score, told = _score(found["score"], path), found["told"]
        if told is not None:
            told = (Told(**told[0]), Told(**told[1]))
        latency = Ratio(**found["latency"]) if found["latency"] else None
        return Trial(
            recipe, path, found["size_bytes"], score, found["seconds"], found["change"], told, latency, noted
        )

    def stage(self, steps: tuple[Step, ...]) -> Stage:
        """The file after some steps, run if it is not there yet."""
        recipe = Recipe(name="stage", steps=steps)
        store = self.store_of(recipe)
        run_steps(recipe, store, self.context)
        return store.stages[-1]

    def allocation(self, steps: tuple[Step, ...], batches: int) -> Allocation:
        """What can be chosen for the tensors after some steps; the last one that was asked for is kept."""
        recipe = Recipe(name="stage", steps=(*steps, Code(speed="small")))
        key = _digest(dump_recipe(recipe))
        if self._allocated is None or self._allocated[0] != key:
            stage = self.stage(recipe.steps)
            with Reader(stage.path) as reader:
                ledger = reader.ledger()
            sizes = {row.name: row.size_bytes - row.parts.get("header", 0) for row in ledger.rows}
            made = allocation_after(
                steps, read_collected(stage.path), sizes, ledger.file_bytes, self.context, batches=batches
            )
            self._allocated = key, made
        return self._allocated[1]

    def worst_layers(self, most: int = 3) -> tuple[str, ...]:
        """The tensors that lose most when all are held in the fewest bytes, by the last allocation."""
        if self._allocated is None:
            return ()
        worst = {one.name: one.losses.max() for one in self._allocated[1].options}
        return tuple(sorted(worst, key=lambda name: -worst[name])[:most])

    def store_of(self, recipe: Recipe) -> StageStore:
        """The stages of the recipe's steps, each named by all steps up to it."""
        paths = []
        for index in range(len(recipe.steps)):
            beginning = replace(recipe, name="stage", description="", steps=recipe.steps[: index + 1])
            paths.append(self.folder / STAGES / f"{_digest(dump_recipe(beginning))}.tersor")
        return StageStore.of_paths(self.folder, paths)

    def _run(self, recipe: Recipe, path: Path) -> dict[str, Any]:
        started = perf_counter()
        collected = run_steps(recipe, self.store_of(recipe), self.context)
        ledger = write_collected(path, collected, file_speed(recipe))
        found = self._measured(path)
        score = found if isinstance(found, Score) else found.score
        if score.per_sample is not None:
            with (
                replacing(path.with_suffix(".npy")) as partial,
                disk_errors(path),
                partial.open("wb") as file,
            ):
                np.save(file, score.per_sample)
        moved = {"change": None, "told": None} if isinstance(found, Score) else asdict(found)
        return {
            "size_bytes": ledger.file_bytes,
            "change": moved["change"], "told": moved["told"],
            "score": asdict(replace(score, per_sample=None)),
            "latency": self._latency(path),
            "seconds": perf_counter() - started,
            "recipe": dump_recipe(recipe),
        }  # fmt: skip

    def _latency(self, path: Path) -> dict[str, float] | None:
        """By that of the uncompressed model; None where it is not asked for or the file does not run."""
        if self.stopwatch is None:
            return None
        try:
            return asdict(self.stopwatch.ratio(path))
        except (ExportError, VerificationError) as error:
            self.context.progress("search", 0, 0, f"not timed: {error}")
            return None

    def _measured(self, path: Path) -> Score | Moved:
        """How the file does on the validation data; how its outputs moved, too, where samples have scores."""
        task, device = self.context.task, self.context.device
        assert task.validation is not None
        with Randomness(task.validation).seeded(0):
            if task.metric is not None:
                return evaluate(task, path, loader=task.validation, device=device)
            model = runnable(task, path, device)
            reference = trained_model(task.reference).to(device)
            originals = Originals(reference, task.reference, device=device, most_bytes=0)
            return score_and_change(model, task, task.validation, originals, device=device)


def _score(plain: dict[str, Any], path: Path) -> Score:
    values = path.with_suffix(".npy")
    return Score(**plain | {"per_sample": np.load(values) if values.exists() else None})


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()
