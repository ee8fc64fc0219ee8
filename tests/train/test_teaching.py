import re
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tersor.errors import TargetError, TaskError
from tersor.model.restore import trained_model
from tersor.result import TEACHER, Touched
from tersor.spec import Distill, Match, Train
from tersor.task import Task
from tersor.train.control import Control
from tersor.train.distill import soft_loss
from tersor.train.loop import fit
from tersor.train.teaching import Teaching, teaching_for

INPUTS = torch.randn(50, 6, generator=torch.Generator().manual_seed(5))
TARGETS = (INPUTS[:, :3].sum(dim=1) > 0).long()
BATCHES = list(zip(INPUTS.split(10), TARGETS.split(10), strict=True))
LAYERS = (
    Match(student="0", teacher="0"),
    Match(student="2", teacher="2", term="cosine", weight=2.0),
)


def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def narrow():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2))


def make_task(**fields):
    given = {
        "name": "wide",
        "build": wide,
        "weights": wide().state_dict(),
        "train": BATCHES,
        "test": BATCHES,
        "loss": lambda output, batch: F.cross_entropy(output, batch[1]),
        "score": lambda output, batch: (output.argmax(1) == batch[1]).float(),
    }
    return Task(**given | fields)


def student_task(**fields):
    weights = narrow().state_dict()
    return make_task(name="narrow", build=narrow, weights=weights, teacher=make_task(), **fields)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def taught(task, phase, model, *, checkpoint=None, controls=()):
    teaching, _ = teaching_for(phase, task, model, seed=3)
    records = fit(model, task, phase, seed=3, controls=[*controls, teaching], checkpoint=checkpoint)
    teaching.close()
    return teaching, records


def test_the_loss_is_the_weighted_sum_of_soft_and_own():
    task, model = make_task(), narrow()
    spec = Distill(temperature=2.0, soft=0.7, hard=0.2)
    teaching = Teaching(spec, model, trained_model(task), task.forward)
    teaching.before_forward(BATCHES[0])
    output = model(BATCHES[0][0])
    own = task.loss(output, BATCHES[0])
    soft = soft_loss(output, trained_model(task)(BATCHES[0][0]), temperature=2.0)
    assert torch.allclose(teaching.loss(own, output, BATCHES[0]), 0.7 * soft + 0.2 * own)


