"""``tersor compare``: files of one model side by side."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from tersor.cli import console


@click.command()
@click.argument("task")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--baseline", type=click.Path(path_type=Path), metavar="FILE",
              help="Compare with this file in place of the first.")  # fmt: skip
@click.option("--against", type=click.Choice(["first", "original"]), default="first", show_default=True,
              help="original: compare with the trained model itself.")  # fmt: skip
@click.option("--on", type=click.Choice(["test", "validation"]), default="test", show_default=True,
              help="The data that the files are scored on.")  # fmt: skip
@click.option("--runtime", default="onnxruntime", show_default=True,
              help="Where .onnx files run: onnxruntime or openvino.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True,
              help="Threads of the runtimes.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The comparison as JSON on stdout.")
def compare(
    task: str, files: tuple[Path, ...], baseline: Path | None, against: str, as_json: bool, **how: Any
) -> None:
    """Score files of one model side by side, and test their scores.

    FILE is a .tersor file, the folder of a result, or an exported .onnx, .xml or .tflite file. Each is scored
    once; drops from the first are tested sample by sample, p-values corrected for the number of files. Then
    how each .tersor file holds each tensor.

    \b
    tersor compare my_task.py:task out-a out-b
    tersor compare my_task.py:task out-a out-b/model.onnx --against original
    """
    with console.json_alone(as_json) as emit:
        import tersor
        from tersor.cli.task_ref import load_task
        from tersor.report import comparison_table, tensors_table

        loaded = load_task(task)
        with console.progress() as progress:
            compared = tersor.compare_files(
                loaded, files, baseline=baseline, original=against == "original", progress=progress, **how
            )
        tensors = tensors_table(compared)
        console.show(comparison_table(compared), *([tensors] if tensors else []))
        emit(_plain(compared))


def _plain(record: Any) -> Any:
    """Records as mappings, paths as text, without per-sample values."""
    if hasattr(record, "__dataclass_fields__"):
        named = {one.name: getattr(record, one.name) for one in fields(record)}
        return {name: _plain(value) for name, value in named.items() if name not in ("per_sample", "order")}
    if isinstance(record, dict):
        return {name: _plain(value) for name, value in record.items()}
    if isinstance(record, tuple | list):
        return [_plain(one) for one in record]
    return str(record) if isinstance(record, Path) else record
