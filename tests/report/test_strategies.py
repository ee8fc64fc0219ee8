from tersor.measure.latency import Latency
from tersor.measure.strategy import Strategy
from tersor.report import as_lines
from tersor.report.strategies import strategy_table
from tersor.result import Comparison, Score


def test_what_is_missing_stands_below_with_its_reason():
    score = Score(0.9, 0.8, 0.95, 100, "wilson")
    comparison = Comparison(0.01, -0.01, 0.03, 0.25, "mcnemar", 0.05)
    latency = Latency("FP32", 2.0, 1.9, 2.1, 1.0, 1.0, 1.0, 6, 1)
    found = [
        Strategy("FP32", None, 1000, score, comparison, None, None, 900, latency, {"footprint": "no graph"}),
        Strategy("all-8", missing={"score": "no \x1b data", "latency": "no \x1b data"}),
    ]
    lines = as_lines(strategy_table(found, notes=("the end",)))
    assert "0.9000" in lines[2] and "0.2500" in lines[2] and "1.0x" in lines[2] and "see below" in lines[2]
    assert lines[3].split()[:3] == ["all-8", "see", "below"]
    assert lines[4:] == ["  FP32, memory: no graph", r"  all-8, score, latency: no \x1b data", "  the end"]
