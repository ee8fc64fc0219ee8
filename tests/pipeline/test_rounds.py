"""Pruning in rounds: where it stops, what it ends on, and that Ctrl-C does not matter."""

import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import tersor
from tersor.model.storage import storages
from tersor.pipeline import prune as prune_module
from tersor.pipeline import rounds as rounds_module
from tersor.pipeline.context import Context
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import Work
from tersor.result import OF_ALL, TEACHER
from tersor.spec import Prune, Quantize, Train

WEIGHTS = ("0.weight", "4.weight", "6.weight")
STEP = Prune(fraction=0.9, schedule="iterative", rounds=4, train=Train(epochs=1.5, lr=0.01))


def run(task, step=STEP, **given):
    return tersor.compress(task, tersor.Recipe(steps=(step,)), **given)


def zeros(result, name="4.weight"):
    return float((tersor.load(result.path)[name] == 0).float().mean())


def words(result):
    return [one.detail for one in result.stages[0].touched if one.name == OF_ALL][-1]


@pytest.fixture
def scored(task):
    """Tasks whose score is what a function of the share of zeros in ``4.weight`` says."""

    def make(score, **given):
        return replace(task, score=None, metric=lambda model, loader: score(
            float((model.get_submodule("4").weight == 0).float().mean())), **given)  # fmt: skip

    return make


def test_without_a_budget_all_rounds_are_done(task):
    result = run(replace(task, validation=None))
    assert zeros(result) == pytest.approx(0.9, abs=0.01)
    assert words(result) == "round 4 of 4; all 4 rounds are in it"


@pytest.mark.parametrize(
    ("max_drop", "last"), [(0.0, 0), (0.43, 0), (0.44, 1), (0.7, 2), (0.83, 3), (1.0, 4)]
)
@pytest.mark.parametrize("higher", [True, False])
def test_it_ends_on_the_last_round_inside_the_budget(scored, max_drop, last, higher):
    sign = 1 if higher else -1
    task = scored(lambda share: 5 - sign * share, higher_is_better=higher)
    result = run(task, replace(STEP, max_drop=max_drop))
    expected = 1 - 0.1 ** (last / 4)
    assert zeros(result) == pytest.approx(expected, abs=0.01)
    assert result.stages[0].validation == pytest.approx(5 - sign * zeros(result))
    told = words(result)
    if not last:
        assert told.startswith("no round, as the step began;")
        assert [one.applied for one in result.stages[0].touched if one.name == OF_ALL] == [True, False]
    else:
        assert told.startswith(
            f"round {last} of 4; validation of 5 fell by {zeros(result):.4g} of the {max_drop:.4g}"
        )
    assert told.endswith("all 4 rounds are in it" if last == 4 else "and is not in it")
    if last < 4:
        assert f"round {last + 1} fell by" in told


def test_nothing_inside_the_budget_leaves_the_weights_as_they_were(scored, task):
    result = run(scored(lambda share: -share), replace(STEP, max_drop=0.1))
    found = tersor.load(result.path)
    assert all(torch.equal(found[name], value) for name, value in task.weights.items())


def test_a_budget_that_is_met_to_the_digit_is_met(scored):
    task = scored(lambda share: 0.97 if share < 0.3 else 0.965)
    assert zeros(run(task, replace(STEP, max_drop=0.005))) == pytest.approx(0.9, abs=0.01)


def test_a_later_round_that_would_do_again_is_not_reached(scored):
    task = scored(lambda share: 0.0 if 0.5 < share < 0.75 else 1.0)
    assert zeros(run(task, replace(STEP, max_drop=0.1))) == pytest.approx(0.44, abs=0.01)


def test_a_budget_needs_validation_data(task):
    recipe = tersor.Recipe(steps=(replace(STEP, max_drop=0.1),))
    with pytest.raises(tersor.TaskError, match="no validation data, on which step 'prune' measures max_drop"):
        tersor.compress(replace(task, validation=None), recipe)


def test_it_comes_before_activations_are_quantized(task):
    work = Work(task.build())
    apply_step(work, Quantize(batches=1), Context(task))
    with pytest.raises(tersor.SpecError, match="activations are quantized already"):
        apply_step(work, STEP, Context(task))


@pytest.mark.parametrize("rewind", [True, False])
def test_rewound_weights_are_trained_from_where_the_step_began(task, monkeypatch, rewind):
    seen = []

    def trained(work, phase, context):
        """Training that turns and moves all weights, those of norms too."""
        weights = dict(work.collected().tensors)
        seen.append({name: one.decode() for name, one in weights.items()})
        for storage in storages(work.model):
            for original in storage.originals() or [storage.dense()]:
                original.data.mul_(-1.1).sub_(0.05)
        return []

    monkeypatch.setattr(rounds_module, "train_", trained)
    result = run(task, replace(STEP, rewind=rewind))
    assert len(seen) == 4
    for number, found in enumerate(seen):
        for name, value in task.weights.items():
            kept = (found[name] != 0) | (value == 0) if name in WEIGHTS else torch.ones_like(value).bool()
            same = torch.equal(found[name][kept], value[kept])
            assert same == (rewind or not number or "running" in name or "num_" in name), (number, name)
    masks = [found["4.weight"] != 0 for found in seen]
    assert all((after <= before).all() for before, after in pairwise(masks))
    assert zeros(result) == pytest.approx(0.9, abs=0.01)


