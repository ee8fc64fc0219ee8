import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tersor.errors import TaskError
from tersor.measure.outputs import labels_of, logits_of
from tersor.spec import Distill
from tersor.train.distill import decoupled_terms, output_loss, soft_loss


def draw(seed, *shape, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 999), classes=st.integers(2, 9), temperature=st.floats(0.5, 8))
def test_soft_targets_are_kl_of_the_softened_outputs_times_the_square(seed, classes, temperature):
    student, teacher = draw(seed, 6, classes), draw(seed + 1, 6, classes)
    p = (teacher / temperature).softmax(1)
    expected = F.kl_div((student / temperature).log_softmax(1), p, reduction="batchmean") * temperature**2
    assert torch.allclose(soft_loss(student, teacher, temperature=temperature), expected, atol=1e-5)


def test_the_length_of_the_gradient_hardly_depends_on_the_temperature():
    lengths = []
    for temperature in (20.0, 80.0):
        student, teacher = draw(0, 8, 5, scale=1).requires_grad_(), draw(1, 8, 5, scale=1)
        soft_loss(student, teacher, temperature=temperature).backward()
        lengths.append(float(student.grad.norm()))
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)


def test_positions_count_like_samples_on_any_axis_of_classes():
    student, teacher = draw(0, 2, 5, 7), draw(1, 2, 5, 7)
    along = soft_loss(student, teacher, temperature=2.0, class_axis=-1)
    assert torch.allclose(along, soft_loss(student.reshape(10, 7), teacher.reshape(10, 7), temperature=2.0))
    moved = soft_loss(student.movedim(2, 1), teacher.movedim(2, 1), temperature=2.0)
    assert torch.allclose(along, moved)


def test_narrow_outputs_are_compared_in_float32():
    student, teacher = draw(0, 4, 5), draw(1, 4, 5)
    loss = soft_loss(student.bfloat16(), teacher, temperature=2.0)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, soft_loss(student.bfloat16().float(), teacher, temperature=2.0))


@given(seed=st.integers(0, 999), classes=st.integers(2, 9), temperature=st.floats(0.5, 8))
def test_kl_comes_apart_as_the_paper_says(seed, classes, temperature):
    student, teacher = draw(seed, 6, classes), draw(seed + 1, 6, classes)
    labels = torch.arange(6) % classes
    target, among, rest = decoupled_terms(student, teacher, labels, temperature=temperature)
    whole = soft_loss(student, teacher, temperature=temperature) / temperature**2
    assert torch.allclose((target + rest * among).mean(), whole, atol=1e-4)
    p = (teacher / temperature).softmax(1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(rest, 1 - p, atol=1e-5)
    assert (target >= -1e-5).all() and (among >= -1e-5).all()


def test_each_part_is_blind_to_the_other():
    teacher, labels = draw(0, 6, 5), torch.arange(6) % 5
    others = teacher.clone()
    others.scatter_add_(1, labels[:, None], torch.full((6, 1), 2.0))  # only the target's logit moves
    target, among, _ = decoupled_terms(others, teacher, labels, temperature=2.0)
    assert among.abs().max() < 1e-5 and target.min() > 1e-4


def test_gradients_of_decoupled_terms_are_finite_where_probabilities_vanish():
    student = torch.tensor([[80.0, -80.0, 0.0]], requires_grad=True)
    spec = Distill(decoupled=(1.0, 8.0), temperature=1.0)
    loss = output_loss(spec, student, torch.tensor([[-80.0, 80.0, 0.0]]), (None, torch.tensor([1])))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_decoupled_weights_mix_the_parts_and_negative_labels_do_not_count():
    student, teacher = draw(0, 4, 5), draw(1, 4, 5)
    labels = torch.tensor([3, -100, 0, 2])
    kept = labels >= 0
    spec = Distill(decoupled=(0.5, 3.0), temperature=2.0)
    target, among, _ = decoupled_terms(student[kept], teacher[kept], labels[kept], temperature=2.0)
    expected = 4 * (0.5 * target + 3 * among).mean()
    assert torch.allclose(output_loss(spec, student, teacher, (None, labels)), expected)


@pytest.mark.parametrize("ignored", [-100, 5, 255])
def test_a_label_that_is_no_class_does_not_count(ignored):
    student, teacher = draw(0, 4, 5), draw(1, 4, 5)
    spec = Distill(decoupled=(0.5, 3.0))
    labels = torch.tensor([3, 0, 2])
    expected = output_loss(spec, student[:3], teacher[:3], (None, labels))
    found = output_loss(spec, student, teacher, (None, torch.tensor([3, 0, 2, ignored])))
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("label", [0, 1, 4])
@pytest.mark.parametrize("gone", [[4], [1, 2, 3, 4]])
@pytest.mark.parametrize("both", [True, False])
def test_classes_that_a_teacher_rules_out_have_no_part(label, gone, both):
    student, teacher = draw(0, 2, 5), draw(1, 2, 5)
    teacher[:, gone] = float("-inf")
    if both:
        student[:, gone] = float("-inf")
    student.requires_grad_()
    labels = torch.full((2,), label)
    for spec in (Distill(), Distill(decoupled=(1.0, 8.0))):
        (slope,) = torch.autograd.grad(loss := output_loss(spec, student, teacher, (None, labels)), student)
        assert torch.isfinite(loss) and torch.isfinite(slope).all()
    if both and gone == [4]:
        without = soft_loss(student[:, :4], teacher[:, :4], temperature=4.0)
        assert torch.allclose(soft_loss(student, teacher, temperature=4.0), without)
        parts = [decoupled_terms(one, other, labels.clamp(max=3), temperature=4.0)
                 for one, other in ((student, teacher), (student[:, :4], teacher[:, :4]))]  # fmt: skip
        for one, other in zip(*parts, strict=True):
            assert torch.allclose(one, other)


def test_a_class_that_the_student_alone_rules_out_is_infinitely_wrong():
    student, teacher = draw(0, 2, 5), draw(1, 2, 5)
    student[:, 4] = float("-inf")
    assert torch.isinf(soft_loss(student, teacher, temperature=4.0))


def test_decoupled_without_labels_says_so():
    with pytest.raises(TaskError, match=r"decoupled needs the class of each sample.*no labels at 1"):
        output_loss(Distill(decoupled=(1.0, 8.0)), draw(0, 4, 5), draw(1, 4, 5), (draw(2, 4),))


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"loss": 1, "logits": x}, lambda x: SimpleNamespace(logits=x)]
)
def test_logits_are_the_output_or_in_it(wrap):
    logits = torch.zeros(4, 3)
    assert logits_of(wrap(logits), Distill()) is logits


