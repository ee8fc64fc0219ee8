from dataclasses import replace

import tersor


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


def test_a_plan_is_near_the_trained_file(task, recipe):
    predicted = tersor.plan(task, recipe).predicted_bytes
    assert abs(predicted / tersor.compress(task, recipe).size_bytes - 1) < 0.2
