from dataclasses import replace
from pathlib import Path

from tersor.report import comparison_table, tensors_table
from tersor.result import ComparedFile, Comparison, FileComparison, Score, StoredTensor

BOOK = StoredTensor("codebook", (8, 4), "float32", 16, 4, 0.25, 60)
GRID = StoredTensor("affine", (6, 4), "float32", 255, 8, 0.0, 40)
RAW = StoredTensor("raw", (4,), "float32", 0, 32, 0.0, 20)
SCORE = Score(0.9, 0.85, 0.94, 200, "wilson")
DROP = Comparison(0.02, 0.01, 0.031, 0.0004, "mcnemar", 0.015)
FIRST = ComparedFile(
    Path("a\x1b.tersor"), None, 100, SCORE, None, None, "reference", {"w": BOOK, "b": RAW}, 20
)
SECOND = ComparedFile(Path("b.tersor"), None, 50, SCORE, DROP, 0.0008, "worse", {"w": GRID}, 10)
THIRD = ComparedFile(
    Path("c.onnx"), "onnxruntime 1.31, 1 thread, floats as in the file", 80, SCORE,
    replace(DROP, drop=0.0, p_value=1.0), 1.0, "no difference seen", {}, 80,
)  # fmt: skip
COMPARED = FileComparison("toy", "test", 400, (FIRST, SECOND, THIRD))


def test_a_row_holds_what_was_measured():
    table = comparison_table(COMPARED)
    assert table.title == "toy, on the test data"
    assert table.rows[0] == (
        "A", "a\\x1b.tersor", "100 B", "4.0x", "0.9000", "0.8500 to 0.9400", "-", "-", "-", "reference",
    )  # fmt: skip
    assert table.rows[1][6:] == ("0.0200", "0.0100 to 0.0310", "< 0.001", "worse")
    assert table.rows[2][8:] == ("1.0000", "no difference seen")


def test_notes_say_from_what_the_drop_is_and_what_was_corrected():
    notes = comparison_table(COMPARED).notes
    assert notes[0].startswith("drop: how much worse than a\\x1b.tersor (A) on 200 samples")
    assert notes[1] == "p: by paired tests (mcnemar), corrected for 2 comparisons (Holm); intervals are not"
    assert "below 0.0150 cannot be told" in notes[2] and notes[3] == f"C ran in {THIRD.runtime}"
    two = comparison_table(replace(COMPARED, files=(FIRST, SECOND))).notes
    assert two[1] == "p: by paired tests (mcnemar)"


def test_what_was_not_tested_says_why():
    none = Comparison(0.1, None, None, None, "none", None, "a metric of the whole has no test")
    untested = replace(SECOND, comparison=none, p_value=None, verdict="not tested")
    score = replace(SCORE, low=None, high=None, samples=0)
    table = comparison_table(replace(COMPARED, files=(replace(FIRST, score=score, path=None), untested)))
    assert table.rows[1][7:] == ("-", "-", "not tested") and table.rows[0][1] == "(the trained model)"
    assert table.notes == (
        "drop: how much worse than the trained model (A), in the score's own unit", none.note,
    )  # fmt: skip


def test_tensors_stand_side_by_side_and_add_up():
    table = tensors_table(COMPARED)
    assert table.columns[2:] == ("A form", "A zeros", "A bytes", "B form", "B zeros", "B bytes")
    assert table.rows == (
        ("w", "8x4", "codebook, 16 values", "25.0 %", "60", "affine, 8 bits, 6x4", "-", "40"),
        ("b", "4", "raw float32", "-", "20", "-", "-", "-"),
        ("(rest of the file)", "", "", "", "20", "", "", "10"),
    )
    assert table.total == ("file", "", "", "", "100", "", "", "50")
    assert table.notes == ("tensors are read from .tersor files, not from C",)
    assert tensors_table(replace(COMPARED, files=(THIRD,))) is None