def test_rounds_rise_from_what_is_pruned_already(task, monkeypatch):
    shares = []

    def trained(work, phase, context):
        shares.append(float((work.model.get_submodule("4").weight == 0).float().mean()))
        return []

    monkeypatch.setattr(rounds_module, "train_", trained)
    first = Prune(name="first", fraction=0.5)
    tersor.compress(task, tersor.Recipe(steps=(first, replace(STEP, fraction=0.9, rounds=2))))
    assert shares == pytest.approx([1 - (0.5 * 0.1) ** 0.5, 0.9], abs=0.01)


def test_channels_that_would_all_go_in_the_end_are_told_before_any_training(task, monkeypatch):
    monkeypatch.setattr(rounds_module, "train_", None)
    with pytest.raises(tersor.SpecError, match=r"all 4 channels of 0.weight would be pruned"):
        run(task, replace(STEP, granularity="channel"))


def test_where_every_target_is_skipped_nothing_trains(task, monkeypatch):
    monkeypatch.setattr(rounds_module, "train_", None)
    step = replace(STEP, granularity="channel", importance="apoz", fraction=0.5, targets=("6",))
    result = run(task, step)
    assert words(result) == "no round: nothing that the step targets can be pruned by it"


@pytest.mark.parametrize(("given", "copies"), [({}, 0), ({"rewind": True}, 1), ({"max_drop": 9.0}, 4)])
def test_a_copy_of_the_model_is_kept_only_where_it_may_be_needed(task, monkeypatch, given, copies):
    made = []
    state = rounds_module._state
    monkeypatch.setattr(rounds_module, "_state", lambda model: made.append(1) or state(model))
    run(task, replace(STEP, **given))
    assert len(made) == copies


def test_a_run_that_is_stopped_after_the_last_round_tells_of_the_teacher(task, monkeypatch, tmp_path):
    whole = run(task, out=tmp_path / "whole")

    def failing(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prune_module, "report_storages", failing)
        run(task, out=tmp_path / "out")
    again = run(task, out=tmp_path / "out")
    assert again.stages[0].touched == whole.stages[0].touched
    assert TEACHER in {one.name for one in again.stages[0].touched}


def stop_at(call):
    """A progress that presses Ctrl-C, as it were, at its ``call``-th call."""
    calls = 0

    def progress(phase, done, total, note=""):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    "given",
    [{"max_drop": 0.3}, {"rewind": True}, {"importance": "random", "scope": "global"},
     {"importance": "taylor", "granularity": "block", "block_size": (2, 2)}],
    ids=lambda given: next(iter(given)),
)  # fmt: skip
def test_an_interrupted_run_goes_on_to_the_same_bytes(task, given, tmp_path):
    step = replace(STEP, **given)
    calls = []
    whole = run(task, step, out=tmp_path / "whole", progress=lambda *told: calls.append(told))
    for at in range(2, len(calls) + 1, 3):
        out = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            run(task, step, out=out, progress=stop_at(at))
        told = []
        again = run(task, step, out=out, progress=lambda *call: told.append(call))  # noqa: B023
        assert again.path.read_bytes() == whole.path.read_bytes(), calls[at - 1]
        assert words(again) == words(whole)
        rounds = [call[0] for call in told if "round" in call[0]]
        stopped = calls[at - 1][0]
        if "round" in stopped:
            # What was done stays done: the run goes on in the round where it stopped, or in the one after.
            assert not rounds or rounds[0] >= stopped
    assert sorted(one.name for one in out.iterdir()) == ["model.tersor", "recipe.yaml", "result.json"]


def test_ctrl_c_in_a_training_leaves_what_goes_on_from_there(task, tmp_path):
    step = replace(STEP, train=Train(epochs=4, lr=0.01))
    steps = []

    def counted(output, batch):
        steps.append(1)
        return F.cross_entropy(output, batch[1])

    def progress(phase, done, total, note=""):
        if "round 2 of" in phase and done == 3:
            signal.raise_signal(signal.SIGINT)

    task = replace(task, loss=counted)
    whole = run(task, step, out=tmp_path / "whole")
    all_steps = len(steps)
    with pytest.raises(KeyboardInterrupt):
        run(task, step, out=tmp_path / "out", progress=progress)
    left = sorted(one.name for one in (tmp_path / "out" / ".tersor-run").glob("*.checkpoint"))
    assert left == ["0-prune-round-2.checkpoint", "0-prune.checkpoint"]
    again = run(task, step, out=tmp_path / "out")
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert len(steps) == 2 * all_steps  # no step was made twice
