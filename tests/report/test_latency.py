from dataclasses import replace

from tersor.export.doctor import Finding
from tersor.measure.latency import Latency
from tersor.report import as_lines
from tersor.report.latency import BenchRow, findings_table, latency_table

ROW = BenchRow(
    "int8\x1b.onnx", "openvino", "openvino 2026.4, 1 thread, floats f32", 32, 444701,
    Latency("b", 0.85953, 0.84954, 12.345, 0.5484, 0.5391, 0.5544, 30, 12),
)  # fmt: skip


def test_a_row_holds_what_was_measured():
    table = latency_table([ROW, ROW], notes=("wall time",))
    assert table.rows[0] == (
        "int8\\x1b.onnx", "openvino", "32", "0.8595", "0.8495 to 12.35", "0.548", "0.539 to 0.554",
        "444,701 B (445 kB)",
    )  # fmt: skip
    assert table.notes == (ROW.session, "wall time")  # each runtime once


def test_a_difference_that_cannot_be_told_is_called_so():
    alike = replace(ROW.latency, ratio_low=0.98, ratio_high=1.01)
    first = replace(ROW, file="a.onnx", latency=replace(alike, ratio=1, ratio_low=1, ratio_high=1))
    rows = [replace(one, batch=batch) for batch in (1, 32) for one in (first, ROW)]
    rows[1] = replace(rows[1], file="b.onnx", latency=alike)
    notes = latency_table(rows).notes[1:]
    assert len(notes) == 1
    assert notes[0].startswith("no difference can be told between a.onnx and b.onnx in openvino at batch 1:")


def test_findings_are_gathered_by_kind():
    found = [Finding("channels", f"conv{at}", f"makes {at} channels") for at in (9, 10, 10, 11, 13)]
    table = findings_table("a.onnx", [*found, Finding("small", "", "10 multiply-adds")])
    assert table.rows == (
        ("channels", "conv9, conv10, conv11 and 1 more", "makes 9 channels, ..."),
        ("small", "(the whole model)", "10 multiply-adds"),
    )
    assert table.notes == (f"channels: {found[0].advice}", f"small: {Finding('small', '', '').advice}")
    assert "what slows a.onnx in ONNX Runtime" in as_lines(table)[0]
