import json

import numpy as np
import pytest
from benchmarks.pack import ROWS, SLOW, main, measure
from safetensors.numpy import save_file


@pytest.fixture
def checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((200, 150)).astype(np.float32), "b": np.ones(7, np.float32)}
    save_file(arrays, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("name", [name for name in ROWS if name not in SLOW])
def test_a_row_is_measured(checkpoint, name):
    row = measure(name, checkpoint, 1)
    assert row["ratio"] == pytest.approx(checkpoint.stat().st_size / row["size_bytes"])
    assert row["pack_mb_per_s"] > 0
    assert row["unpack_mb_per_s"] > 0
    if "4 bits" in name:
        assert row["ratio"] > 6
        assert 0 < row["worst_relative_error"] < 0.2
    if "max error" in name:
        assert row["max_error"] <= 0.01


def test_one_row_is_printed_as_json(checkpoint, capsys):
    main(["--only", "numpy savez", "--checkpoint", str(checkpoint), "--repeats", "1"])
    assert json.loads(capsys.readouterr().out)["method"] == "numpy savez"
