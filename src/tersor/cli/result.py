"""What a run that compresses shows of its result, whether by a recipe or by a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.cli import console
from tersor.progress import Progress

if TYPE_CHECKING:
    from tersor.pipeline.result import Result
    from tersor.report import Table
    from tersor.task import Task


def run(make: Callable[[Progress], Result]) -> Result:
    """What ``make`` gives, with its progress shown; an interrupt says how to go on."""
    try:
        with console.progress() as progress:
            return make(progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("give the same command again to go on from where it stopped") from None


def show_result(result: Result, task: Task, out: Path, first: Table, files: Sequence[str] = ()) -> None:
    """Its tables after the ``first``, the files that were written, and exported ones that are older now."""
    from tersor.report import format_bytes, layer_table, score_table

    console.show(
        first,
        layer_table(result.layers, result.ledger, result.aliases, result.non_finite),
        score_table(
            result.baseline,
            result.artifact,
            result.comparison,
            result.dense_bytes,
            result.size_bytes,
            name="baseline" if task.teacher is None else f"teacher, {task.teacher.name}",
        ),
    )
    for name in ("model.tersor", "result.json", "recipe.yaml", *files):
        console.say(f"wrote {out / name}: {format_bytes((out / name).stat().st_size)}")
    exported = (one for one in out.iterdir() if one.suffix in (".onnx", ".xml", ".tflite"))
    for path in sorted(one for one in exported if one.name not in files):
        console.say(f"{path} is older than model.tersor: export it again")
