"""What a step that prunes may say, and what says nothing."""

import pytest

from tersor.errors import SpecError
from tersor.spec import AMOUNTS, WAYS, Prune, Train, replace_fields

TRAIN = Train()
CHANNEL = {"granularity": "channel", "fraction": 0.5}
ITERATIVE = {"schedule": "iterative", "fraction": 0.5, "train": TRAIN}


@pytest.mark.parametrize(
    "given",
    [
        {"fraction": 0}, {"fraction": 0.999}, {"count": 0}, {"threshold": 0.0}, {"percentile": 99},
        {"pattern": "2:4"}, {"pattern": "1:16", "importance": "taylor", "batches": 3}, {"mask": "m"},
        CHANNEL | {"axis": -1, "norm": "inf", "scope": "global"},
        CHANNEL | {"importance": "apoz"},
        {"fraction": 0.5, "granularity": "block", "block_size": (1, 8), "norm": 1, "importance": "magnitude"},
        {"count": 5, "importance": "random", "regrow": 0.3, "regrow_every": 10, "train": TRAIN},
        ITERATIVE | {"rounds": 9, "max_drop": 0, "rewind": True},
        ITERATIVE | {"importance": "activation", "granularity": "channel"},
        {"schedule": "linear", "fraction": 0.5, "train": TRAIN, "importance": "movement"},
        {"mask": "m.safetensors", "regrow": 0.3, "train": TRAIN},
    ],
)  # fmt: skip
def test_what_makes_sense(given):
    assert Prune(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of fraction, count, threshold, percentile, pattern, mask; given: none"),
        ({"fraction": 0.5, "pattern": "2:4"}, "given: fraction, pattern"),
        ({"fraction": 1.0}, r"fraction is 1.0: it has to be in \[0, 1\)"),
        ({"fraction": -0.1}, "fraction is -0.1"),
        ({"count": -1}, "count is -1: it has to be 0 or more"),
        ({"percentile": 100}, "percentile is 100"),
        ({"pattern": "4:2"}, "pattern is '4:2': it has to be N:M with N less than M"),
        ({"pattern": "4:4"}, "with N less than M"),
        ({"pattern": "0:4"}, "it has to be N:M"),
        ({"pattern": "2/4"}, "it has to be N:M"),
        ({"pattern": 204}, "it has to be N:M"),
        (
            {"pattern": "2:4", "granularity": "channel"},
            "granularity is 'channel' to no effect: a pattern says",
        ),
        ({"pattern": "2:4", "scope": "global"}, "scope is 'global' to no effect: a pattern says"),
        ({"mask": ""}, "mask is '': it has to be the path"),
        ({"mask": "m", "importance": "taylor"}, "importance is 'taylor' to no effect: a mask says"),
        ({"fraction": 0.5, "granularity": "block"}, "block_size is None: it has to be rows and columns"),
        ({"fraction": 0.5, "granularity": "block", "block_size": (4,)}, r"block_size is \(4,\)"),
        ({"fraction": 0.5, "granularity": "block", "block_size": (4, 0)}, r"block_size is \(4, 0\)"),
        ({"fraction": 0.5, "block_size": (4, 4)}, "block_size is .* and only a block has a size"),
        ({"fraction": 0.5, "axis": 1}, "axis is 1 to no effect: granularity is 'element'"),
        ({"fraction": 0.5, "norm": 1}, "norm is 1 to no effect"),
        (CHANNEL | {"norm": 1, "importance": "taylor"}, "norm is 1 to no effect"),
        (CHANNEL | {"norm": 0}, "norm is 0: it has to be more than 0, or 'inf'"),
        (CHANNEL | {"norm": "fro"}, "norm is 'fro'"),
        (CHANNEL | {"norm": True}, "norm is True"),
        ({"fraction": 0.5, "importance": "apoz"}, "importance is 'apoz' with granularity 'element'"),
        (CHANNEL | {"importance": "apoz", "axis": 1}, "axis 1: it ranks output channels"),
        ({"threshold": 0.5, "importance": "random"}, "importance is 'random' with a threshold"),
        ({"fraction": 0.5, "importance": "tailor"}, "Did you mean 'taylor'"),
        ({"fraction": 0.5, "granularity": "filter"}, "granularity is 'filter'"),
        ({"fraction": 0.5, "batches": 0}, "batches is 0: it has to be at least 1"),
        ({"fraction": 0.5, "schedule": "linear"}, "linear pruning takes a fraction and a train phase"),
        ({"count": 5, "schedule": "iterative", "train": TRAIN}, "iterative pruning takes a fraction and"),
        (
            CHANNEL | {"schedule": "gradual", "train": TRAIN, "importance": "apoz"},
            "which ranks while it trains",
        ),
        (ITERATIVE | {"fraction": 0.0}, "fraction is 0.0: it has to be more than 0"),
        (ITERATIVE | {"rounds": 0}, "rounds is 0: it has to be at least 1"),
        (ITERATIVE | {"max_drop": -0.1}, "max_drop is -0.1: it has to be 0 or more"),
        ({"fraction": 0.5, "rounds": 3}, "rounds is 3 to no effect: schedule is 'one-shot'"),
        ({"fraction": 0.5, "max_drop": 0.1}, "max_drop is 0.1 to no effect"),
        ({"fraction": 0.5, "rewind": True}, "rewind is True to no effect"),
        ({"fraction": 0.5, "regrow": 0.3}, "regrow is 0.3 without train"),
        ({"fraction": 0.5, "regrow": 1.0, "train": TRAIN}, r"regrow is 1.0: it has to be a share"),
        ({"fraction": 0.5, "regrow_every": 5}, "regrow_every is 5 to no effect"),
        ({"fraction": 0.5, "regrow": 0.3, "regrow_every": 0, "train": TRAIN}, "at least 1 step"),
        ({"pattern": "2:4", "regrow": 0.3, "train": TRAIN}, "regrow is 0.3 with .* pattern '2:4'"),
        (CHANNEL | {"regrow": 0.3, "train": TRAIN}, "only single weights grow"),
        (ITERATIVE | {"regrow": 0.3}, "regrow is 0.3 with schedule 'iterative'"),
    ],
)
def test_what_makes_none_is_told(given, message):
    with pytest.raises(SpecError, match=message):
        Prune(**given)


def test_one_way_to_say_what_goes_takes_the_place_of_another():
    assert set(AMOUNTS) < set(WAYS)
    step = replace_fields(Prune(fraction=0.5), {"pattern": "1:4"})
    assert (step.fraction, step.pattern, step.way, step.kept_of) == (None, "1:4", "pattern", (1, 4))
    assert replace_fields(step, {"percentile": 80}).way == "percentile"


def test_a_norm_is_a_number():
    assert Prune(**CHANNEL | {"norm": "inf"}).order == float("inf") and Prune(**CHANNEL).order == 2.0
