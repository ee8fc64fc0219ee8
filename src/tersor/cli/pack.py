"""``tersor pack`` and ``tersor unpack``: weights only, no model code, one tensor in memory at a time."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tersor.cli import console

if TYPE_CHECKING:
    from tersor.pipeline.pack import PackReport
    from tersor.report import Table

_IN = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUT = click.Path(dir_okay=False, path_type=Path)
_FORCE = click.option("--force", is_flag=True, help="Replace a file that is there, whoever wrote it.")


@click.command()
@click.argument("source", metavar="IN", type=_IN)
@click.option("-o", "--out", type=_OUT, required=True, help="The .tersor file to write.")
@click.option("--bits", type=click.IntRange(1, 16), help="At most 2^N values a tensor.")
@click.option("--clusters", type=click.IntRange(1, 65536), help="At most K values a tensor.")
@click.option("--max-error", type=click.FloatRange(0, min_open=True), help="No weight further off than E.")
@click.option("--lossless", is_flag=True, help="Every bit comes back; so without the three.")
@click.option("--include", multiple=True, metavar="PATTERN",
              help="Only these tensors (glob or re:...); others are kept losslessly.")  # fmt: skip
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Keep these losslessly.")
@click.option("--speed", type=click.Choice(["fast", "balanced", "small"]), default="balanced",
              show_default=True, help="How fast the file has to be to read.")  # fmt: skip
@_FORCE
@click.option("--json", "as_json", is_flag=True, help="What was packed as JSON on stdout.")
def pack(source: Path, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Pack a .safetensors or an .onnx file, without a task.

    IN may also be the model.safetensors.index.json of a sharded checkpoint. The graph of an ONNX file is
    stored with its weights. Takes one of --bits, --clusters, --max-error and --lossless. A .tersor file that
    is there is replaced.
    """
    with console.json_alone(as_json) as emit:
        import tersor
        from tersor.cli.target import check_ending, check_target
        from tersor.report import format_bytes

        check_ending(out, ".tersor", "packed files")
        check_target(out, force=force)
        with console.progress() as progress:
            report = tersor.pack(source, out, **options, progress=progress)
        size = report.ledger.file_bytes
        console.show(_table(report))
        console.say(
            f"wrote {out}: {format_bytes(size)} of {format_bytes(report.source_bytes)}, "
            f"{report.source_bytes / size:.1f}x, in {report.seconds:.1f} s"
        )
        emit({"out": str(out), "size_bytes": size, **asdict(report)})


def _table(report: PackReport) -> Table:
    from tersor.report import Table, format_number, format_shape, non_finite_words, printable

    sizes = {row.name: row.size_bytes for row in report.ledger.rows}
    rows = tuple(
        (
            printable(row.name),
            format_shape(row.shape),
            row.dtype,
            f"{row.action} ({row.reason})" if row.reason else row.action,
            format_number(row.relative_error) if row.relative_error else "-",
            format_number(row.max_error) if row.max_error else "-",
            f"{row.source_bytes:,}",
            f"{sizes[row.name]:,}",
        )
        for row in report.rows
    )
    columns = ("tensor", "shape", "dtype", "action", "relative error", "max error", "source bytes", "bytes")
    counts = {row.name: row.non_finite for row in report.rows if row.non_finite}
    return Table("packed", columns, rows, left=4, notes=non_finite_words(counts))


@click.command()
@click.argument("source", metavar="IN.tersor", type=_IN)
@click.option("-o", "--out", type=_OUT, required=True, help="The .safetensors (or .onnx) file to write.")
@_FORCE
@click.option("--json", "as_json", is_flag=True, help="What was unpacked as JSON on stdout.")
def unpack(source: Path, out: Path, force: bool, as_json: bool) -> None:
    """Decode a .tersor file into the .safetensors or .onnx file.

    It is what the file was packed from: .onnx if it holds a graph, else .safetensors. A file that is there
    stays as it is, unless with --force.
    """
    with console.json_alone(as_json) as emit:
        import tersor
        from tersor.cli.target import is_ours
        from tersor.report import format_bytes

        replace = force or (out.suffix == ".onnx" and is_ours(out))
        with console.progress() as progress:
            size = tersor.unpack(source, out, replace=replace, progress=progress)
        console.say(f"wrote {out}: {format_bytes(size)}")
        emit({"out": str(out), "size_bytes": size})
