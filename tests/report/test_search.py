"""The table of what a search tried."""

from tersor.report.search import trial_table
from tersor.result import SearchRecord, TrialRecord


def table(budget, *trials):
    return trial_table(SearchRecord(budget, 1.0, 0.0, 400, "", (), trials))


def test_the_smallest_comes_first_and_many_steps_are_told_by_their_last():
    long = " > ".join(f"prune-{at}" for at in range(20))
    found = table(
        {"target_size": 1},
        TrialRecord(long, 2000, 0.1, 0.1, 0.1, True, False, 1.0),
        TrialRecord("share", 1000, 0.2, 0.2, 0.2, False, True, 1.0),
    )
    assert found.rows[0][-1] == "share" and "latency" not in found.columns
    assert found.rows[1][-1].startswith("... prune-") and found.rows[1][-1].endswith("> prune-19")
    assert len(found.rows[1][-1]) < 70 and "allowed: 1 (bytes)" in found.notes[0]


def test_the_fastest_comes_first_and_what_does_not_run_last():
    found = table(
        {"max_drop": 1.0},
        TrialRecord("integer", 10, 0.1, 0.1, 0.1, False, False, 1.0),
        TrialRecord("integer without a", 30, 0.1, 0.1, 0.1, True, False, 1.0, 0.8),
        TrialRecord("code", 40, 0.0, 0.0, 0.0, True, True, 1.0, 1.0),
    )
    at = found.columns.index("latency")
    assert [row[at] for row in found.rows] == ["0.800", "1.000", "does not run"]
    assert "allowed: 1 (drop)" in found.notes[0]
