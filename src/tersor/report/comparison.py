"""Files of one model side by side."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.report.figures import (
    format_bytes,
    format_number,
    format_p_value,
    format_shape,
    format_share,
    printable,
)
from tersor.report.tables import Row, Table
from tersor.result import ComparedFile, Comparison, FileComparison, Score, StoredTensor

TRAINED = "(the trained model)"
_MISSING = ("-", "-", "-")


def comparison_table(compared: FileComparison) -> Table:
    """One line a file: bytes, score, and whether it differs from that of the first, the reference."""
    rows = tuple(
        (
            letter(at),
            printable(str(one.path)) if one.path else TRAINED,
            format_bytes(one.size_bytes),
            f"{compared.dense_bytes / one.size_bytes:.1f}x",
            *_score_words(one.score),
            *_drop_words(one.comparison),
            "-" if one.p_value is None else format_p_value(one.p_value).removeprefix("= "),
            one.verdict,
        )
        for at, one in enumerate(compared.files)
    )
    columns = (
        "",
        "file",
        "bytes",
        "ratio",
        "score",
        "95 % interval",
        "drop",
        "95 % of the drop",
        "p",
        "verdict",
    )
    title = f"{printable(compared.task)}, on the {compared.data} data"
    return Table(title, columns, rows, left=2, notes=_notes(compared.files))


def tensors_table(compared: FileComparison) -> Table | None:
    """How each file holds each tensor, under the letters of the other table; None where no file tells.

    Shapes are those of the first file that has the tensor; another one stands in its own form.
    """
    told = [(letter(at), one) for at, one in enumerate(compared.files) if one.tensors]
    if not told:
        return None
    names = list(dict.fromkeys(name for _, one in told for name in one.tensors))
    rows = [(printable(name), format_shape(_shape(told, name)), *_cells(told, name)) for name in names]
    rest = [cell for _, one in told for cell in ("", "", f"{one.rest_bytes:,}")]
    total = [cell for _, one in told for cell in ("", "", f"{one.size_bytes:,}")]
    columns = [f"{at} {what}" for at, _ in told for what in ("form", "zeros", "bytes")]
    silent = [letter(at) for at, one in enumerate(compared.files) if one.path and not one.tensors]
    notes = (f"tensors are read from .tersor files, not from {', '.join(silent)}",) if silent else ()
    return Table(
        "tensors", ("tensor", "shape", *columns), (*rows, ("(rest of the file)", "", *rest)), left=2,
        total=("file", "", *total), notes=notes,
    )  # fmt: skip


def letter(at: int) -> str:
    """What a file is called in a table: A, B, and so on.

    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', '27')
    """
    return chr(ord("A") + at) if at < 26 else str(at + 1)


def _shape(told: Sequence[tuple[str, ComparedFile]], name: str) -> tuple[int, ...]:
    return next(one.tensors[name].shape for _, one in told if name in one.tensors)


def _cells(told: Sequence[tuple[str, ComparedFile]], name: str) -> list[str]:
    shape = _shape(told, name)
    cells: list[str] = []
    for _, one in told:
        held = one.tensors.get(name)
        cells += _MISSING if held is None else _held_words(held, shape)
    return cells


def _held_words(held: StoredTensor, shape: tuple[int, ...]) -> Row:
    words = f"{held.form} {held.dtype}"
    if held.levels:
        number = f"{held.levels:,} values" if held.form == "codebook" else f"{held.bits} bits"
        words = f"{held.form}, {number}"
    if held.shape != shape:
        words += f", {format_shape(held.shape)}"
    return words, format_share(held.sparsity), f"{held.size_bytes:,}"


def _score_words(score: Score) -> Row:
    return format_number(score.value), _interval(score.low, score.high)


def _drop_words(comparison: Comparison | None) -> Row:
    if comparison is None:
        return "-", "-"
    return format_number(comparison.drop), _interval(comparison.low, comparison.high)


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    return f"{format_number(low)} to {format_number(high)}"


def _notes(files: Sequence[ComparedFile]) -> tuple[str, ...]:
    """What the drop is from, by which tests, and what they cannot tell."""
    first, *others = files
    reference = "the trained model" if first.path is None else printable(str(first.path))
    samples = f" on {first.score.samples:,} samples" if first.score.samples else ""
    notes = [f"drop: how much worse than {reference} (A){samples}, in the score's own unit"]
    tested = [one for one in others if one.p_value is not None and one.comparison is not None]
    if tested:
        tests = " and ".join(dict.fromkeys(one.comparison.test for one in tested if one.comparison))
        several = (
            f", corrected for {len(tested)} comparisons (Holm); intervals are not" if len(tested) > 1 else ""
        )
        notes.append(f"p: by paired tests ({tests}){several}")
        seen = max(one.comparison.resolution or 0.0 for one in tested if one.comparison)
        notes.append(f"a drop below {format_number(seen)} cannot be told from none here")
    notes += dict.fromkeys(one.comparison.note for one in others if one.comparison and one.comparison.note)
    for at, one in enumerate(files):
        if one.runtime:
            notes.append(f"{letter(at)} ran in {one.runtime}")
    return tuple(notes)
