from dataclasses import replace

import pytest

import tersor
from tersor.result import OF_ALL, TEACHER


def test_a_plan_names_every_weight_with_what_happens_or_why_not(task, recipe):
    plan = tersor.plan(task, recipe)
    rows = {(row.step, row.tensor): row for row in plan.rows}
    assert rows["prune", "4.weight"].action == "apply"
    assert "50" in rows["prune", "4.weight"].detail
    assert rows["prune", "6.weight"].action == "skip"
    assert "rule '6'" in rows["prune", "6.weight"].detail
    assert rows["cluster", "0.bias"].detail == "bias"
    assert "8 values" in rows["cluster", "6.weight"].detail


def test_a_plan_without_training_is_the_file_to_the_byte(task):
    for preset in ("cluster", "entropy"):
        assert tersor.plan(task, preset).predicted_bytes == tersor.compress(task, preset).size_bytes


def test_a_plan_needs_no_training_data_and_trains_nothing(task, recipe):
    def fail(output, batch):
        raise AssertionError("a plan must not train")

    tersor.plan(replace(task, loss=fail), recipe)


def test_a_plan_of_a_recipe_that_trains_wants_what_it_trains_with(task, recipe):
    with pytest.raises(tersor.TaskError, match="no train, which step 'prune' trains with"):
        tersor.plan(replace(task, train=None), recipe)


def test_rows_are_in_the_order_of_the_model(task, recipe):
    names = list(task.build().state_dict())
    for step in ("prune", "cluster"):
        told = [row.tensor for row in tersor.plan(task, recipe).rows if row.step == step]
        rows = [name for name in told if name not in (OF_ALL, TEACHER)]
        assert told[len(rows) :] == [OF_ALL, TEACHER][-len(told) + len(rows) :]
        assert rows == [name for name in names if name in rows]


def test_a_plan_is_near_the_trained_file(task, recipe):
    predicted = tersor.plan(task, recipe).predicted_bytes
    assert abs(predicted / tersor.compress(task, recipe).size_bytes - 1) < 0.2


def test_a_plan_starts_each_step_as_a_run_does(task):
    # A codebook's zeros are held by the steps after it, in a run and in its plan.
    recipe = tersor.Recipe(
        steps=(tersor.Cluster(bits=2, keep_zero=True), tersor.Cluster(name="again", bits=3, init="linear"))
    )
    assert tersor.plan(task, recipe).predicted_bytes == tersor.compress(task, recipe).size_bytes


def test_a_plan_asks_for_no_importance_even_by_a_rule(task):
    rules = (tersor.Rule("4", override={"importance": "fisher"}),)
    recipe = tersor.Recipe(steps=(tersor.Cluster(bits=2, rules=rules),))
    tersor.plan(replace(task, train=None, loss=None), recipe)
