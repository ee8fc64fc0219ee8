"""``tersor strategies``: FP32, all in 8 bits, all in 4, and mixed, each measured on its own file."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tersor.cli import console
from tersor.cli.target import check_out

if TYPE_CHECKING:
    from tersor.measure.strategy import Strategy

FOLDERS = ("fp32", "all-8", "all-4", "mixed")


@click.command()
@click.argument("task")
@click.option("--mixed", metavar="FILE|RECIPE",
              help="A .tersor file or the folder of a result, measured as it is; or a preset's name or a "
              "YAML file, which is run.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path),
              help="Keep the files of each there, in a folder of its own.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True,
              help="Samples at once, for memory and latency.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(6), default=30, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True,
    help="cpu counts the time of all threads on the processor: steadier on a busy machine.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Every figure as JSON on stdout.")
def strategies(
    task: str, mixed: str | None, out: Path | None, clock: Literal["wall", "cpu"], seed: int,
    as_json: bool, **how: int,
) -> None:  # fmt: skip
    """Compare FP32, all in 8 bits, all in 4, and a mixture.

    Weights and activations alike, calibrated and not trained; each is written as a file of its own, read back
    and scored against the trained model, exported to ONNX and timed in ONNX Runtime in turns with the others.
    Memory is an estimate from the graph (tersor memory tells it layer by layer).
    """
    with console.json_alone(as_json) as emit:
        if out is not None:
            for name in FOLDERS:
                check_out(out / name)
        import tersor
        from tersor.cli.task_ref import load_task
        from tersor.pipeline.timing import Timing
        from tersor.report.memory import PREFETCH
        from tersor.report.strategies import strategy_table

        timing = Timing(clock=clock, **how)
        with console.progress() as progress:
            found = tersor.strategies(
                load_task(task), mixed, out=out, timing=timing, seed=seed, progress=progress
            )
        clocked = "time of all threads on the processor" if clock == "cpu" else "wall time"
        notes = (
            f"latency at batch {timing.batch_size:,} in ONNX Runtime, {timing.threads} thread"
            f"{'s' if timing.threads > 1 else ''}: {clocked}, {timing.rounds} rounds in turns; ratio to the "
            "first that runs",
            "weights and arena are what they take in memory at that batch, in bytes: estimates from the "
            f"graph; {PREFETCH}",
        )
        console.show(strategy_table(found, notes=notes))
        emit({"task": task, "timing": asdict(timing), "strategies": [_data(one) for one in found]})


def _data(one: Strategy) -> dict[str, Any]:
    plain = one if one.score is None else replace(one, score=replace(one.score, per_sample=None))
    data = asdict(plain)
    if data["score"] is not None:
        del data["score"]["per_sample"]
    if one.footprint is not None:
        totals = {"arena_bytes": one.footprint.arena.size_bytes, "total_bytes": one.footprint.total_bytes}
        data["footprint"] |= totals
    return data | {name: None if data[name] is None else str(data[name]) for name in ("path", "exported")}
