"""What a run hands back, and how it is laid down in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile, rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from tersor.artifact.writer import disk_errors, replacing
from tersor.errors import TersorError
from tersor.recipe import dump_recipe, recipe_to_dict
from tersor.result import Comparison, LayerRecord, Ledger, Score, SearchRecord, StageRecord
from tersor.spec import Recipe

ARTIFACT, REPORT, RECIPE = "model.tersor", "result.json", "recipe.yaml"


@dataclass(frozen=True)
class Result:
    """A verified artifact with the numbers that were measured on it.

    artifact -- the score of a fresh model that was loaded from the file; ``baseline`` of the trained model,
        or of the task's teacher where it has one: that is the model to be replaced.
    dense_bytes -- every parameter and buffer of that same model, uncompressed, tied weights once.
    stages -- after each step: the bytes of the model as a file, and its validation score.
    layers -- one record for each tensor of the file, in its order.
    aliases -- further name -> name of the tensor that it is tied to.
    non_finite -- how many NaN and Inf a tensor holds that has any: not compressed, it is kept as it is.
    seconds -- those of an earlier run that this one went on from included, unless it was killed.
    search -- what was tried, where a budget was given and no recipe.
    """

    task: str
    recipe: Recipe
    seed: int
    baseline: Score
    artifact: Score
    comparison: Comparison
    ledger: Ledger
    dense_bytes: int
    stages: tuple[StageRecord, ...]
    layers: tuple[LayerRecord, ...]
    aliases: Mapping[str, str]
    non_finite: Mapping[str, int]
    seconds: float
    path: Path
    search: SearchRecord | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self.ledger.file_bytes

    @property
    def ratio(self) -> float:
        """Dense bytes for each byte of the file."""
        return self.dense_bytes / self.size_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``result.json``: numbers, strings, lists and mappings only."""
        return {
            "task": self.task,
            "seed": self.seed,
            "size_bytes": self.size_bytes,
            "dense_bytes": self.dense_bytes,
            "ratio": self.ratio,
            "baseline": _plain(self.baseline),
            "artifact": _plain(self.artifact),
            "comparison": _plain(self.comparison),
            "stages": [asdict(stage) for stage in self.stages],
            "layers": [_plain(layer) for layer in self.layers],
            "aliases": dict(self.aliases),
            "non_finite": dict(self.non_finite),
            "ledger": [_plain(row) | {"size_bytes": row.size_bytes} for row in self.ledger.rows],
            "seconds": self.seconds,
            "recipe": recipe_to_dict(self.recipe),
            **({"search": asdict(self.search)} if self.search else {}),
        }

    def save(self, directory: str | Path) -> Path:
        """Lay down ``model.tersor``, ``result.json`` and ``recipe.yaml``; returns the folder.

        They are put in place together, once all are complete. Raises :class:`TersorError` where the folder
        cannot be written; it is then as it was.
        """
        folder = Path(directory)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        contents = {
            RECIPE: dump_recipe(self.recipe),
            REPORT: json.dumps(self.to_dict(), indent=1) + "\n",
        }
        with ExitStack() as complete:
            for name, content in contents.items():
                partial = complete.enter_context(replacing(folder / name))
                with disk_errors(folder / name):
                    partial.write_text(content, encoding="utf-8")
            if self.path.resolve() != (folder / ARTIFACT).resolve():
                partial = complete.enter_context(replacing(folder / ARTIFACT))
                with disk_errors(folder / ARTIFACT):
                    copyfile(self.path, partial)
        return folder


def in_folder(out: str | Path | None, run: Callable[[Path], Result]) -> Result:
    """What ``run`` gives in ``out``; without one, in a temporary folder that goes with the result."""
    if out is not None:
        check_folder(Path(out))
        return run(Path(out))
    folder = Path(mkdtemp(prefix="tersor-"))
    try:
        result = run(folder)
    except BaseException:
        rmtree(folder, ignore_errors=True)
        raise
    finalize(result, rmtree, folder, ignore_errors=True)
    return result


def check_folder(folder: Path) -> None:
    """Raise :class:`TersorError`, before any work, where a folder stands in the place of a result's file."""
    for path in (folder / ARTIFACT, folder / REPORT, folder / RECIPE):
        if path.is_dir():
            raise TersorError(f"cannot write {path}: it is a folder; move it away, or name another folder")


def _plain(record: Any) -> dict[str, Any]:
    """Fields of a flat dataclass without the per-sample values (``asdict`` would copy them)."""
    names = [name for name in record.__dataclass_fields__ if name != "per_sample"]
    return {name: getattr(record, name) for name in names}
