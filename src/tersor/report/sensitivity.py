"""How sensitive each tensor and each activation is: a line each, a column a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tersor.report.figures import format_number, printable
from tersor.report.tables import Table
from tersor.result import SensitivityRecord, SensitivityRow

ACTIVATIONS = "activation-bits"


def sensitivity_tables(found: SensitivityRecord) -> list[Table]:
    """A table a family, the most sensitive first; below the last one, the correlation of ranks.

    A cell is the measured change of the outputs, or the estimated one where nothing was measured.
    """
    families: dict[str, list[SensitivityRow]] = {}
    for row in found.rows:
        families.setdefault(row.family, []).append(row)
    tables = [_family(family, rows, found) for family, rows in families.items()]
    missing = tuple(printable(f"{what}: {why}") for what, why in found.missing.items())
    if found.baseline is None:
        notes = ("nothing was measured: these are estimates", *missing)
        return [*tables[:-1], *(replace(one, notes=notes) for one in tables[-1:])]
    score = f"score {format_number(found.baseline.value)}"
    samples = f" on {found.baseline.samples:,} samples" if found.baseline.samples else ""
    told = f"changes are means over the data measured on: {score}{samples} with nothing changed"
    rows = tuple((name, format_number(value)) for name, value in found.correlations.items())
    title = "rank correlation (Spearman) of estimated and measured change"
    return [*tables, Table(title, ("candidates", "correlation"), rows, notes=(told, *missing))]


def _family(family: str, rows: Sequence[SensitivityRow], found: SensitivityRecord) -> Table:
    columns = list(dict.fromkeys(row.candidate for row in rows))
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        cells.setdefault(row.name, {})[row.candidate] = row.estimated if row.change is None else row.change
    places = dict.fromkeys(cells, 0.0)
    for column in columns:
        for place, name in enumerate(sorted(cells, key=lambda name: -cells[name][column])):
            places[name] += place
    order = sorted(cells, key=lambda name: places[name])
    words = tuple(
        (printable(name), *(format_number(_short(cells[name][column])) for column in columns))
        for name in order
    )
    kind = "measured" if found.baseline is not None else "estimated"
    what = "activation" if family == ACTIVATIONS else "tensor"
    heads = [column.removeprefix(f"{family} ") for column in columns]
    return Table(f"{kind} change of the outputs: {family}", (what, *heads), words)


def _short(value: float) -> float:
    """Three significant digits: there are many columns."""
    return float(f"{value:.3g}")
