"""Results as tables of words: rows and columns, not yet drawn (see :mod:`tersor.report.render`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tersor.report.figures import (
    format_bytes,
    format_number,
    format_p_value,
    format_shape,
    format_share,
    printable,
)
from tersor.report.model import ModelLayer
from tersor.result import OF_ALL, TEACHER, Comparison, LayerRecord, Ledger, PlannedTime, Score, StageRecord

Row = tuple[str, ...]

NAMED = 5  # tensors that a warning names


@dataclass(frozen=True)
class Table:
    """Words in rows and columns; ``total`` is drawn apart, ``notes`` go below.

    left -- how many of the first columns are text; the others hold numbers.
    """

    title: str
    columns: Row
    rows: tuple[Row, ...]
    left: int = 1
    total: Row | None = None
    notes: tuple[str, ...] = ()


class PlannedRow(Protocol):
    """What a recipe would do to one tensor in one step."""

    @property
    def step(self) -> str:
        """Name of the step."""
        ...

    @property
    def tensor(self) -> str:
        """Name of the tensor."""
        ...

    @property
    def action(self) -> str:
        """``apply`` or ``skip``."""
        ...

    @property
    def detail(self) -> str:
        """With what, or why not."""
        ...

    @property
    def predicted_bytes(self) -> int | None:
        """An estimate of the tensor's bytes in the file, where there is one."""
        ...


def score_table(
    baseline: Score, artifact: Score, comparison: Comparison, dense_bytes: int, file_bytes: int,
    *, name: str = "baseline",
) -> Table:  # fmt: skip
    """The two lines that matter: what the model was, and what the file that was read back is."""
    rows = (
        (printable(name), *_score_words(baseline), format_bytes(dense_bytes), "1.0x"),
        ("artifact", *_score_words(artifact), format_bytes(file_bytes), _ratio(dense_bytes, file_bytes)),
    )
    columns = ("", "score", "95 % interval", "samples", "bytes", "ratio")
    return Table("measured on the file, read back", columns, rows, notes=_comparison_words(comparison))


def stage_table(stages: Sequence[StageRecord], dense_bytes: int) -> Table:
    """What each step of the recipe brought; notes say what it did to all tensors together, where it does."""
    rows = tuple(
        (
            stage.step,
            stage.kind,
            _touched_words(stage),
            format_bytes(stage.size_bytes),
            _ratio(dense_bytes, stage.size_bytes),
            format_number(stage.validation),
            f"{stage.seconds:.1f}",
        )
        for stage in stages
    )
    columns = ("step", "kind", "touched", "bytes", "ratio", "validation", "seconds")
    of_all = tuple(
        printable(f"{stage.step}: {one.detail}")
        for stage in stages
        for one in stage.touched
        if one.name == OF_ALL
    )
    return Table("after each step", columns, rows, left=3, notes=of_all + _teacher_words(stages))


def _touched_words(stage: StageRecord) -> str:
    tensors = [one for one in stage.touched if one.name != OF_ALL and not one.name.startswith(TEACHER)]
    return f"{sum(one.applied for one in tensors)} of {len(tensors)}" if tensors else ""


def _teacher_words(stages: Sequence[StageRecord]) -> tuple[str, ...]:
    """Who taught which steps, and which were not taught and why; what is the same is said once."""
    steps: dict[str, list[str]] = {}
    for stage in stages:
        for one in stage.touched:
            if one.name.startswith(TEACHER):
                path = one.name.removeprefix(TEACHER)
                words = f"taught:{path} {one.detail}" if one.applied else f"not taught: {one.detail}"
                steps.setdefault(words, []).append(stage.step)
    return tuple(printable(f"{', '.join(names)} {words}") for words, names in steps.items())


def layer_table(
    layers: Sequence[LayerRecord],
    ledger: Ledger,
    aliases: Mapping[str, str] | None = None,
    non_finite: Mapping[str, int] | None = None,
) -> Table:
    """What was done to each tensor and what it costs; the last line is the whole file.

    Notes name the tensors that ``aliases`` (alias -> name) ties, and those with NaN or Inf in them.
    """
    rows = [
        (
            printable(layer.name),
            format_shape(layer.shape),
            ", ".join(layer.steps) or "-",
            format_share(layer.sparsity),
            f"{layer.levels:,}" if layer.levels else "-",
            f"{layer.dense_bytes:,}",
            f"{layer.size_bytes:,}",
            f"{layer.bits_per_weight:.2f}",
            _ratio(layer.dense_bytes, layer.size_bytes),
        )
        for layer in layers
    ]
    dense = sum(layer.dense_bytes for layer in layers)
    if rest := ledger.file_bytes - sum(layer.size_bytes for layer in layers):
        rows.append(("(rest of the file)", "", "", "", "", "", f"{rest:,}", "", ""))
    total = (
        "file",
        "",
        "",
        "",
        "",
        f"{dense:,}",
        f"{ledger.file_bytes:,}",
        "",
        _ratio(dense, ledger.file_bytes),
    )
    columns = ("tensor", "shape", "steps", "zeros", "values", "dense bytes", "bytes", "bits/weight", "ratio")
    notes = (*_tied_words(aliases or {}), *non_finite_words(non_finite or {}))
    return Table("tensors", columns, tuple(rows), left=3, total=total, notes=notes)


