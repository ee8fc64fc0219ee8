from dataclasses import fields

import numpy as np
import pytest

from tersor.errors import SpecError
from tersor.spec import (
    AMOUNTS,
    SHRINK_AMOUNTS,
    STEPS,
    Cluster,
    Code,
    Distill,
    Fold,
    Match,
    Prune,
    Quantize,
    Recipe,
    Rule,
    Shrink,
    Train,
    replace_fields,
)


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (Cluster, {"bits": 4.5}, "bits is 4.5: it has to be a whole number"),
        (Cluster, {"bits": "4"}, "bits is '4': it has to be a whole number"),
        (Cluster, {"bits": True}, "bits is True: it has to be a whole number"),
        (Cluster, {"bits": 4, "reassign": 0.5}, "reassign is 0.5"),
        (Cluster, {"bits": 4, "axis": None}, "axis is None"),
        (Cluster, {"bits": 4, "keep_zero": 1}, "keep_zero is 1: it has to be True or False"),
        (Cluster, {"rate": float("nan")}, "rate is nan: it has to be a finite number"),
        (Prune, {"fraction": "0.5"}, "fraction is '0.5'"),
        (Prune, {"count": 3.0}, "count is 3.0"),
        (Prune, {"threshold": float("inf")}, "threshold is inf"),
        (Train, {"epochs": "3"}, "epochs is '3'"),
        (Train, {"lr": float("inf")}, "lr is inf"),
        (Train, {"teacher": "self"}, "teacher is 'self'. Known: original, none."),
        (Train, {"distill": {"temperature": 2}}, "distill is {'temperature': 2}: it has to be a Distill"),
        (Distill, {"temperature": "4"}, "temperature is '4'"),
        (Distill, {"hard": -1}, "hard is -1: it has to be 0 or more"),
        (Distill, {"labels": 1.5}, "labels is 1.5: it has to be an index or a key"),
        (Distill, {"decoupled": [1, 2]}, "decoupled is [1, 2]: it has to be two weights"),
        (Distill, {"decoupled": (1, float("inf"))}, "decoupled is (1, inf)"),
        (Distill, {"decoupled": (1, 2), "soft": 0}, "decoupled is (1, 2) with soft: 0"),
        (Distill, {"layers": (Train(),)}, "layers is (Train("),
        (Match, {"student": "", "teacher": "a"}, "student is '': it has to be a pattern"),
        (Match, {"student": "a", "teacher": "a", "term": "kl"}, "term is 'kl'. Known: mse, cosine"),
    ],
)
def test_what_is_no_number_is_told_where_it_is_given(spec, changes, message):
    with pytest.raises(SpecError) as error:
        spec(**changes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("kind", STEPS.values())
def test_numbers_of_the_right_kind_pass(kind):
    given = {Prune: {"count": 10**400}, Shrink: {"count": 10**400}, Cluster: {"rate": 1}}.get(kind, {})
    assert kind(**given) == replace_fields(kind(**given), given)
    assert Prune(fraction=np.float64(0.5)) == Prune(fraction=0.5)


@pytest.mark.parametrize("steps", [Cluster(bits=4), (Cluster(bits=4), "code"), "code", (Rule("a"),)])
def test_steps_that_are_none(steps):
    with pytest.raises(SpecError, match=r"has to be a tuple of steps, as in Recipe\(steps=\("):
        Recipe(steps=steps)
    assert Recipe(steps=(Code(),)).steps


def test_every_amount_is_a_field():
    assert set(AMOUNTS) <= {one.name for one in fields(Prune)}
    assert set(SHRINK_AMOUNTS) <= {one.name for one in fields(Shrink)}


def test_one_amount_takes_the_place_of_another():
    assert replace_fields(Shrink(macs=0.5), {"fraction": 0.3}) == Shrink(fraction=0.3)
    assert replace_fields(Shrink(count=3), {"macs": 0.3}) == Shrink(macs=0.3)
    assert replace_fields(Prune(count=3), {"fraction": 0.3}) == Prune(fraction=0.3)
    assert replace_fields(Prune(fraction=0.3), {"count": None}) == Prune(fraction=0.3)
    assert replace_fields(Shrink(macs=0.5), {"fraction": 0.3, "macs": None}) == Shrink(fraction=0.3)
    assert replace_fields(Cluster(bits=4), {"bits": None, "rate": 0.1}) == Cluster(rate=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_observers": 1.5, "learn_scales": False}, "freeze_observers is 1.5: it has to be a share"),
        ({"freeze_norms": -0.1}, "freeze_norms is -0.1: it has to be a share"),
        ({"freeze_norms": "half"}, "freeze_norms is 'half': it has to be a finite number"),
        ({"freeze_observers": 0.5, "learn_scales": False, "train": None}, "freeze_observers is 0.5 without"),
        ({"freeze_norms": 0.5, "train": None}, "freeze_norms is 0.5 without train"),
        ({"freeze_norms": 0.5, "activations": "dynamic"}, "freeze_norms is 0.5 with activations: dynamic"),
        ({"freeze_observers": 0.5}, "freeze_observers is 0.5 with learn_scales"),
        ({"freeze_observers": 0.5, "learn_scales": False, "activations": "dynamic"}, "activations: dynamic"),
        ({"freeze_observers": 0.5, "learn_scales": False, "activations": "none"}, "activations: none"),
    ],
)  # fmt: skip
def test_a_schedule_that_means_nothing_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        Quantize(**{"train": Train()} | changes)
    Quantize(train=Train(), learn_scales=False, freeze_observers=1, freeze_norms=1.0)


def test_norms_come_back_only_where_they_were_folded():
    step = Quantize(train=Train(), freeze_norms=0.5)
    with pytest.raises(SpecError, match="step 'quantize' has freeze_norms and no fold step before it"):
        Recipe(steps=(step, Fold()))
    assert Recipe(steps=(Fold(), step)).steps