@pytest.mark.parametrize(
    ("output", "spec", "reason"),
    [
        ({"boxes": torch.zeros(4, 3)}, Distill(), "dict without 'logits'"),
        ((torch.zeros(4, 3),), Distill(), "tuple without logits"),
        (torch.zeros(4, 3).long(), Distill(), "torch.int64, not a floating tensor"),
        ({"logits": [1.0]}, Distill(), "list, not a floating tensor"),
        (torch.zeros(4), Distill(), r"shape \(4,\), which has no axis 1"),
        (torch.zeros(4, 3), Distill(class_axis=2), "no axis 2"),
        (torch.zeros(4, 1), Distill(), "one class on axis 1"),
    ],
)
def test_what_is_no_output_of_a_classifier_is_told(output, spec, reason):
    found = logits_of(output, spec)
    assert isinstance(found, str) and re.search(reason, found)


@pytest.mark.parametrize(
    ("batch", "spec"),
    [
        ((None, torch.arange(4)), Distill()),
        ([torch.arange(4), None], Distill(labels=0)),
        ({"labels": torch.arange(4)}, Distill()),
        ({"labels": None, "target": torch.arange(4)}, Distill(labels="target")),
    ],
)
def test_labels_are_found_by_index_or_key(batch, spec):
    assert torch.equal(labels_of(batch, torch.zeros(4, 5), spec), torch.arange(4))


@pytest.mark.parametrize(
    ("batch", "logits", "reason"),
    [
        ((torch.zeros(4),), (4, 5), "no labels at 1"),
        ({"y": torch.arange(4)}, (4, 5), "no labels at 1"),
        ((None, torch.zeros(4, 5)), (4, 5), r"torch.float32 \(4, 5\) at 1, not one class for each of \(4,\)"),
        ((None, torch.zeros(4, 7).long()), (4, 7, 30), r"each of \(4, 30\)"),
        ((None, ["cat"] * 4), (4, 5), "list at 1"),
    ],
)
def test_labels_that_do_not_fit_are_told(batch, logits, reason):
    found = labels_of(batch, torch.zeros(logits), Distill())
    assert isinstance(found, str) and re.search(reason, found)
