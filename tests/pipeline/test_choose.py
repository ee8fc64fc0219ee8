"""Which units go: the amounts of a step, met exactly or rounded towards keeping."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tersor import Shrink, TargetError
from tersor.model.coupling_rules import couple
from tersor.model.inputs import Inputs
from tersor.model.shrink import groups_of, macs
from tersor.pipeline.choose import choose, left_of, rank


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).eval()


@pytest.fixture
def coupling():
    return couple(net(), Inputs((torch.randn(2, 6),), {}, ((0,),), ((),)))


def left(coupling, scores=None, steps=None, **amount):
    groups = [one for one in groups_of(coupling) if len(one.units)]
    scores = torch.arange(100, dtype=torch.float64) if scores is None else scores
    steps = steps or [Shrink(**amount)] * len(groups)
    removed = choose(
        coupling, [rank(coupling, one, step, scores) for one, step in zip(groups, steps, strict=True)]
    )
    counts = left_of(coupling, removed)
    return [counts[name, 0][1] for name in ("0.weight", "2.weight")], removed


def test_amounts_within_each_layer(coupling):
    assert left(coupling, fraction=0.5)[0] == [10, 15]
    assert left(coupling, count=3)[0] == [17, 27]
    assert left(coupling, threshold=11)[0] == [10, 30]  # labels, and so scores, begin at 1
    assert left(coupling, percentile=50)[0] == [10, 15]


def test_the_least_important_go_first(coupling):
    assert sorted(left(coupling, fraction=0.1)[1].tolist()) == [1, 2, 21, 22, 23]
    scores = torch.arange(100, dtype=torch.float64).flip(0)
    assert sorted(left(coupling, scores, fraction=0.1)[1].tolist()) == [19, 20, 48, 49, 50]


def test_amounts_over_all_layers(coupling):
    scores = torch.ones(100, dtype=torch.float64)
    scores[1:11], scores[21:26] = 0.1, 0.2
    found = left(coupling, scores, count=12, scope="global", importance="fisher")[0]
    assert found == [10, 28]
    assert sum(left(coupling, fraction=0.3, scope="global")[0]) == 35


def test_a_layer_keeps_a_channel_and_multiples(coupling):
    assert left(coupling, threshold=1e9)[0] == [1, 1]
    assert left(coupling, fraction=0.5, round_to=8)[0] == [16, 16]
    assert left(coupling, fraction=0.05, round_to=8)[0] == [20, 30]
    assert left(coupling, fraction=0.5, round_to=64)[0] == [20, 30]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_multiply_accumulates_come_close_from_below(coupling, scope, round_to):
    whole = macs(coupling, torch.zeros(0, dtype=torch.int64))
    shares = []
    for wanted in (0.2, 0.5, 0.8):
        _, removed = left(coupling, macs=wanted, scope=scope, round_to=round_to)
        share = macs(coupling, removed) / whole
        assert wanted - 0.05 * round_to <= share <= wanted
        shares.append(share)
    assert shares == sorted(shares)


def test_what_rules_give_goes_before_the_rest_is_fitted(coupling):
    steps = [Shrink(fraction=0.9), Shrink(macs=0.5)]
    counts, removed = left(coupling, steps=steps)
    assert counts[0] == 2
    whole = macs(coupling, removed[:0])
    assert macs(coupling, removed) <= 0.5 * whole and counts[1] == 30  # nothing more had to go


def test_more_than_there_is(coupling):
    with pytest.raises(TargetError, match=r"count is 20: of the 20 units of 0\.weight at most 19"):
        left(coupling, count=20)
    with pytest.raises(
        TargetError, match=r"macs is 0\.001: .* 0\.013 .*at least 0\.014, or skip fewer layers"
    ):
        left(coupling, macs=0.001)
    assert left(coupling, macs=0.014)[0] == [1, 1]
    with pytest.raises(
        TargetError, match=r"at least 0\.\d+, or a smaller round_to: it is 8, and with 1 0\.01"
    ):
        left(coupling, macs=0.1, round_to=8)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("sizes", [(4, 16, 64, 48, 4), (32, 16, 16, 16, 40), (4, 16, 32, 64, 128, 4)])
def test_nothing_goes_that_need_not_go(scope, sizes):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(one, other) for one, other in pairwise(sizes))).eval()
    found = couple(net, Inputs((torch.randn(2, sizes[0]),), {}, ((0,),), ((),)))
    scores = torch.rand(1000, dtype=torch.float64)
    groups = [one for one in groups_of(found) if len(one.units)]
    none = torch.zeros(0, dtype=torch.int64)
    for wanted in (0.5, 0.6, 0.7, 0.8):
        step = Shrink(macs=wanted, scope=scope, round_to=8, importance="fisher")
        ranked = [rank(found, one, step, scores) for one in groups]
        removed = choose(found, ranked)
        assert macs(found, removed) <= wanted * macs(found, none)
        for one in ranked:
            gone = torch.isin(one.units, removed)
            if bool(gone.any()):
                more = removed[~torch.isin(removed, one.units[gone][-8:])]
                assert macs(found, more) > wanted * macs(found, none)


def test_global_norms_are_compared_by_their_mean_in_a_layer(coupling):
    scores = torch.ones(100, dtype=torch.float64)
    scores[1:21] *= 1000
    scores[1], scores[21] = 500, 0.6
    group = groups_of(coupling)[0]
    ranked = rank(coupling, group, Shrink(fraction=0.5, scope="global"), scores)
    assert np.isclose(ranked.scores.mean(), 1) and ranked.units[0] == 1
    assert sorted(left(coupling, scores, count=1, scope="global")[1].tolist()) == [1]
