from dataclasses import fields

import numpy as np
import pytest

from tersor.errors import SpecError
from tersor.spec import AMOUNTS, STEPS, Cluster, Code, Prune, Recipe, Rule, Train, replace_fields


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
    ],
)
def test_what_is_no_number_is_told_where_it_is_given(spec, changes, message):
    with pytest.raises(SpecError) as error:
        spec(**changes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("kind", STEPS.values())
def test_numbers_of_the_right_kind_pass(kind):
    given = {Prune: {"count": 10**400}, Cluster: {"rate": 1}}.get(kind, {})
    assert kind(**given) == replace_fields(kind(**given), given)
    assert Prune(fraction=np.float64(0.5)) == Prune(fraction=0.5)


@pytest.mark.parametrize("steps", [Cluster(bits=4), (Cluster(bits=4), "code"), "code", (Rule("a"),)])
def test_steps_that_are_none(steps):
    with pytest.raises(SpecError, match=r"has to be a tuple of steps, as in Recipe\(steps=\("):
        Recipe(steps=steps)
    assert Recipe(steps=(Code(),)).steps


def test_every_amount_is_a_field():
    assert set(AMOUNTS) <= {one.name for one in fields(Prune)}
