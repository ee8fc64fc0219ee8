"""Quantization-aware training whose ranges and norms freeze on schedule, down to the file and the runtime."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests import nets
from tests.pipeline.test_export import agreement, in_memory
from tests.pipeline.test_quantize import forms, stop_at
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tersor
from tersor.artifact.io import Reader
from tersor.errors import TargetError
from tersor.model.inputs import model_inputs
from tersor.model.output_norm import OutputNorm
from tersor.model.simulate import points_of, simulated
from tersor.model.storage import storages
from tersor.model.trace import trace
from tersor.pipeline.aware import fold_norms_, quantization_aware
from tersor.pipeline.context import Context
from tersor.pipeline.quantize import plan_quantization
from tersor.pipeline.run import step_seed
from tersor.pipeline.steps import apply_step
from tersor.spec import Cluster, Fold, Prune, Quantize, Recipe, Rule, Train

TRAIN = Train(epochs=3, lr=0.01)  # nine steps
NORMS = Quantize(bits=4, freeze_norms=0.5, train=TRAIN)
RANGES = Quantize(bits=4, learn_scales=False, freeze_observers=0.5, train=TRAIN)
STEPS = {"norms": NORMS, "ranges": RANGES, "both": replace(RANGES, freeze_norms=0.75)}


class Plain(nn.Module):
    """Two convolutions and a linear layer, each with a norm."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.hidden, self.norm3 = nn.Linear(8, 16), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(self.norm2(self.second(x))).mean((2, 3))
        return self.head(torch.relu(self.norm3(self.hidden(x))))


def plain_task(**fields):
    return nets.make_task(Plain, lambda seed: nets.images(3, 10, 5, seed=seed), **fields)


def prepared(task, step, *before):
    """The work before a training, and the training."""
    work = in_memory(task, *before, Fold())
    planned = plan_quantization(work, step, task)
    apply_step(work, replace(step, train=None, freeze_norms=0.0, freeze_observers=0.0), Context(task))
    return work, planned


def outputs(run, task):
    run.eval()
    with torch.no_grad():
        return torch.cat([run(x) for x, _ in task.test])


def rows(task, step):
    work = in_memory(task, Fold())
    return {one.name: one for one in apply_step(work, step, Context(task))}


def test_what_is_about_to_train_computes_what_was_calibrated():
    task = plain_task()
    for step in STEPS.values():
        work, planned = prepared(task, step)
        before = outputs(simulated(work.model, planned.traced, work.points), task)
        aware = quantization_aware(work, planned, step, task)
        assert torch.equal(outputs(aware.run, task), before)  # bit for bit
        assert points_of(aware.run) == work.points
        assert aware.idle == tuple(one.layer.module.bias for one in aware.norms)
        assert len(aware.norms) == (3 if step.freeze_norms else 0)


@pytest.mark.parametrize("activations", ["static", "none"])
def test_folding_norms_away_leaves_what_the_model_computes_and_the_codes(activations):
    task = plain_task()
    step = replace(NORMS, activations=activations)
    work, planned = prepared(task, step, Prune(fraction=0.5))
    aware = quantization_aware(work, planned, step, task)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in aware.norms:
            one.norm.shift.normal_(0, 0.3, generator=draw)
            one.norm.beta.add_(0.1)
            one.norm.variance.mul_(1.5)
    before, codes = outputs(aware.run, task), {name: one.codes for name, one in forms(work).items()}
    done = fold_norms_(work, aware)
    assert [(one.name, one.applied) for one in done] == [(f"norm{at}", True) for at in (1, 2, 3)]
    assert not any(isinstance(one, OutputNorm) for one in work.model.modules())
    assert all(one.layer.module.bias.requires_grad for one in aware.norms)
    after = outputs(work.runnable(task), task)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    for name, one in forms(work).items():
        assert np.array_equal(one.codes, codes[name])
        assert float((one.codes == 0).mean()) >= 0.5


