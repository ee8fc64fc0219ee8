"""``tersor inspect``: where the bytes of a file or of a model are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tersor.cli import console

SERVED = (".onnx", ".xml", ".bin", ".tflite")


@click.command()
@click.argument("target", metavar="FILE|TASK")
@click.option("--json", "as_json", is_flag=True, help="The rows as JSON on stdout.")
def inspect(target: str, as_json: bool) -> None:
    """Show where the bytes of a file or of a model are.

    For a .tersor FILE, the byte ledger for each tensor: its sum is the size of the file. For a
    TASK (file.py:function), the model's layers with shapes, parameters and bytes.
    """
    path = Path(target)
    if path.suffix == ".py" or not (path.is_file() or ":" in target):
        raise click.BadParameter(
            f"{target!r} is neither a file nor a task (file.py:function)", param_hint="'FILE|TASK'"
        )
    if path.suffix in SERVED:
        raise click.BadParameter(
            f"inspect reads .tersor files and tasks; {str(path)!r} is for a runtime: tersor bench times it "
            "and says what slows it, tersor evaluate scores it"
            + (", tersor pack lists its weights" if path.suffix == ".onnx" else ""),
            param_hint="'FILE|TASK'",
        )
    with console.json_alone(as_json) as emit:
        emit(_file(path) if path.is_file() else _task(target))


def _file(path: Path) -> dict[str, Any]:
    from tersor.artifact.io import Reader
    from tersor.report import ledger_table

    with Reader(path) as reader:
        ledger = reader.ledger()
        aliases = dict(reader.aliases)
    console.show(ledger_table(ledger, aliases))
    rows = [asdict(row) | {"size_bytes": row.size_bytes} for row in ledger.rows]
    return {"file": str(path), "size_bytes": ledger.file_bytes, "aliases": aliases, "rows": rows}


def _task(reference: str) -> dict[str, Any]:
    from tersor.cli.task_ref import load_task

    task = load_task(reference)
    from tersor.model.restore import fresh_model
    from tersor.report import model_layers, model_table

    layers = model_layers(fresh_model(task))
    console.show(model_table(layers))
    return {
        "task": task.name,
        "parameters": sum(layer.parameters for layer in layers),
        "size_bytes": sum(layer.size_bytes for layer in layers),
        "layers": [
            asdict(layer) | {"shapes": dict(layer.shapes), "tied": dict(layer.tied)} for layer in layers
        ],
    }
