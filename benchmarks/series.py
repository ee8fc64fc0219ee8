"""Many compressions of one kind: each row runs once, is measured from its file, and is written as JSON."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

import tersor
from benchmarks.markdown import unfinished
from benchmarks.results import ROOT, write_results
from tersor.pipeline.result import Result
from tersor.recipe import dump_recipe
from tersor.spec import Recipe
from tersor.task import Task


class Row(Protocol):
    """One file: what it is made of, under a name of its own."""

    @property
    def name(self) -> str: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def seed(self) -> int: ...

    @property
    def kept(self) -> bool:
        """Whether its file is committed."""
        ...


@dataclass(frozen=True)
class Series:
    """The rows of one results file.

    task -- of a row; about -- what its JSON says beside what is measured; printed -- what a run shows of it.
    """

    name: str
    rows: Sequence[Any]
    task: Callable[[Any], Task]
    about: Callable[[Any, Result], dict[str, Any]]
    printed: tuple[str, ...]
    conditions: str
    folder: Path = ROOT.parent / "runs"
    artifacts: Path = ROOT / "artifacts"

    @property
    def runs(self) -> Path:
        """Where rows are run, each in a folder of its name."""
        return self.folder / self.name

    def run(self, row: Row, device: str = "cpu") -> dict[str, Any]:
        """Compress and measure on one thread; what is known of a finished row comes from its file."""
        torch.set_num_threads(1)
        done = self.finished(row)
        if done is not None:
            return done
        folder = self.runs / row.name
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # on a GPU, float32 as on the CPU
            result = tersor.compress(
                self.task(row), row.recipe, out=folder, seed=row.seed, device=device, progress=_print_epoch
            )
        known = {**self.about(row, result), **measured(result), "recipe": dump_recipe(row.recipe)}
        if device != "cpu":
            known["device"] = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
        if row.kept:
            shutil.copyfile(result.path, self.artifacts / f"{row.name}.tersor")
            known["artifact"] = f"benchmarks/artifacts/{row.name}.tersor"
        (folder / "row.json").write_text(json.dumps(known, indent=1))
        return known

    def finished(self, row: Row) -> dict[str, Any] | None:
        """What is known of a row that ran with the recipe as it is now."""
        path = self.runs / row.name / "row.json"
        if not path.exists():
            return None
        known: dict[str, Any] = json.loads(path.read_text())
        return known if known["recipe"] == dump_recipe(row.recipe) else None

    def write_finished(self) -> list[str]:
        """Write the results of all finished rows; returns the names of the others."""
        known = {row.name: self.finished(row) for row in self.rows}
        missing = [name for name, one in known.items() if one is None]
        rows = [one for one in known.values() if one]
        command = f"python -m benchmarks.{self.name}"
        write_results(self.name, command, rows, unfinished=missing, conditions=self.conditions)
        return missing

    def chosen(self, patterns: Iterable[str]) -> list[Any]:
        """The rows whose names match one of the patterns."""
        return [row for row in self.rows if any(fnmatch(row.name, pattern) for pattern in patterns)]

    def main(self, description: str) -> None:
        """The command line: run the rows that are asked for, then write all that are finished."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
        parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="run just these rows")
        parser.add_argument(
            "--device", choices=("cpu", "cuda"), default="cpu", help="where unfinished rows run"
        )
        arguments = parser.parse_args()
        with ProcessPoolExecutor(arguments.jobs) as pool:
            for row in pool.map(partial(self.run, device=arguments.device), self.chosen(arguments.only)):
                print({name: row[name] for name in self.printed}, flush=True)
                self.write_finished()
        print(*unfinished({"unfinished": self.write_finished()}) or ["all rows are there"])


def measured(result: Result) -> dict[str, Any]:
    """What every row says of its file."""
    return {
        "error_percent": error_percent(result.artifact.value),
        "baseline_error_percent": error_percent(result.baseline.value),
        "drop_points": round(100 * result.comparison.drop, 6),
        "p_value": result.comparison.p_value,
        "validation_error_percent": error_percent(result.stages[-1].validation or 0.0),
        "size_bytes": result.size_bytes,
        "dense_bytes": result.dense_bytes,
        "seconds": round(result.seconds, 1),
    }


def error_percent(accuracy: float) -> float:
    """Of an accuracy from 0 to 1, without the noise of its last bits."""
    return round(100 * (1 - accuracy), 6)


def _print_epoch(phase: str, done: float, total: float, note: str = "") -> None:
    if note.startswith("epoch"):
        print(note, flush=True)
