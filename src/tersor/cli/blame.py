"""``tersor blame``: who lost the score of a result, and who saved its bytes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from tersor.cli import console


@click.command()
@click.argument("task")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--batches", type=click.IntRange(min=1),
              help="Batches of validation data to measure each tensor on; else all.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="Where to evaluate.")
@click.option("--json", "as_json", is_flag=True, help="Every figure as JSON on stdout.")
def blame(task: str, folder: Path, batches: int | None, device: str, as_json: bool) -> None:
    """Tell which steps and tensors of a result lost its score.

    FOLDER is what tersor compress wrote. For each step: the validation score that it lost and the bytes that
    it saved. For each tensor: what the score would be with this tensor alone put back to what it was before
    the last steps, the bytes that it saves, and the rule to paste into the recipe to leave it alone or to be
    careful with it. All of it goes into FOLDER/result.json too. A recipe that trains before it shares or
    rounds takes the files of its steps: tersor compress ... --keep-stages.
    """
    with console.json_alone(as_json) as emit:
        import tersor
        from tersor.cli.task_ref import load_task
        from tersor.pipeline.blame import save_blame
        from tersor.report.blame import blame_tables

        loaded = load_task(task)
        with console.progress() as progress:
            found = tersor.blame(loaded, folder, batches=batches, device=device, progress=progress)
        console.show(*blame_tables(found))
        console.say(f"wrote {save_blame(folder, found)}")
        emit({"folder": str(folder), **asdict(found)})
