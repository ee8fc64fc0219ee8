import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_demo_gives_a_small_file_that_is_about_as_good(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "digits.py", tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert "model.tersor" in done.stdout
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["ratio"] > 25
    assert result["comparison"]["drop"] <= 0.02
    assert (tmp_path / "out" / "model.tersor").stat().st_size == result["size_bytes"]


def test_the_comparison_measures_every_way_to_few_bits(tmp_path):
    command = [sys.executable, EXAMPLES / "quantization.py", tmp_path, "--bits", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grids = [f"2-bits-{grid}" for grid in ("symmetric", "asymmetric")]
    results = {
        (grid, way): json.loads((tmp_path / f"{grid}-{way}" / "result.json").read_text())
        for grid in grids
        for way in ("calibrated", "trained")
    }
    for grid in grids:
        calibrated, trained = (results[grid, way]["artifact"]["value"] for way in ("calibrated", "trained"))
        assert trained > max(calibrated, 0.97)
    rows = [line for line in done.stdout.splitlines() if line.startswith(("  float", "  2 bits"))]
    assert len(rows) == 5
