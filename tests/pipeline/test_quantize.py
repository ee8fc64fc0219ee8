"""What the quantize step decides beside the placement: the bits of each point."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tests import nets
from torch import Tensor, nn

import tersor
import tersor.errors
from tersor.model.restore import trained_model
from tersor.model.storage import storages
from tersor.pipeline.context import Context
from tersor.pipeline.quantize import plan_quantization, point_bits
from tersor.pipeline.steps import apply_step
from tersor.pipeline.work import Work
from tersor.spec import Cluster, Fold, Prune, Quantize, Recipe, Rule, Train
from tersor.tensor.codebook import int8_levels
from tersor.tensor.compressed import Raw


class Residual(nn.Module):
    """Two layers of which the second is added to what the first one gives, a pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(torch.max_pool2d(x, 1)))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture
def task():
    torch.manual_seed(0)
    batch = (torch.randn(4, 1, 6, 6), torch.zeros(4, dtype=torch.long))
    return tersor.Task(name="residual", build=Residual, weights=Residual().state_dict(), test=[batch],
                       train=[batch], score=lambda output, _: output[:, 0])  # fmt: skip


def bits_of(task, step):
    planned = plan_quantization(Work(task.build()), step, task)
    return {planned.placement.points[value]: bits for value, bits in point_bits(planned).items()}


INPUT, FIRST, SECOND = ("", "input", 0), ("", "relu", 0), ("second", "conv", 0)
SUM, POOLED = ("", "relu", 1), ("", "avg_pool", 0)


def test_what_layers_read_has_the_bits_asked_for_and_what_additions_read_has_8(task):
    assert bits_of(task, Quantize(activation_bits=4)) == {INPUT: 4, FIRST: 4, SECOND: 8, SUM: 8, POOLED: 4}


def test_a_rule_gives_what_its_layer_reads_other_bits(task):
    step = Quantize(activation_bits=4, rules=(Rule("head", override={"activation_bits": 6}),))
    assert bits_of(task, step)[POOLED] == 6
    step = Quantize(activation_bits=4, rules=(Rule("second", override={"activation_bits": 2}),))
    assert bits_of(task, step)[FIRST] == 2


def test_a_value_that_two_layers_read_has_the_larger_bits():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) - self.right(x)

    batch = (torch.randn(4, 3),)
    task = tersor.Task(name="fork", build=Fork, weights=Fork().state_dict(), test=[batch], train=[batch],
                       score=lambda output, _: output[:, 0])  # fmt: skip
    step = Quantize(activation_bits=4, rules=(Rule("right", override={"activation_bits": 6}),))
    assert bits_of(task, step) == {INPUT: 6}


def test_the_file_holds_the_bits_of_each_point(task, tmp_path):
    rule = Rule("first", override={"bits": 8, "activation_bits": 8})
    recipe = tersor.Recipe(steps=(Quantize(bits=4, activation_bits=4, rules=(rule,)),))
    result = tersor.compress(task, recipe, out=tmp_path)
    with tersor.artifact.io.Reader(result.path) as reader:
        assert {point.key: point.bits for point in reader.points} == {
            INPUT: 8, FIRST: 4, SECOND: 8, SUM: 8, POOLED: 4
        }  # fmt: skip


def stop_at(call):
    """A progress function that interrupts the run at its n-th call."""
    seen = itertools.count(1)

    def progress(*_):
        if next(seen) == call:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("at", [3, 4, 6])
def test_interrupted_quantization_aware_training_goes_on_to_the_same_bytes(tmp_path, at):
    small = nets.small_task()
    recipe = Recipe(steps=(Quantize(train=Train(epochs=3)),))
    whole = tersor.compress(small, recipe, out=tmp_path / "whole").path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        tersor.compress(small, recipe, out=tmp_path / "broken", progress=stop_at(at))
    assert tersor.compress(small, recipe, out=tmp_path / "broken").path.read_bytes() == whole


def worked(task, *steps):
    work = Work(trained_model(task))
    for step in steps:
        apply_step(work, step, Context(task))
    return work


def forms(work):
    return {name: one.form for name, one in work.collected().tensors.items() if not isinstance(one.form, Raw)}


