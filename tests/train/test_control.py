"""What freezes at a share of the steps, with and without a break."""

import copy
import signal

import pytest
import torch
from tests import nets

from tersor.errors import SpecError
from tersor.model.inputs import model_inputs
from tersor.model.output_norm import OutputNorm
from tersor.model.simulate import FollowingPoint, simulated, values_of
from tersor.model.trace import trace
from tersor.points import QuantPoint
from tersor.spec import Train
from tersor.train.control import Control, Freezing
from tersor.train.gradients import quantized_gradients
from tersor.train.loop import fit

PHASE = Train(epochs=4, lr=0.01)
STEPS = 12  # three batches an epoch


class Watching(Control):
    """Notes the buffers after each step; presses Ctrl-C in the middle of one."""

    def __init__(self, model, stop=-1):
        self.model, self.stop, self.seen = model, stop, {}

    def on_step_begin(self, step, total):
        if step == self.stop:
            signal.raise_signal(signal.SIGINT)

    def after_step(self, step, total):
        taps = [one for one in self.model.modules() if isinstance(one, OutputNorm | FollowingPoint)]
        self.seen[step] = copy.deepcopy([(type(one), dict(one.named_buffers())) for one in taps])


def made():
    """A run with points that follow on every value and norms before two of them; and what freezes."""
    task = nets.small_task()
    model = task.build()
    model.load_state_dict(task.weights)
    traced = trace(model, model_inputs(task, model))
    points = [QuantPoint(*key, scale=0.05, zero_point=100) for key in values_of(traced)]
    run = simulated(model, traced, points, follow=True)
    paths = {"conv": 4, "hidden": 16}
    norms = {
        one.output: OutputNorm(torch.zeros(paths[one.path]), torch.ones(paths[one.path]))
        for one in traced.operations if one.path in paths
    }  # fmt: skip
    run = run.with_taps_before(norms)
    points = [one for one in run.modules() if isinstance(one, FollowingPoint)]
    return task, run, [Freezing(points, 0.75), Freezing(norms.values(), 0.25)]


def fitted(run, task, controls, **given):
    fit(run, task, PHASE, seed=3, controls=controls, **given)
    return {name: value.clone() for name, value in run.state_dict().items()}


def test_statistics_move_before_their_share_of_the_steps_and_not_after():
    task, run, controls = made()
    watching = Watching(run)
    fitted(run, task, [*controls, watching])
    for step in range(1, STEPS):
        for (kind, before), (_, after) in zip(watching.seen[step - 1], watching.seen[step], strict=True):
            name = "ends" if kind is FollowingPoint else "mean"
            frozen = 9 if kind is FollowingPoint else 3
            moved = not torch.equal(before[name], after[name])
            assert moved == (step < frozen), (kind, step)
            if not moved:
                assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("stop", [0, 2, 3, 7, 9, 11])
def test_an_interrupted_schedule_ends_as_an_unbroken_one(stop, tmp_path):
    task, run, controls = made()
    whole = fitted(run, task, controls)
    task, run, controls = made()
    path = tmp_path / "phase.checkpoint"
    if stop < STEPS - 1:
        with pytest.raises(KeyboardInterrupt):
            fitted(run, task, [*controls, Watching(run, stop)], checkpoint=path)
    else:
        fitted(run, task, controls, checkpoint=path)
    task, run, controls = made()
    again = fitted(run, task, controls, checkpoint=path)
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_the_ends_of_a_schedule():
    class Module:
        frozen = None

    for share, frozen in ((0.0, [True] * 5), (1.0, [False] * 5), (0.5, [False, False, True, True, True])):
        one = Module()
        control, seen = Freezing([one], share), []
        for step in range(5):
            control.on_step_begin(step, 5)
            seen.append(one.frozen)
        assert seen == frozen
    with pytest.raises(SpecError, match="at a share of the steps"):
        Freezing([], 1.5)


def test_gradients_in_few_bits_are_those_of_points_and_not_of_norms():
    _, run, _ = made()
    with quantized_gradients(run, 4):
        hooked = {type(one) for one in run.modules() if one._forward_hooks}
        followed = [one for one in run.modules() if isinstance(one, FollowingPoint)]
        assert all(one._forward_hooks for one in followed) and OutputNorm not in hooked
