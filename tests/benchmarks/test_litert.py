"""The benchmark of ``.tflite`` files, on a net of a few weights, and its section of the page."""

import benchmarks.figures as figures
import benchmarks.litert as bench
import pytest
from tests import nets

from tersor.spec import Cluster, Code, Quantize, Recipe


def test_a_clustered_file_compresses_further_and_is_shown(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    task = nets.small_task()
    monkeypatch.setattr(bench, "RUNS", tmp_path)
    monkeypatch.setattr(bench, "ROUNDS", 6)
    monkeypatch.setattr(bench, "task_of", lambda net, seed: task)
    end = (Quantize(), Code())
    recipes = {"int8": Recipe(steps=end), "4 values": Recipe(steps=(Cluster(bits=2), *end))}
    monkeypatch.setattr(bench, "RECIPES", recipes)
    rows = bench.rows_of("small", 0, tuple(recipes))
    whole, int8, shared = (row for row in rows if row["figure"] == "file")
    assert whole["tflite_bytes"] > int8["tflite_bytes"]
    assert int8["gzip_bytes"] > shared["gzip_bytes"] and int8["zstd_bytes"] > shared["zstd_bytes"]
    assert whole["error_percent"] == whole["baseline_error_percent"] and whole["drop_points"] == 0
    assert all(row["agreement_steps"] <= 1 for row in (whole, int8, shared))
    timed = [row for row in rows if row["figure"] == "latency"]
    assert [(row["batch_size"], row["method"]) for row in timed] == [
        (size, method) for size in bench.BATCH_SIZES for method in ("float", "int8", "4 values")
    ]
    page = "\n".join(figures.litert({"rows": rows}))
    assert f"| small | 0 | 4 values | {shared['tflite_bytes']} | {shared['gzip_bytes']} |" in page
    assert page.count("| small | 32 |") == 3