def test_training_moves_scales_only_where_they_may_learn():
    small = nets.small_task()
    before = worked(small, Quantize())
    for learn in (False, True):
        after = worked(small, Quantize(train=Train(epochs=2, lr=0.01), learn_scales=learn))
        assert (before.points != after.points) == learn
        for name, form in forms(after).items():
            assert np.array_equal(form.scale, forms(before)[name].scale) != learn


def test_powers_of_two_stay_powers_of_two_while_weights_train():
    work = worked(nets.small_task(), Quantize(power_of_two=True, train=Train(epochs=2, lr=0.01)))
    for form in forms(work).values():
        assert np.array_equal(np.frexp(form.scale)[0], np.full(form.scale.shape, 0.5))


def test_shared_values_learn_as_they_did():
    steps = (Cluster(bits=4, update="mean"), Quantize(train=Train()))
    work = worked(nets.small_task(), *steps)
    held = [one.parametrization[0] for one in storages(work.model) if one.parametrization is not None]
    assert {one.update for one in held} == {"mean"} and all(one.grid for one in held)
    for name, form in forms(work).items():
        assert int8_levels(form.codebook) is not None, name


def test_half_precision_of_shared_pruned_and_integer_weights():
    small = nets.small_task()
    shared = forms(worked(small, Cluster(bits=4), Quantize(bits=16)))
    for form in shared.values():
        assert np.array_equal(form.codebook, form.codebook.astype(np.float16).astype(np.float32))
    pruned = worked(small, Prune(fraction=0.5), Quantize(bits=16)).collected().tensors["hidden.weight"]
    dense = pruned.decode()
    assert torch.equal(dense, dense.half().float()) and float((dense == 0).float().mean()) >= 0.5
    once, twice = (worked(small, Quantize(), *more) for more in ((), (Quantize(name="half", bits=16),)))
    assert all(np.array_equal(forms(once)[name].codes, form.codes) for name, form in forms(twice).items())


def test_folding_after_quantization_is_refused():
    with pytest.raises(tersor.errors.TargetError, match="fold before you quantize"):
        worked(nets.vision_task(), Quantize(), Fold())


def test_what_no_data_can_calibrate_is_refused_before_any_work(tmp_path):
    small = replace(nets.small_task(), train=None, validation=None)
    calls = []
    for steps in ((Cluster(bits=4), Quantize()), (Quantize(rules=(Rule("head", skip=True),)),)):
        with pytest.raises(tersor.errors.TaskError, match="neither train nor validation"):
            tersor.compress(
                small, Recipe(steps=steps), out=tmp_path, progress=lambda *call: calls.append(call)
            )
    assert not calls and not list(tmp_path.iterdir())
    for activations in ("dynamic", "none"):
        assert tersor.compress(small, Recipe(steps=(Quantize(activations=activations),))).size_bytes


def test_many_codebooks_are_told():
    with pytest.raises(tersor.errors.TargetError, match=r"conv\.weight: it has 4 codebooks"):
        worked(nets.small_task(), Cluster(bits=2, granularity="channel"), Quantize())


def test_a_plan_tells_of_each_operation(task):
    plan = partial(tersor.plan, task, timed=False)
    rows = {row.tensor: row for row in plan(Recipe(steps=(Quantize(),))).rows}
    assert rows["model (add)"].action == "apply" and rows["model (relu, call 2)"].detail.startswith("integer")
    assert "8 bits" in rows["first.weight"].detail and rows["first.weight"].predicted_bytes > 0
    assert rows["head.bias"].action == "skip"
    nothing = {row.tensor: row for row in plan(Recipe(steps=(Quantize(activations="none"),))).rows}
    assert nothing["first (conv)"].action == "skip"


def test_the_calibration_ends_where_the_data_do(task, tmp_path):
    calls = []
    tersor.compress(
        task, Recipe(steps=(Quantize(batches=32),)), out=tmp_path, progress=lambda *call: calls.append(call)
    )
    last = [call for call in calls if call[0].endswith("calibrate")][-1]
    assert last[1] == last[2] == 1 and last[3] == "all that the task has"
