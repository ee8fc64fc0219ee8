import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tersor.errors import TargetError
from tersor.spec import Match
from tersor.train.matching import (
    LayerTerms,
    adapter_for,
    attention_term,
    cosine_term,
    mse_term,
    pairs_of,
    same_extent,
    sides_of,
)
from tersor.train.watching import watch

TERMS = {"mse": mse_term, "cosine": cosine_term, "attention": attention_term}


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 4, 4, 4), (2, 5, 6)])
def test_what_is_alike_costs_nothing_and_what_is_not_does(term, shape):
    own = draw(0, *shape)
    assert abs(float(TERMS[term](own, own.clone()))) < 1e-6
    assert float(TERMS[term](own, draw(1, *shape))) > 0.01


@given(st.permutations(range(6)), st.floats(0.1, 10))
def test_attention_knows_no_order_and_no_number_of_channels_and_no_scale(order, scale):
    own, other = draw(0, 2, 6, 4, 4), draw(1, 2, 6, 4, 4)
    expected = attention_term(own, other)
    assert torch.allclose(attention_term(scale * own[:, list(order)], other), expected, atol=1e-5)
    doubled = torch.cat((own, own), 1)
    assert torch.allclose(attention_term(doubled, other), expected, atol=1e-5)


def test_attention_is_the_distance_of_normalized_sums_of_squares():
    own, other = draw(0, 2, 6, 4, 4), draw(1, 2, 3, 4, 4)
    maps = [(x**2).sum(1).flatten(1) for x in (own, other)]
    first, second = (one / one.norm(dim=1, keepdim=True) for one in maps)
    assert torch.allclose(attention_term(own, other), ((first - second).norm(dim=1) ** 2).mean())


@given(st.floats(0.1, 10))
def test_cosine_knows_no_length_and_runs_over_channels(scale):
    own, other = draw(0, 2, 5, 6), draw(1, 2, 5, 6)
    expected = 1 - ((own * other).sum(-1) / own.norm(dim=-1) / other.norm(dim=-1)).mean()
    assert torch.allclose(cosine_term(scale * own, other), expected, atol=1e-5)
    images = cosine_term(own.mT.unsqueeze(-1), other.mT.unsqueeze(-1))  # channels on axis 1
    assert torch.allclose(images, expected, atol=1e-5)


def test_larger_maps_are_averaged_to_the_smaller_whichever_side_they_are_on():
    own, other = draw(0, 2, 3, 8, 4), draw(1, 2, 3, 4, 8)
    first, second = same_extent(own, other)
    assert first.shape == second.shape == (2, 3, 4, 4)
    assert torch.allclose(first, own.unflatten(2, (4, 2)).mean(3))
    volume, _ = same_extent(draw(0, 2, 3, 4, 4, 4), draw(1, 2, 5, 2, 4, 4))
    assert volume.shape == (2, 3, 2, 4, 4)
    assert same_extent(own, own)[0] is own


@pytest.mark.parametrize(
    ("term", "own", "other", "kind"),
    [
        ("mse", (2, 3, 8, 8), (2, 5, 8, 8), nn.Conv2d),
        ("cosine", (2, 3, 4, 4, 4), (2, 5, 4, 4, 4), nn.Conv3d),
        ("mse", (2, 3), (2, 5), nn.Linear),
        ("cosine", (2, 7, 3), (2, 7, 5), nn.Linear),
        ("mse", (2, 3, 8, 8), (2, 3, 4, 4), nn.Identity),
        ("attention", (2, 3, 8, 8), (2, 5, 8, 8), nn.Identity),
        ("attention", (2, 7, 3), (2, 7, 5), nn.Identity),
    ],
)
def test_an_adapter_learns_only_where_channels_differ(term, own, other, kind):
    adapter = adapter_for(term, torch.zeros(own), torch.zeros(other))
    assert type(adapter) is kind
    assert torch.isfinite(TERMS[term](adapter(draw(0, *own)), draw(1, *other)))


@pytest.mark.parametrize(
    ("term", "own", "other", "reason"),
    [
        ("mse", (2, 3, 8, 8), (2, 192), "cannot be compared"),
        ("mse", (2, 3), (4, 3), "cannot be compared"),
        ("cosine", (2, 7, 3), (2, 9, 3), "differ in more than channels"),
        ("attention", (2, 7, 3), (2, 9, 3), "differ in more than channels"),
        ("attention", (2, 3), (2, 3), "attention needs some"),
    ],
)
def test_shapes_that_do_not_fit_are_told(term, own, other, reason):
    with pytest.raises(TargetError, match=reason) as told:
        adapter_for(term, torch.zeros(own), torch.zeros(other))
    assert str(own) in str(told.value)


def nets():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))
    return student, nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))


def watched(student, teacher, matches):
    sides = [sides_of(one, student, teacher) for one in matches]
    _, ours = watch(student, dict.fromkeys(path for one in sides for path in one.student))
    _, theirs = watch(teacher, dict.fromkeys(path for one in sides for path in one.teacher))
    x = draw(3, 5, 1, 8, 8)
    student(x), teacher(x)
    return sides, ours, theirs


def test_modules_are_paired_in_order_and_terms_weighted():
    student, teacher = nets()
    match = Match(student="re:[02]", teacher="re:[02]", term="attention", weight=3.0)
    (sides,), ours, theirs = watched(student, teacher, [match])
    pairs = pairs_of(sides, ours, theirs)
    assert [(one.student, one.teacher) for one in pairs] == [("0", "0"), ("2", "2")]
    expected = sum(3 * attention_term(ours.result(path), theirs.result(path)) for path in ("0", "2"))
    terms = LayerTerms(pairs, ours, theirs)
    assert torch.allclose(terms(), expected) and not list(terms.parameters())


def test_the_words_have_the_shapes_of_both_sides():
    student, teacher = nets()
    (sides,), ours, theirs = watched(student, teacher, [Match(student="0", teacher="0")])
    terms = LayerTerms(pairs_of(sides, ours, theirs), ours, theirs)
    assert terms.described() == [
        ("0", "(5, 2, 6, 6) ~ 0 (5, 4, 6, 6): mse, weight 1, through a learned adapter")
    ]
    terms().backward()
    assert all(one.grad is not None for one in (*terms.parameters(), *student[0].parameters()))
    assert all(one.grad is None for one in student[2].parameters())


def test_sides_of_different_numbers_are_listed_with_their_shapes():
    student, teacher = nets()
    (sides,), ours, theirs = watched(student, teacher, [Match(student="*", teacher="re:[02]")])
    with pytest.raises(TargetError) as told:
        pairs_of(sides, ours, theirs)
    text = str(told.value)
    assert "'*' matches 3 modules of the student (0 (5, 2, 6, 6), 1 (5, 2, 6, 6), 2 (5, 2, 4, 4))" in text
    assert "'re:[02]' 2 of the teacher (0 (5, 4, 6, 6), 2 (5, 3, 4, 4))" in text


def test_a_pair_that_cannot_be_compared_is_named():
    student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    teacher = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    (sides,), ours, theirs = watched(student, teacher, [Match(student="1", teacher="1")])
    with pytest.raises(TargetError, match=r"1 ~ 1: \(5, 72\) and \(5, 2, 6, 6\)"):
        LayerTerms(pairs_of(sides, ours, theirs), ours, theirs)