def test_a_teacher_is_asked_in_evaluation_mode():
    task, model = make_task(), narrow()
    teaching = Teaching(Distill(), model, wide().train(), task.forward)
    first, again = (teaching.ask(BATCHES[0]) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(first, wide().eval()(BATCHES[0][0]))
    assert_same(state_of(teaching.teacher), state_of(wide()))


def test_a_teacher_has_the_last_word_where_labels_are_wrong():
    task = student_task(train=[(x, 1 - y) for x, y in BATCHES])
    model, alone = trained_model(task), trained_model(task)
    phase = Train(epochs=60, lr=0.02, distill=Distill(hard=0.05))
    taught(task, phase, model)
    fit(alone, task, phase, seed=3)
    said = trained_model(task.reference)(INPUTS).argmax(1)
    agree, wrong = ((one.eval()(INPUTS).argmax(1) == said).float().mean() for one in (model, alone))
    assert agree > 0.9 > wrong


@pytest.mark.parametrize("layers", [(), LAYERS])
def test_the_teacher_does_not_change_and_has_no_gradients(layers):
    task = student_task()
    phase = Train(epochs=2, distill=Distill(temperature=3.0, layers=layers))
    teaching, _ = taught(task, phase, trained_model(task))
    assert_same(state_of(teaching.teacher), state_of(trained_model(task.reference)))
    assert not any(one.training for one in teaching.teacher.modules())
    assert all(not one.requires_grad and one.grad is None for one in teaching.teacher.parameters())
    assert not any(one._forward_hooks for one in teaching.teacher.modules())


def test_what_the_teacher_draws_is_not_missed_by_the_student():
    class Noisy(nn.Module):
        """Draws in evaluation too."""

        def __init__(self):
            super().__init__()
            self.inner = wide()

        def forward(self, x):
            return self.inner(F.dropout(x, 0.5, training=True)) * 0

    quiet = make_task(build=lambda: Still(), weights=Still().state_dict())
    noisy = make_task(build=Noisy, weights=Noisy().state_dict())
    states = []
    for teacher in (quiet, noisy):
        task = replace(student_task(), teacher=teacher)
        model = trained_model(task)
        taught(task, Train(epochs=2), model)
        states.append(state_of(model))
    assert_same(*states)


class Still(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = wide()

    def forward(self, x):
        return self.inner(x) * 0


def test_a_forward_that_augments_shows_both_the_same():
    seen = []

    def forward(model, batch):
        shown = batch[0] + torch.rand(())
        seen.append(shown)
        return model(shown)

    task = make_task(forward=forward)
    taught(task, Train(), trained_model(task))
    pairs = seen[-10:]
    assert all(torch.equal(one, other) for one, other in zip(pairs[::2], pairs[1::2], strict=True))
    assert not torch.equal(pairs[0] - BATCHES[0][0], pairs[2] - BATCHES[1][0])


class Breaking(Control):
    def __init__(self, at):
        self.at = at

    def on_step_begin(self, step, total):
        if step == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stop", [0, 3, 4, 7])
def test_an_interrupted_phase_ends_as_an_unbroken_one_with_its_adapters(stop, tmp_path):
    task = student_task()
    phase = Train(epochs=2, lr=0.01, weight_decay=0.01, clip_norm=1.0, distill=Distill(layers=LAYERS))
    whole, broken, resumed = (trained_model(task) for _ in range(3))
    first, records = taught(task, phase, whole)
    path = tmp_path / "phase.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        taught(task, phase, broken, checkpoint=path, controls=[Breaking(stop)])
    second, again = taught(task, phase, resumed, checkpoint=path)
    assert_same(state_of(whole), state_of(resumed))
    assert_same(state_of(first.learner()), state_of(second.learner()))
    assert [one.loss for one in again] == [one.loss for one in records]


def test_adapters_train_and_leave_no_trace_on_the_student():
    task = student_task()
    phase = Train(epochs=1, lr=0.01, distill=Distill(layers=LAYERS))
    model = trained_model(task)
    names = list(model.state_dict())
    teaching, _ = teaching_for(phase, task, model, seed=3)
    before = state_of(teaching.learner())
    assert {tuple(one.shape) for one in before.values()} == {(16, 4), (16,)}
    fit(model, task, phase, seed=3, controls=[teaching])
    teaching.close()
    assert all(not torch.equal(value, before[name]) for name, value in state_of(teaching.learner()).items())
    assert list(model.state_dict()) == names and not any(one._forward_hooks for one in model.modules())


def test_what_is_recorded_names_teacher_terms_and_shapes_and_is_told_before():
    told = []
    phase = Train(distill=Distill(temperature=2.0, decoupled=(1.0, 8.0), layers=LAYERS[:1]))
    teaching, rows = teaching_for(
        phase, student_task(), narrow(), progress=lambda *one: told.append(one)
    )  # fmt: skip
    teaching.close()
    assert rows == [
        Touched(TEACHER, True, "task 'wide', soft targets at temperature 2, decoupled, 1 and 8, "
                "loss 0.9 soft + 0.1 own"),
        Touched(f"{TEACHER} 0", True, "(10, 4) ~ 0 (10, 16): mse, weight 1, through a learned adapter"),
    ]  # fmt: skip
    assert told == [
        ("teacher", 1, 2, rows[0].detail),
        ("teacher", 2, 2, f"0 {rows[1].detail}"),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"forward": lambda model, batch: {"y": model(batch[0])}}, "dict without 'logits'"),
        ({"forward": lambda model, batch: model(batch[0])[:, :1]}, "one class on axis 1"),
        ({"train": [(x, y.float()) for x, y in BATCHES]}, r"torch.float32 \(10,\) at 1"),
        ({"train": [{"x": x, "y": y} for x, y in BATCHES],
          "forward": lambda model, batch: model(batch["x"])}, "no labels at 1"),
    ],
)  # fmt: skip
def test_where_the_default_does_not_apply_the_record_says_so_and_asking_for_more_is_an_error(change, reason):
    task = make_task(**change)
    teaching, (row,) = teaching_for(Train(), task, wide())
    assert teaching is None and not row.applied and row.name == TEACHER
    assert re.search(reason, row.detail)
    if "labels" not in reason and "float32" not in reason:  # labels are only for the default, and decoupled
        with pytest.raises(TaskError, match=f"cannot be taught as distill says: .*{reason}"):
            teaching_for(Train(distill=Distill(temperature=2.0)), task, wide())
    with pytest.raises(TaskError, match=f"cannot be taught as distill says: .*{reason}"):
        teaching_for(Train(distill=Distill(decoupled=(1.0, 1.0))), task, wide())


