"""Measured numbers as tables for people."""

from tersor.report.comparison import comparison_table, tensors_table
from tersor.report.figures import format_bytes, format_number, format_shape, format_share, printable
from tersor.report.model import ModelLayer, model_layers
from tersor.report.render import as_lines, as_rich
from tersor.report.search import trial_table
from tersor.report.tables import (
    Table,
    layer_table,
    ledger_table,
    model_table,
    non_finite_words,
    plan_table,
    score_table,
    stage_table,
    time_table,
)

__all__ = [
    "ModelLayer",
    "Table",
    "as_lines",
    "as_rich",
    "comparison_table",
    "format_bytes",
    "format_number",
    "format_shape",
    "format_share",
    "layer_table",
    "ledger_table",
    "model_layers",
    "model_table",
    "non_finite_words",
    "plan_table",
    "printable",
    "score_table",
    "stage_table",
    "tensors_table",
    "time_table",
    "trial_table",
]
