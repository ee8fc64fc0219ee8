"""``tersor memory``: what a model needs in memory, estimated and measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tersor.cli import console

if TYPE_CHECKING:
    from tersor.measure.footprint import Footprint, ModelMemory


@click.command()
@click.argument("task")
@click.argument("file", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Samples at once."
)
@click.option("--json", "as_json", is_flag=True, help="Every figure as JSON on stdout, offsets too.")
def memory(task: str, file: Path | None, batch_size: int, as_json: bool) -> None:
    """Show what a model needs in memory, layer by layer.

    For the TASK's trained model or a .tersor FILE of it (or the folder of a result): the bytes of weights,
    and of what is alive between operations in the order that needs the least, with everything in FP32, FP16,
    INT8 and INT4, and as the file has it; and multiply-accumulates. These are estimates from the graph; what
    PyTorch takes is measured beside them.
    """
    with console.json_alone(as_json) as emit:
        import tersor
        from tersor.cli.task_ref import load_task
        from tersor.report.memory import activations_table, memory_table, weights_table

        source = file / "model.tersor" if file is not None and file.is_dir() else file
        found = tersor.memory(load_task(task), source, batch_size=batch_size)
        console.show(weights_table(found), activations_table(found), memory_table(found))
        emit(memory_data(found))


def memory_data(found: ModelMemory) -> dict[str, Any]:
    """Plain data: the fields, and what follows from them."""
    data = asdict(found)
    data["footprints"] = [_footprint_data(one) for one in found.footprints]
    return data


def _footprint_data(one: Footprint) -> dict[str, Any]:
    arenas = {
        name: asdict(arena) | {"peak_bytes": arena.peak_bytes, "peak_at": arena.peak_at}
        for name, arena in (("arena", one.arena), ("given_arena", one.given_arena))
    }
    return asdict(one) | arenas | {"total_bytes": one.total_bytes}