@pytest.mark.parametrize("phase", [Train(), Train(distill=Distill(temperature=2.0))])
def test_classes_on_another_axis_than_distill_says_are_refused(phase):
    def tokens():
        torch.manual_seed(0)
        return nn.Linear(6, 5)

    x = torch.randn(8, 7, 6)
    given = {
        "build": tokens, "weights": tokens().state_dict(), "train": [(x, torch.zeros(8, 7).long())],
        "loss": lambda output, batch: F.cross_entropy(output.flatten(0, 1), batch[1].flatten()),
    }  # fmt: skip
    asked = make_task(**given, teacher=make_task(**given))
    with pytest.raises(TaskError, match=r"int64 \(8, 7\) at 1.*distill.class_axis\): they fit class_axis: 2"):
        teaching_for(phase, asked, tokens())
    right = replace(phase, distill=replace(phase.distill, class_axis=-1))
    teaching, _ = teaching_for(right, asked, tokens())
    assert teaching is not None
    teaching.close()


def test_nobody_teaches_where_nobody_is_asked():
    assert teaching_for(Train(teacher="none"), make_task(), wide()) == (None, [])


def test_a_teacher_of_other_classes_is_an_error_with_both_shapes():
    def three():
        return nn.Linear(6, 3)

    teacher = make_task(name="three", build=three, weights=three().state_dict())
    task = replace(student_task(), teacher=teacher)
    with pytest.raises(TaskError, match=r"shape \(10, 3\), the student's \(10, 2\)"):
        teaching_for(Train(), task, narrow())
    spec = Distill(soft=0, layers=(Match(student="4", teacher="re:.*"),))
    with pytest.raises(
        TargetError, match=r"distill.layers: pattern 're:\.\*' matches no module of the teacher"
    ):
        teaching_for(Train(distill=spec), task, narrow())


def test_layers_alone_need_no_soft_targets():
    task = student_task(forward=lambda model, batch: {"y": model(batch[0])},
                        loss=lambda output, batch: F.cross_entropy(output["y"], batch[1]))  # fmt: skip
    phase = Train(distill=Distill(soft=0, hard=1.0, layers=LAYERS[:1]))
    _, records = taught(task, phase, trained_model(task))
    alone = fit(trained_model(task), task, phase, seed=3)
    assert records[0].loss > alone[0].loss


def test_hooks_are_gone_where_the_teaching_cannot_be():
    model = narrow()
    with pytest.raises(TargetError, match=r"distill.layers: .* 3 modules"):
        spec = Distill(layers=(Match(student="re:[012]", teacher="0"),))
        teaching_for(Train(distill=spec), student_task(), model)
    assert not any(one._forward_hooks for one in model.modules())
