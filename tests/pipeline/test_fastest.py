"""The search for the fastest model: what is sensitive stays in floats, what gains no time too."""

import pytest
from tests.pipeline.test_search import spirals

import tersor
from tersor import Budget, Effort, Timing
from tersor.artifact.io import Reader
from tersor.errors import SpecError
from tersor.pipeline.timing import Ratio, Stopwatch
from tersor.tensor.compressed import Affine

LAYERS = ("0.weight", "2.weight", "4.weight")


def with_a_wide_input():
    """A task whose first layer has an input so wide that eight bits tell nothing of the others."""
    task = spirals()
    weights = {name: one.clone() for name, one in task.weights.items()}
    weights["0.weight"][:, 7] = 0  # it tells nothing anyway

    def wide(batches):
        parts = []
        for x, y in batches:
            x = x.clone()
            x[:, 7] *= 3000
            parts.append((x, y))
        return parts

    return spirals(weights=weights, validation=wide(task.validation), test=wide(task.test))


def integer_layers(path):
    with Reader(path) as reader:
        return {name for name in LAYERS if isinstance(reader.read(name).form, Affine)}


def timed_by_layers(monkeypatch, gains):
    """Latencies as though each layer in 8 bits gained its share of the time."""
    monkeypatch.setattr(
        Stopwatch, "ratio",
        lambda self, path: Ratio(*[1 - sum(gains[name] for name in integer_layers(path))] * 2),
    )  # fmt: skip


def test_a_sensitive_layer_stays_in_floats(monkeypatch, tmp_path):
    timed_by_layers(monkeypatch, dict(zip(LAYERS, (0.5, 0.2, 0.1), strict=True)))
    task = with_a_wide_input()
    result = tersor.search(task, Budget(max_drop=0.01, objective="latency"), out=tmp_path)
    assert result.search.met and integer_layers(result.path) == {"2.weight", "4.weight"}
    whole = next(one for one in result.search.trials if one.steps == "integer")
    assert not whole.inside and whole.latency == pytest.approx(0.2) and whole.drop > 0.1
    chosen = next(one for one in result.search.trials if one.size_bytes == result.size_bytes)
    assert chosen.latency == pytest.approx(0.7) and chosen.front
    assert (tmp_path / "model.onnx").stat().st_size
    exported = tersor.evaluate_onnx(task, tmp_path / "model.onnx").value
    assert exported == pytest.approx(result.artifact.value, abs=0.01)


def test_what_is_slower_in_eight_bits_stays_in_floats(monkeypatch):
    timed_by_layers(monkeypatch, dict(zip(LAYERS, (0.3, -0.1, 0.1), strict=True)))
    result = tersor.search(spirals(), Budget(max_drop=0.05, objective="latency"))
    rules = [rule for step in result.recipe.steps for rule in step.rules]
    assert [rule.match for rule in rules] == ["2.weight"] and rules[0].skip
    timed_by_layers(monkeypatch, dict.fromkeys(LAYERS, -0.1))
    floats = tersor.search(spirals(), Budget(max_drop=0.05, objective="latency"))
    assert floats.artifact.value == floats.baseline.value
    assert [step.kind for step in floats.recipe.steps] == ["code"]


def test_times_are_measured_and_noted(tmp_path):
    timing = Timing(rounds=6, clock="cpu")
    budget = Budget(max_drop=0.5, objective="latency")
    first = tersor.search(spirals(), budget, effort=timing, out=tmp_path / "a")
    assert all(0 < one.latency < 100 for one in first.search.trials)
    lines = (tmp_path / "a" / "search.jsonl").read_text()
    assert lines.count('"latency": {"ratio"') == len(first.search.trials)


def test_only_searches_for_the_fastest_are_timed():
    with pytest.raises(SpecError, match=r"effort is Timing\(.*objective is size: give a tersor.Effort"):
        tersor.search(spirals(), Budget(max_drop=0.5), effort=Timing())
    with pytest.raises(SpecError, match=r"effort is Effort\(.*latency: give a tersor.Timing"):
        tersor.search(spirals(), Budget(max_drop=0.5, objective="latency"), effort=Effort())


def test_latency_goes_with_a_limit_of_the_drop():
    with pytest.raises(SpecError, match="latency goes with a limit of the drop"):
        Budget(target_size=9, objective="latency")
    with pytest.raises(SpecError, match="objective"):
        Budget(max_drop=0.1, objective="bytes")
