"""``tersor compress model.onnx``: quantization of a model that comes without its code."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tersor.cli import console

if TYPE_CHECKING:
    from tersor.report import Table
    from tersor.result import Touched

_FOR_TASKS = {
    "seed": "--seed",
    "device": "--device",
    "asked_drop": "--asked-drop",
    "keep_stages": "--keep-stages",
}


def refuse_options(given: Collection[str]) -> None:
    """Usage error for an option that only a TASK takes."""
    for name, option in _FOR_TASKS.items():
        if name in given:
            raise click.UsageError(f"{option} goes with a TASK, not with an ONNX model: leave it out")


def compress_onnx(
    source: Path, recipe: str | None, sets: tuple[str, ...], data: str | None, out: Path | None
) -> dict[str, Any]:
    """Compress into the folder ``out``, or where there is none only say what would be done."""
    if not source.is_file():
        raise click.BadParameter(f"there is no file {str(source)!r}", param_hint="'TASK'")
    if out is not None and data is None:
        raise click.UsageError("an ONNX model takes --data DATA.npz (one array an input, by its name), or "
                               "--data file.py:function: scales are calibrated on it")  # fmt: skip
    from tersor.pipeline.onnx_compress import INT8, compress_onnx, plan_onnx
    from tersor.recipe import apply_sets, load_recipe
    from tersor.report import format_bytes

    chosen = apply_sets(INT8 if recipe is None else load_recipe(recipe), sets)
    with console.progress() as progress:
        if out is None:
            touched = plan_onnx(source, chosen, progress=progress)
        else:
            result = compress_onnx(
                source, _samples(str(data)), chosen, out=out / "model.onnx", progress=progress
            )
    if out is None:
        console.show(_table(touched))
        return {"touched": [asdict(one) for one in touched]}
    console.show(_table(result.touched))
    seen = result.agreement
    console.say(
        f"wrote {result.path}: {format_bytes(result.size_bytes)} of {format_bytes(result.source_bytes)}"
    )
    if result.held_out:
        kind = "no scale was calibrated on them"
    else:
        kind = "the scales were calibrated on them too: more samples would be held out"
    console.say(
        f"{result.runtime}: outputs within {seen.largest:.2f} steps of an 8-bit output of the float model "
        f"({seen.mean:.3f} in the mean), cosine {seen.cosine:.6f}, on {seen.samples:,} of the samples; {kind}"
    )
    return asdict(result) | {"path": str(result.path)}


def _samples(data: str) -> Any:
    if not data.endswith(".npz"):
        from tersor.cli.task_ref import load_batches

        return load_batches(data)
    if not Path(data).is_file():
        raise click.BadParameter(f"there is no file {data!r}", param_hint="'--data'")
    return Path(data)


def _table(touched: tuple[Touched, ...]) -> Table:
    from tersor.report import Table, printable

    rows = tuple((printable(one.name), "yes" if one.applied else "no", one.detail) for one in touched)
    return Table("weights and operations", ("name", "quantized", "how, or why not"), rows, left=3)
