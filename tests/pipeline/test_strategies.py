import pytest
from tests.nets import branching_task, small_task

import tersor
from tersor.pipeline.strategies import UNIFORM

QUICK = tersor.Timing(rounds=6)


def by_name(found):
    return {one.name: one for one in found}


def test_each_is_measured_on_a_file_of_its_own(tmp_path):
    task = small_task()
    recipe = tersor.Recipe(
        name="mine",
        steps=(tersor.Quantize(bits=4, batches=1, rules=(tersor.Rule("head", override={"bits": 8}),)),),
    )
    found = by_name(tersor.strategies(task, recipe, out=tmp_path, timing=QUICK))
    assert list(found) == ["FP32", "all-8", "all-4", "mixed"]
    for name, one in found.items():
        assert one.path == tmp_path / name.lower() / "model.tersor" and not one.missing
        assert one.size_bytes == one.path.stat().st_size and one.exported_bytes == one.exported.stat().st_size
        assert one.score.value == tersor.evaluate(task, one.path).value
        assert one.latency.rounds == 6 and one.latency.name == name
        assert one.footprint == tersor.memory(task, one.path)["file"]
    assert found["FP32"].comparison.drop == 0 and found["FP32"].latency.ratio == 1
    sizes = [one.size_bytes for one in found.values()]
    weights = [one.footprint.weights_bytes for one in found.values()]
    for order in (sizes, weights):
        assert order[2] < order[3] < order[1] < order[0]
    arenas = [one.footprint.arena.peak_bytes for one in found.values()]
    assert arenas[1] < arenas[0] and arenas[2] < arenas[1]


def test_a_file_is_measured_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tersor.pipeline.strategies.UNIFORM", {"FP32": UNIFORM["FP32"]}
    )  # an export takes long
    task = small_task()
    made = tersor.compress(task, "cluster", out=tmp_path / "made")
    first, one = tersor.strategies(task, tmp_path / "made", timing=QUICK)
    assert first.name == "FP32" and one.name == "mixed" and one.size_bytes == made.size_bytes
    assert one.path is one.exported is None and one.exported_bytes and one.latency is not None
    assert one.score.value == made.artifact.value and one.comparison.drop == made.comparison.drop


def test_what_cannot_be_had_says_why():
    found = by_name(tersor.strategies(branching_task(), "cluster", timing=QUICK))
    for name in ("FP32", "mixed"):
        one = found[name]
        assert one.score is not None and one.size_bytes and one.footprint is one.latency is None
        assert set(one.missing) == {"footprint", "latency"} and "cannot be traced" in one.missing["latency"]
    for name in ("all-8", "all-4"):
        assert found[name].score is found[name].size_bytes is None
        assert "cannot be traced" in found[name].missing["score"]


def test_what_was_asked_for_and_cannot_be_is_an_error(tmp_path):
    task = small_task()
    with pytest.raises(tersor.SpecError, match="nothing-like-it"):
        tersor.strategies(task, "nothing-like-it", timing=QUICK)
    with pytest.raises(tersor.SpecError, match=r"no file .*none\.tersor"):
        tersor.strategies(task, tmp_path / "none.tersor", timing=QUICK)
    with pytest.raises(tersor.SpecError, match="no file"):
        tersor.strategies(task, tmp_path, timing=QUICK)
    with pytest.raises(tersor.TaskError, match=r"mixed: .*cannot be traced"):
        tersor.strategies(branching_task(), "int8", timing=QUICK)
    other = tersor.compress(branching_task(), "cluster", out=tmp_path / "other").path
    with pytest.raises(tersor.VerificationError, match="another model"):
        tersor.strategies(task, other, timing=QUICK)
    for wrong in ({"rounds": 5}, {"batch_size": 0}, {"threads": True}, {"clock": "sun"}):
        with pytest.raises(tersor.SpecError, match=next(iter(wrong))):
            tersor.Timing(**wrong)