@pytest.mark.parametrize("name", STEPS)
def test_what_has_trained_in_memory_is_what_the_file_and_the_runtime_compute(name, tmp_path):
    def logits(output, batch):
        return output[:, 0].double()

    task = plain_task(score=logits)
    steps = (Prune(fraction=0.5), Fold(), STEPS[name])
    result = tersor.compress(task, Recipe(steps=steps), out=tmp_path)
    work = in_memory(task, *steps[:2])
    apply_step(work, steps[2], Context(task, seed=step_seed(0, 2)))
    run = simulated(work.model, trace(work.model, model_inputs(task, work.model)), work.points)
    assert result.artifact.value == pytest.approx(float(outputs(run, task)[:, 0].double().mean()), abs=1e-9)
    with Reader(result.path) as reader:
        assert reader.points == work.points
    assert all(float((one.codes == 0).mean()) >= 0.5 for one in forms(work).values())
    assert agreement(task, work)[0].largest <= 1
    assert tersor.export_model(task, result.path, tmp_path / "model.onnx").agreement.largest <= 1


def test_ranges_follow_while_they_may_and_scales_of_weights_stay():
    task = plain_task()
    before = in_memory(task, Fold(), replace(RANGES, train=None, freeze_observers=0.0))
    for share in (0.0, 0.5):
        after = in_memory(task, Fold(), replace(RANGES, freeze_observers=share))
        assert (before.points != after.points) == (share > 0)
        for name, one in forms(after).items():
            assert np.array_equal(one.scale, forms(before)[name].scale)


@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupted_schedule_goes_on_to_the_same_bytes(at, tmp_path):
    data = TensorDataset(*(torch.cat(parts) for parts in zip(*nets.images(3, 10, 5, seed=1), strict=True)))
    shuffled = DataLoader(data, batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(5))
    step = replace(
        STEPS["both"], batches=1
    )  # so that the statistics at the start depend on which comes first
    task, recipe, calls = plain_task(train=shuffled), Recipe(steps=(Fold(), step)), []
    whole = tersor.compress(task, recipe, out=tmp_path / "whole", progress=lambda *one: calls.append(one))
    first = next(index for index, one in enumerate(calls) if one[0] == "quantize: train")
    with pytest.raises(KeyboardInterrupt):
        tersor.compress(task, recipe, out=tmp_path / "broken", progress=stop_at(first + at + 1))
    again = tersor.compress(task, recipe, out=tmp_path / "broken")
    assert again.path.read_bytes() == whole.path.read_bytes()


def test_each_norm_that_does_not_come_back_is_told_with_the_reason():
    task = plain_task()
    rules = (Rule("first", override={"granularity": "tensor"}), Rule("hidden", skip=True))
    found = rows(task, replace(NORMS, rules=rules))
    assert not found["norm1"].applied and "one scale for all channels" in found["norm1"].detail
    assert found["norm2"].applied and found["norm2"].detail.startswith("normalized second in training")
    assert not found["norm3"].applied and "not on an integer grid" in found["norm3"].detail
    work = in_memory(task, Fold(), Cluster(bits=4, targets=("first",)))
    shared = {one.name: one for one in apply_step(work, NORMS, Context(task))}
    assert "clustered" in shared["norm1"].detail and shared["norm2"].applied
    half = rows(task, replace(NORMS, rules=(Rule("second", override={"bits": 16}),)))
    assert "not on an integer grid" in half["norm2"].detail


def test_norms_that_no_layer_can_have_are_an_error():
    task = plain_task()
    with pytest.raises(TargetError, match=r"no layer can have a norm: norm1: .*one scale for all channels"):
        rows(task, replace(NORMS, granularity="tensor"))
    small = nets.small_task()
    with pytest.raises(TargetError, match="no batch norm was folded"):
        rows(small, NORMS)


def test_a_layer_of_an_earlier_step_keeps_its_scales():
    task = plain_task()
    first = Quantize(name="first", targets=("first",), power_of_two=True)
    work = in_memory(task, Fold(), first)
    found = {one.name: one for one in apply_step(work, replace(NORMS, targets=("second",)), Context(task))}
    assert not found["norm1"].applied and found["norm2"].applied


def test_a_dry_run_leaves_the_schedule_out():
    task = plain_task()
    for step in STEPS.values():
        plan = tersor.plan(task, Recipe(steps=(Fold(), step)), timed=False)
        assert plan.predicted_bytes > 0


def test_the_model_is_left_as_it_was_found():
    task = plain_task()
    work = in_memory(task, Fold(), NORMS)
    assert all(one.parametrization is None or len(one.originals()) == 2 for one in storages(work.model))
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in work.model.modules())
    assert [one.attribute for one in work.changes].count("identity") == 3
