import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_demo_gives_a_small_file_that_is_about_as_good(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "digits.py", tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert "model.tersor" in done.stdout
    import json

    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["ratio"] > 25
    assert result["comparison"]["drop"] <= 0.02
    assert (tmp_path / "out" / "model.tersor").stat().st_size == result["size_bytes"]
