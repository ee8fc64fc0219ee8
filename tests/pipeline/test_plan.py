import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import tersor
from tersor.result import MEASURING, OF_ALL, TEACHER


def test_a_plan_names_every_weight_with_what_happens_or_why_not(task, recipe):
    plan = tersor.plan(task, recipe, timed=False)
    rows = {(row.step, row.tensor): row for row in plan.rows}
    assert rows["prune", "4.weight"].action == "apply"
    assert "50" in rows["prune", "4.weight"].detail
    assert rows["prune", "6.weight"].action == "skip"
    assert "rule '6'" in rows["prune", "6.weight"].detail
    assert rows["cluster", "0.bias"].detail == "bias"
    assert "8 values" in rows["cluster", "6.weight"].detail


def test_a_plan_without_training_is_the_file_to_the_byte(task):
    for preset in ("cluster", "entropy"):
        assert (
            tersor.plan(task, preset, timed=False).predicted_bytes == tersor.compress(task, preset).size_bytes
        )


def test_a_plan_without_times_runs_no_training(task, recipe):
    def fail(output, batch):
        raise AssertionError("a plan must not train")

    assert tersor.plan(replace(task, loss=fail), recipe, timed=False).times == ()


def test_a_plan_of_a_recipe_that_trains_wants_what_it_trains_with(task, recipe):
    with pytest.raises(tersor.TaskError, match="no train, which step 'prune' trains with"):
        tersor.plan(replace(task, train=None), recipe)


def test_rows_are_in_the_order_of_the_model(task, recipe):
    names = list(task.build().state_dict())
    for step in ("prune", "cluster"):
        told = [row.tensor for row in tersor.plan(task, recipe, timed=False).rows if row.step == step]
        rows = [name for name in told if name not in (OF_ALL, TEACHER)]
        assert told[len(rows) :] == [OF_ALL, TEACHER][-len(told) + len(rows) :]
        assert rows == [name for name in names if name in rows]


def test_a_plan_is_near_the_trained_file(task, recipe):
    predicted = tersor.plan(task, recipe, timed=False).predicted_bytes
    assert abs(predicted / tersor.compress(task, recipe).size_bytes - 1) < 0.2


def test_a_plan_starts_each_step_as_a_run_does(task):
    # A codebook's zeros are held by the steps after it, in a run and in its plan.
    recipe = tersor.Recipe(
        steps=(tersor.Cluster(bits=2, keep_zero=True), tersor.Cluster(name="again", bits=3, init="linear"))
    )
    assert tersor.plan(task, recipe, timed=False).predicted_bytes == tersor.compress(task, recipe).size_bytes


def test_a_plan_asks_for_no_importance_even_by_a_rule(task):
    rules = (tersor.Rule("4", override={"importance": "fisher"}),)
    recipe = tersor.Recipe(steps=(tersor.Cluster(bits=2, rules=rules),))

    def never(output, batch):
        raise AssertionError("a plan takes no gradients")

    tersor.plan(replace(task, loss=never), recipe, timed=False)
    with pytest.raises(tersor.TaskError, match="has no loss, which step 'cluster' trains with"):
        tersor.plan(replace(task, train=None, loss=None), recipe, timed=False)


@pytest.mark.parametrize(
    "step",
    [
        tersor.Prune(fraction=0.5, targets=("1",)),
        tersor.Prune(fraction=0.5, rules=(tersor.Rule("*", skip=True),), train=tersor.Train()),
        tersor.Cluster(bits=2, rules=(tersor.Rule("*", skip=True),)),
        tersor.Quantize(rules=(tersor.Rule("*", skip=True),)),
    ],
)
def test_a_recipe_that_touches_nothing_is_an_error_that_names_the_layers(task, step):
    recipe = tersor.Recipe(name="idle", steps=(step, tersor.Code()))
    with pytest.raises(tersor.TargetError, match=r"0\.weight \(.*4\.weight \(") as caught:
        tersor.plan(task, recipe)
    assert "no target matches" in str(caught.value) or "rule '*' skips it" in str(caught.value)


def test_a_model_without_what_a_step_is_for(task):
    plain = replace(
        task, build=lambda: torch.nn.Linear(36, 3), forward=lambda m, batch: m(batch[0].flatten(1))
    )
    plain = replace(plain, weights=plain.build().state_dict())
    with pytest.raises(
        tersor.TargetError, match=r"would touch nothing, by fold: weight \(no step is for it\)"
    ):
        tersor.plan(plain, tersor.Recipe(name="norms", steps=(tersor.Fold(),)))


def test_what_only_trains_or_only_codes_is_a_recipe(task):
    for step in (tersor.Train(), tersor.Code()):
        assert tersor.plan(task, tersor.Recipe(steps=(step,)), timed=False).rows is not None


def test_times_are_told_for_each_step_and_add_up(task, recipe):
    plan = tersor.plan(task, recipe)
    assert [one.part for one in plan.times] == ["prune", "cluster", "more", "code", MEASURING]
    assert all(one.seconds > 0 for one in plan.times)
    assert plan.predicted_seconds == pytest.approx(sum(one.seconds for one in plan.times))
    assert plan.times[0].basis.startswith("8 of 12 batches of training; validation")


def test_a_timed_plan_foretells_the_same_and_changes_nothing(task, recipe):
    """Generators, the loaders' own ones too, and what the plan says."""
    draw, noise = torch.Generator().manual_seed(3), np.random.default_rng(4)
    x, y = (torch.cat(part) for part in zip(*task.train, strict=True))
    data = TensorDataset(x, y)
    data.noise = noise
    loader = DataLoader(data, batch_size=20, shuffle=True, generator=draw)
    drawing = replace(task, train=loader)
    weights = {name: one.clone() for name, one in task.weights.items()}

    def chance():
        return [torch.get_rng_state(), draw.get_state(), random.getstate(), noise.bit_generator.state,
                np.random.get_state()[1].tolist()]  # fmt: skip

    before = chance()
    timed = tersor.plan(drawing, recipe)
    assert all(torch.equal(one, weights[name]) for name, one in task.weights.items())
    for one, other in zip(before, chance(), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    untimed = tersor.plan(drawing, recipe, timed=False)
    assert timed == replace(untimed, times=timed.times, predicted_seconds=timed.predicted_seconds)
