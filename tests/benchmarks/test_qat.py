import pytest

from benchmarks import qat, tasks
from tersor.spec import Quantize


def test_each_net_has_every_pair_of_bits_with_and_without_training():
    assert len([row for row in qat.ROWS if not row.seed and row.method != "taught"]) == 2 * 2 * (5 + 4)
    assert len({row.name for row in qat.ROWS}) == len(qat.ROWS)


@pytest.mark.parametrize("name", ["lenet5_caffe-w4a4-qat", "resnet20-w4a4-taught"])
def test_what_has_a_target_has_three_seeds(name):
    assert [row.seed for row in qat.SERIES.chosen([f"{name}-*"])] == [0, 1, 2]


def test_only_what_is_taught_has_a_teacher():
    taught = {row.method: row.training.teacher for row in qat.ROWS if row.training is not None}
    assert taught == {"qat": "none", "taught": "original"}


@pytest.mark.parametrize("row", qat.ROWS, ids=lambda row: row.name)
def test_the_first_and_the_last_layer_keep_8_bits(row):
    step = row.recipe.steps[1]
    assert isinstance(step, Quantize) and (step.train is None) == (row.method == "ptq")
    layers = [name.removesuffix(".weight") for name, one in tasks.NETS[row.net]().named_parameters()
              if one.ndim > 1]  # fmt: skip
    assert [rule.match for rule in step.rules] == [layers[0], layers[-1]]
    assert all(rule.override["bits"] == rule.override["activation_bits"] == 8 for rule in step.rules)
