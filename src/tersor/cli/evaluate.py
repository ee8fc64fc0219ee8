"""``tersor evaluate``: the score of a file, in a fresh model or in a runtime."""

from __future__ import annotations

from pathlib import Path

import click

from tersor.cli import console

DEFAULTS = {".onnx": "onnxruntime", ".xml": "openvino", ".tflite": "litert"}


@click.command()
@click.argument("task")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--runtime", help="Where an .onnx file runs: onnxruntime (default) or openvino; .xml files run "
              "in openvino, .tflite files in litert.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True,
              help="Threads of the runtime.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="Where a .tersor file is scored.")
@click.option("--json", "as_json", is_flag=True, help="The score as JSON on stdout.")
def evaluate(task: str, file: Path, runtime: str | None, threads: int, device: str, as_json: bool) -> None:
    """Score a .tersor file in a fresh model, others in a runtime.

    .onnx files run in ONNX Runtime or OpenVINO, .xml files in OpenVINO, .tflite files in LiteRT.
    """
    with console.json_alone(as_json) as emit:
        import tersor
        from tersor.cli.task_ref import load_task
        from tersor.measure.size import file_bytes
        from tersor.report import format_bytes, format_number

        served = _is_served(file, runtime, device)
        where = ""
        with console.progress() as progress:
            if served:
                from tersor.export.runtimes import open_session

                chosen = runtime or DEFAULTS[file.suffix]
                where = open_session(file, chosen, threads=threads).description
                score = tersor.evaluate_onnx(
                    load_task(task), file, runtime=chosen, threads=threads, progress=progress
                )
            else:
                score = tersor.evaluate(load_task(task), file, device=device, progress=progress)
        size = file_bytes(file)
        interval = ""
        if score.low is not None and score.high is not None:
            interval = f" (95 %: {format_number(score.low)} to {format_number(score.high)})"
        samples = f" on {score.samples:,} samples" if score.samples else ""
        if where:
            console.say(where)
        console.say(f"score {format_number(score.value)}{interval}{samples}, {format_bytes(size)}")
        emit(
            {
                "file": str(file),
                "size_bytes": size,
                "runtime": where or None,
                "score": {
                    "value": score.value,
                    "low": score.low,
                    "high": score.high,
                    "samples": score.samples,
                    "method": score.method,
                },
            }
        )


def _is_served(file: Path, runtime: str | None, device: str) -> bool:
    """Whether a file runs in a runtime; what does not go with that is told."""
    served = file.suffix in DEFAULTS
    if runtime == "litert" and file.suffix == ".onnx":
        raise click.BadParameter(
            "litert takes .tflite files: tersor export TASK FILE --format litert writes one",
            param_hint="'--runtime'",
        )
    if runtime is not None and not served:
        raise click.BadParameter(
            f"{str(file)!r} is none of {', '.join(DEFAULTS)}: export it first (tersor export)",
            param_hint="'--runtime'",
        )
    if served and device != "cpu":
        raise click.BadParameter(
            f"{str(file)!r} runs in a runtime, on the CPU: only .tersor files are scored elsewhere",
            param_hint="'--device'",
        )
    return served
