"""``tersor bench``: how fast exported files are beside each other, and why one is not faster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tersor.cli import console

if TYPE_CHECKING:
    from collections.abc import Callable

    from tersor.export.doctor import Finding
    from tersor.export.runtimes import Array, Session
    from tersor.report.latency import BenchRow

    Inputs = Callable[[Session, int | None], list[Array]]


@click.command()
@click.argument("files", metavar="[RUNTIME:]FILE...", nargs=-1, required=True)
@click.option(
    "--runtime", "runtimes", multiple=True, default=("onnxruntime",),
    help="onnxruntime or openvino, for .onnx files without a RUNTIME: of their own; more than one: each. "
    ".xml files run in openvino, .tflite files in litert.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--batch", "batches", type=click.IntRange(1), multiple=True, help="Batch size; more than one: each."
)
@click.option(
    "--precision", type=click.Choice(["f32", "default"]), default="f32", show_default=True,
    help="What floating nodes are computed in; by default OpenVINO takes bf16 where it can.",
)  # fmt: skip
@click.option(
    "--task", metavar="TASK", help="Take the inputs of this task (file.py:function), not random ones."
)
@click.option("--dim", "dims", metavar="NAME=SIZE", multiple=True, help="Size of another free axis.")
@click.option("--rounds", type=click.IntRange(6), default=30, show_default=True)
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True,
    help="cpu counts the time of all threads on the processor: steadier on a busy machine.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON on stdout.")
def bench(
    files: tuple[str, ...], runtimes: tuple[str, ...], batches: tuple[int, ...], task: str | None,
    dims: tuple[str, ...], as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Time exported files in turns, and say what slows them.

    Each is compared with the first: warmed up, in random order within each round, ratios with their 95 %
    interval. Then the doctor says what slows them: of quantized ones nodes that run in float and pairs that
    did not fuse, of all counts of channels that kernels pad.

    \b
    tersor bench float.onnx int8.onnx --batch 1 --batch 32
    tersor bench float.onnx int8.onnx openvino:int8.onnx --task my_task.py:task
    """
    with console.json_alone(as_json) as emit:
        sizes = _sizes(dims)
        named = [_split(file) for file in files]
        pairs = [(path, one) for path, own in named for one in _runtimes(path, own, runtimes)]
        inputs = _task_inputs(task) if task else _random_inputs(sizes)
        rows = _measure(pairs, batches or (None,), inputs, how)
        console.show(_table(rows, how["clock"], f"inputs of {task}" if task else "random inputs"))
        findings = _diagnoses(rows, sizes)
        emit(_data(rows, findings, how))


def _measure(
    pairs: Sequence[tuple[Path, str]],
    batches: Sequence[int | None],
    inputs: Inputs,
    how: dict[str, Any],
) -> list[BenchRow]:
    from tersor.errors import SpecError, in_context
    from tersor.export.runtimes import open_session
    from tersor.measure.latency import compare_latency
    from tersor.progress import inside
    from tersor.report.latency import BenchRow

    sessions = [
        open_session(path, runtime, threads=how["threads"], precision=how["precision"])
        for path, runtime in pairs
    ]
    clock = time.process_time if how["clock"] == "cpu" else time.perf_counter
    rows = []
    for batch in batches:
        calls, seen = {}, []
        for at, ((path, _), session) in enumerate(zip(pairs, sessions, strict=True)):
            with in_context(str(path)):
                arrays = inputs(session, batch)
                session.run(arrays)  # what does not fit is told before anything is timed
            calls[f"{path} ({at + 1})"] = _call(session, arrays)
            seen.append(next((len(one) for one in arrays if one.ndim), 1))
        if len(set(seen)) > 1:
            raise SpecError(f"the files run batches of {', '.join(map(str, seen))}: give --batch")
        with console.progress() as progress:
            told = inside(progress, f"batch {seen[0]}")
            found = compare_latency(calls, rounds=how["rounds"], clock=clock, progress=told)
        rows += [
            BenchRow(str(path), runtime, session.description, seen[0], path.stat().st_size, latency)
            for (path, runtime), session, latency in zip(pairs, sessions, found, strict=True)
        ]
    return rows


def _call(session: Session, arrays: list[Array]) -> Callable[[], object]:
    return lambda: session.call(arrays)


def _split(file: str) -> tuple[Path, str]:
    """``RUNTIME:FILE`` -> file and runtime; a colon in the name of a file that is there is part of it."""
    runtime, colon, name = file.partition(":")
    path, runtime = (Path(file), "") if not colon or Path(file).exists() else (Path(name), runtime)
    if path.suffix == ".tersor":
        raise click.BadParameter(
            f"{path}: runtimes take .onnx, .xml and .tflite files: tersor export writes them",
            param_hint="FILE",
        )
    return path, runtime


def _runtimes(path: Path, own: str, named: tuple[str, ...]) -> tuple[str, ...]:
    """Where a file runs: where it says, else where alone its ending does, else in each that was named."""
    from tersor.export.runtimes import OWN_ENDINGS

    given = own or OWN_ENDINGS.get(path.suffix, "")
    return (given,) if given else named


def _sizes(dims: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for dim in dims:
        name, _, size = dim.rpartition("=")
        if not name or not size.isdigit() or int(size) < 1:
            raise click.BadParameter(f"{dim!r} is not NAME=SIZE", param_hint="--dim")
        sizes[name] = int(size)
    return sizes


def _random_inputs(sizes: dict[str, int]) -> Inputs:
    from tersor.export.runtimes import example_arrays

    return lambda session, batch: example_arrays(session.inputs, batch=batch, sizes=sizes)


def _task_inputs(reference: str) -> Inputs:
    from tersor.cli.task_ref import load_task
    from tersor.pipeline.feeds import task_feeds

    return task_feeds(load_task(reference))


def _table(rows: list[BenchRow], clock: str, inputs: str) -> Any:
    from tersor.report.latency import latency_table

    time_of = "time of all threads on the processor" if clock == "cpu" else "wall time"
    rounds = rows[0].latency.rounds
    ratio = "ratio to the first file, median of the rounds"
    return latency_table(rows, notes=(f"{time_of}, {rounds} rounds in turns, {inputs}; {ratio}",))


def _diagnoses(rows: list[BenchRow], sizes: dict[str, int]) -> dict[str, tuple[Finding, ...]]:
    """What the doctor says of each file that ran in ONNX Runtime, at its smallest batch; shown too."""
    from tersor.export.doctor import diagnose
    from tersor.report.latency import findings_table

    batches: dict[str, int] = {}
    for row in rows:
        if row.runtime == "onnxruntime":
            batches[row.file] = min(row.batch, batches.get(row.file, row.batch))
    found = {file: diagnose(file, batch=batch, sizes=sizes) for file, batch in batches.items()}
    console.show(*(findings_table(file, findings) for file, findings in found.items() if findings))
    if well := [file for file, findings in found.items() if not findings]:
        console.say(f"the doctor finds nothing that slows {', '.join(well)}")
    return found


def _data(
    rows: list[BenchRow], findings: dict[str, tuple[Finding, ...]], how: dict[str, Any]
) -> dict[str, Any]:
    figures = []
    for row in rows:
        figure = asdict(row)
        latency = figure.pop("latency")
        figures.append(figure | {key: value for key, value in latency.items() if key != "name"})
    told = {file: [asdict(one) | {"advice": one.advice} for one in found] for file, found in findings.items()}
    return {**how, "rows": figures, "findings": told}
