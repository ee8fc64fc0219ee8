"""Who lost the score and who saved the bytes, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from tersor.report.figures import format_bytes, format_number, printable
from tersor.report.tables import Table
from tersor.result import BlameRecord, StepBlame


def blame_tables(found: BlameRecord) -> tuple[Table, ...]:
    """One table of the steps, one of the tensors (the worst first), one of the rules to paste."""
    return _step_table(found.steps), _tensor_table(found), _rule_table(found)


def _step_table(steps: Sequence[StepBlame]) -> Table:
    rows = tuple(
        (
            printable(one.step),
            one.kind,
            "yes" if one.trains else "",
            _signed(one.lost),
            format_number(one.score_after),
            f"{one.bytes_before - one.bytes_after:,}",
            format_bytes(one.bytes_after),
        )
        for one in steps
    )
    columns = ("step", "kind", "trains", "lost", "score after", "bytes saved", "bytes after")
    return Table("step by step, on all validation data", columns, rows, left=3)


def _tensor_table(found: BlameRecord) -> Table:
    rows = tuple(
        (
            printable(one.name),
            printable(one.step),
            _signed(one.lost),
            "-" if one.low is None or one.high is None else f"{_signed(one.low)} to {_signed(one.high)}",
            _signed(one.regained),
            f"{one.saved_bytes:,}",
            f"{one.size_bytes:,}",
        )
        for one in found.tensors
    )
    columns = ("tensor", "step", "lost", "95 % interval", "outputs regained", "bytes saved", "bytes")
    return Table("tensor by tensor, the worst first", columns, rows, left=2, notes=_notes(found))


def _rule_table(found: BlameRecord) -> Table:
    rows = tuple(
        tuple(printable(part) or "-" for part in (one.step, one.skip, one.relax))
        for one in found.tensors
        if one.skip or one.relax
    )
    notes = ("they go to the end of `rules:` of the step",)
    return Table(
        "rules to paste", ("step", "leave it alone", "be careful with it"), rows, left=3, notes=notes
    )


def _notes(found: BlameRecord) -> tuple[str, ...]:
    notes = []
    if found.missing:
        notes.append(f"losses cannot be told: {found.missing}")
    else:
        notes.append(
            f"lost: what the score of {format_number(found.score)} on {found.samples:,} validation samples "
            f"gains with this tensor alone put back to what it was, {found.put_back}"
        )
    if found.change is not None and not found.missing:
        notes.append(f"outputs regained: of their change from the trained model's, {_short(found.change)}")
    if found.trained_since:
        names = ", ".join(found.trained_since)
        notes.append(f"trained since ({names}): the other tensors have learned to go with it, so a rule may "
                     "bring another score")  # fmt: skip
    reasons: dict[str, int] = {}
    for one in found.tensors:
        if one.why and one.why != found.missing:
            reasons[one.why] = reasons.get(one.why, 0) + 1
    notes += [f"{count} tensor{'s' if count > 1 else ''}: {why}" for why, count in reasons.items()]
    return tuple(map(printable, notes))


def _signed(value: float | None) -> str:
    """Losses with their sign, short where they are small."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:+.4f}" if abs(value) >= 1e-3 else f"{value:+.1e}"


def _short(value: float) -> str:
    return f"{value:.3g}"
