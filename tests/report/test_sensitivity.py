from tersor.report import as_lines
from tersor.report.sensitivity import sensitivity_tables
from tersor.result import Score, SensitivityRecord, SensitivityRow

ROWS = (
    SensitivityRow("dull", "bits 2", 10, 0.5, 0.001, 0.0),
    SensitivityRow("dull", "bits 3", 12, 0.4, 0.0001, 0.0),
    SensitivityRow("sharp \x1b", "bits 2", 10, 0.1, 0.25, 0.1),
    SensitivityRow("sharp \x1b", "bits 3", 12, 0.05, 0.125, 0.05),
    SensitivityRow("model (input)", "activation-bits 2", None, 0.3, 0.2, 0.0),
)


def test_the_most_sensitive_comes_first():
    record = SensitivityRecord(ROWS, {"all": 0.5, "bits": None}, Score(0.9, 0.8, 1.0, 50, "wilson"))
    bits, points, ranks = map(as_lines, sensitivity_tables(record))
    assert bits[0] == "measured change of the outputs: bits" and bits[1].split() == ["tensor", "2", "3"]
    assert bits[2].split() == ["sharp", r"\x1b", "0.2500", "0.1250"] and bits[3].split()[0] == "dull"
    assert points[1].split() == ["activation", "2"]
    assert ranks[2].split() == ["all", "0.5000"] and ranks[3].split() == ["bits", "-"]
    assert "score 0.9000 on 50 samples" in ranks[-1]


def test_estimates_are_called_so():
    rows = tuple(SensitivityRow(one.name, one.candidate, one.size_bytes, one.estimated) for one in ROWS)
    record = SensitivityRecord(rows, {"all": None}, None, {"norms": "no graph"})
    bits, points = map(as_lines, sensitivity_tables(record))
    assert bits[0].startswith("estimated") and bits[2].split()[0] == "dull"
    assert points[-2:] == ["  nothing was measured: these are estimates", "  norms: no graph"]
