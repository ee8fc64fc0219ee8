"""``tersor evaluate``: the score of a file, in a fresh model."""

from __future__ import annotations

from pathlib import Path

import click

from tersor.cli import console


@click.command()
@click.argument("task")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The score as JSON on stdout.")
def evaluate(task: str, file: Path, as_json: bool) -> None:
    """Score a .tersor file in a fresh model of a task."""
    with console.json_alone(as_json) as emit:
        import tersor
        from tersor.cli.task_ref import load_task
        from tersor.report import format_bytes, format_number

        with console.progress() as progress:
            score = tersor.evaluate(load_task(task), file, progress=progress)
        size = file.stat().st_size
        interval = ""
        if score.low is not None and score.high is not None:
            interval = f" (95 %: {format_number(score.low)} to {format_number(score.high)})"
        samples = f" on {score.samples:,} samples" if score.samples else ""
        console.say(f"score {format_number(score.value)}{interval}{samples}, {format_bytes(size)}")
        emit(
            {
                "file": str(file),
                "size_bytes": size,
                "score": {
                    "value": score.value,
                    "low": score.low,
                    "high": score.high,
                    "samples": score.samples,
                    "method": score.method,
                },
            }
        )
