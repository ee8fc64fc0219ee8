"""``tersor export``: a file in another runtime's format, checked there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from tersor.cli import console


@click.command()
@click.argument("task")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path),
              help="The file to write; default: beside FILE, with the format's ending.")  # fmt: skip
@click.option(
    "--format",
    "form",
    default="onnx",
    show_default=True,
    help="onnx, openvino (an .xml and a .bin) or litert (.tflite).",
)
@click.option("--runtime", help="Where to check an ONNX file: onnxruntime (default) or openvino.")
@click.option("--batches", type=click.IntRange(min=1), default=4, show_default=True,
              help="Test batches that the check runs.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that tersor did not write.")
@click.option("--json", "as_json", is_flag=True, help="What was written and how well it agrees, as JSON.")
def export(
    task: str, file: Path, out: Path | None, form: str, runtime: str | None, batches: int, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a .tersor file for another runtime, and check it there.

    FILE may also be the folder of a result. Nothing is left where the runtime does not compute what the
    model does: exit code 5. A file that is there is replaced if tersor wrote it.
    """
    with console.json_alone(as_json) as emit:
        import tersor
        from tersor.cli.target import check_ending, check_target
        from tersor.cli.task_ref import load_task
        from tersor.errors import SpecError, did_you_mean
        from tersor.pipeline.export import ENDINGS, FORMATS
        from tersor.report import format_bytes

        source = file / "model.tersor" if file.is_dir() else file
        target = out or source.with_suffix(ENDINGS.get(form, f".{form}"))
        if form in FORMATS:
            if runtime is not None and runtime not in FORMATS[form]:
                known = FORMATS[form]
                near = did_you_mean(runtime, known)
                raise SpecError(f"runtime is {runtime!r}, of those that check {form}: {', '.join(known)}"
                                f"{'.' + near if 'mean' in near else ''}")  # fmt: skip
            check_ending(target, ENDINGS[form], f"files of {form}")
            check_target(target, force=force)
        with console.progress() as progress:
            done = tersor.export_model(
                load_task(task), source, target, format=form, runtime=runtime, batches=batches,
                progress=progress,
            )  # fmt: skip
            progress("export", 1.0, 1.0)
        agreement = done.agreement
        console.say(f"wrote {done.path}: {format_bytes(done.size_bytes)}")
        for name, reason in done.floats.items():
            console.say(f"as floats: {name}, since {reason}")
        console.say(
            f"{done.runtime}: outputs within {agreement.largest:.2f} steps of an 8-bit output "
            f"({agreement.mean:.3f} in the mean) on {agreement.samples:,} samples"
        )
        emit(asdict(done) | {"path": str(done.path)})
