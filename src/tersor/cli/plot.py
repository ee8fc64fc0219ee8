"""``tersor plot``: pictures of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from tersor.cli import console


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--task", metavar="TASK", help="file.py:function: weights as trained and the memory of each "
              "operation are drawn too.")  # fmt: skip
@click.option("--format", "kind", type=click.Choice(["png", "svg"]), default="png", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for the pictures, DIR/plots by "
              "default.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="What was drawn, and what not, as JSON on stdout.")
def plot(
    folder: Path, task: str | None, kind: Literal["png", "svg"], out: Path | None, as_json: bool
) -> None:
    """Draw pictures of a result (pip install 'tersor[plots]').

    Weights of each tensor with the values that it is left with, bytes of each tensor, the front of a search,
    blame, sensitivity (DIR/sensitivity.jsonl) and strategies (DIR/strategies.json): whatever DIR has the
    files for. What is not drawn is said, with the reason.
    """
    with console.json_alone(as_json) as emit:
        from tersor.cli.task_ref import load_task
        from tersor.pipeline.pictures import plot as draw

        with console.progress() as progress:
            found = draw(
                folder, task=None if task is None else load_task(task), out=out, kind=kind, progress=progress
            )
        for path in found.paths:
            console.say(f"wrote {path}")
        for what, why in found.missing.items():
            console.say(f"not drawn: {what}: {why}")
        emit({"pictures": [str(path) for path in found.paths], "missing": dict(found.missing)})