def ledger_table(ledger: Ledger, aliases: Mapping[str, str] | None = None) -> Table:
    """Every byte of a file, by tensor and by part; the parts that no row has are left out."""
    parts = list(dict.fromkeys(part for row in ledger.rows for part, size in row.parts.items() if size))
    rows = tuple(
        (
            printable(row.name),
            format_shape(row.shape) if row.dtype else "",  # what is no tensor has neither
            row.dtype,
            row.form,
            row.method,
            f"{row.levels:,}" if row.levels else "-",
            *(f"{row.parts.get(part, 0):,}" if row.parts.get(part) else "-" for part in parts),
            f"{row.size_bytes:,}",
        )
        for row in ledger.rows
    )
    sums = [sum(row.parts.get(part, 0) for row in ledger.rows) for part in parts]
    total = ("file", "", "", "", "", "", *(f"{size:,}" for size in sums), f"{sum(sums):,}")
    named = ("raw values" if part == "values" else part for part in parts)
    columns = ("tensor", "shape", "dtype", "form", "method", "values", *named, "bytes")
    notes = (*_tied_words(aliases or {}), f"{format_bytes(ledger.file_bytes)} on disk")
    return Table("byte ledger", columns, rows, left=5, total=total, notes=notes)


def plan_table(
    rows: Sequence[PlannedRow],
    predicted_bytes: int,
    dense_bytes: int,
    non_finite: Mapping[str, int] | None = None,
) -> Table:
    """What each rule would touch, what it would skip and why; the bytes are an estimate."""
    words = tuple(
        (
            row.step,
            printable(row.tensor),
            row.action,
            printable(row.detail),
            "-" if row.predicted_bytes is None else f"{row.predicted_bytes:,}",
        )
        for row in rows
    )
    note = (
        f"estimate, nothing was trained or written: {format_bytes(predicted_bytes)} of "
        f"{format_bytes(dense_bytes)}, {_ratio(dense_bytes, predicted_bytes)}"
    )
    columns = ("step", "tensor", "action", "detail", "predicted bytes")
    return Table("plan", columns, words, left=4, notes=(note, *non_finite_words(non_finite or {})))


def time_table(times: Sequence[PlannedTime], seconds: float | None) -> Table:
    """How long each step of a plan would take, and what that was taken from."""
    rows = tuple((one.part, printable(one.basis), _seconds_words(one.seconds)) for one in times)
    total = ("all", "", _seconds_words(seconds))
    note = "estimate, on this machine and as busy as it is now"
    columns = ("step", "taken from", "predicted seconds")
    return Table("time", columns, rows, left=2, total=total, notes=(note,))


def model_table(layers: Sequence[ModelLayer]) -> Table:
    """The layers of a model with what they hold."""
    rows = tuple(
        (
            printable(layer.name),
            layer.kind,
            ", ".join(f"{printable(name)} {format_shape(shape)}" for name, shape in layer.shapes),
            f"{layer.parameters:,}",
            f"{layer.size_bytes:,}",
        )
        for layer in layers
    )
    tied = tuple(
        printable(f"{layer.name}.{name} is tied to {other}") for layer in layers for name, other in layer.tied
    )
    parameters, size = sum(layer.parameters for layer in layers), sum(layer.size_bytes for layer in layers)
    total = ("model", "", "", f"{parameters:,}", f"{size:,}")
    columns = ("layer", "kind", "tensors", "parameters", "bytes")
    return Table("layers", columns, rows, left=3, total=total, notes=tied)


def non_finite_words(counts: Mapping[str, int]) -> tuple[str, ...]:
    """A warning for the NaN and Inf that are kept as they are, if there are any.

    >>> non_finite_words({"norm.bias": 3})
    ('warning: NaN or Inf, kept as they are: 3 in norm.bias',)
    """
    if not counts:
        return ()
    named = [f"{count:,} in {printable(name)}" for name, count in counts.items()]
    more = f" and in {len(named) - NAMED} more tensors" if len(named) > NAMED else ""
    return (f"warning: NaN or Inf, kept as they are: {', '.join(named[:NAMED])}{more}",)


def _tied_words(aliases: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(printable(f"{alias} is tied to {name}") for alias, name in aliases.items())


def _score_words(score: Score) -> Row:
    interval = "-"
    if score.low is not None and score.high is not None:
        interval = f"{format_number(score.low)} to {format_number(score.high)}"
    return format_number(score.value), interval, f"{score.samples:,}" if score.samples else "-"


def _comparison_words(comparison: Comparison) -> tuple[str, ...]:
    better = comparison.drop < 0
    words = f"the artifact is {'better' if better else 'worse'} by {format_number(abs(comparison.drop))}"
    if comparison.drop == 0:
        words = "the artifact scores the same"
    if comparison.low is not None and comparison.high is not None:
        low, high = (0 - comparison.high, 0 - comparison.low) if better else (comparison.low, comparison.high)
        what = "gain" if better else "drop"
        words += f"; 95 % interval of the {what} {format_number(low)} to {format_number(high)}"
    if comparison.p_value is not None:
        words += f"; {comparison.test}, p {format_p_value(comparison.p_value)}"
    notes = [words]
    if comparison.resolution is not None:
        notes.append(f"a drop below {format_number(comparison.resolution)} cannot be told from none here")
    if comparison.note:
        notes.append(comparison.note)
    return tuple(notes)


def _seconds_words(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds:,.1f}" if seconds < 1000 else f"{seconds:,.0f} ({seconds / 3600:.1f} h)"


def _ratio(dense: int, size: int) -> str:
    return f"{dense / size:.1f}x" if size else "-"
