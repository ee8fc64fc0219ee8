from __future__ import annotations

import numpy as np
import pytest

from benchmarks import clustering


def test_a_cell_reports_every_method_run_or_not(monkeypatch):
    monkeypatch.setattr(clustering, "ROUNDS", 1)
    few = clustering.METHODS[0]
    never = clustering.Method("never", few.run, 0, "too slow")
    values = clustering.weights_of("zeros", 2000)
    ran, skipped = clustering.cell("zeros", values, 4, (few, never))
    assert ran["error_ratio"] == pytest.approx(1, abs=1e-3)
    assert ran["time_ratio"] == 1
    assert skipped["skipped"] == "too slow"
    assert "seconds" not in skipped


def test_the_error_is_that_of_the_labels():
    values = np.array([0, 1, 5], np.float32)
    clustered = np.array([0.5, 4.0]), np.array([0, 0, 1])
    assert clustering.mean_squared_error(values, clustered) == pytest.approx((0.25 + 0.25 + 1) / 3)


@pytest.mark.parametrize("law", ["gauss", "laplace", "zeros"])
def test_laws_have_their_size_and_repeat(law):
    values = clustering.weights_of(law, 1000)
    assert values.dtype == np.float32
    assert values.shape == (1000,)
    assert np.array_equal(values, clustering.weights_of(law, 1000))
    assert (law == "zeros") == (np.mean(values == 0) > 0.8)
