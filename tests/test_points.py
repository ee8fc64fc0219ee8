"""Where points are placed, on graphs written by hand."""

import pytest

from tersor.errors import VerificationError
from tersor.points import Operation, QuantPoint, label, place, placement_of, seen_by


def conv(name, x, y, weight=None):
    return Operation("conv", name, 0, (x,), y, (weight or f"{name}.weight",))


def residual():
    """x -> conv1 -> relu -> conv2 -> (+ relu's output) -> relu -> pool -> linear."""
    return [
        conv("conv1", "x", "c1"),
        Operation("relu", "", 0, ("c1",), "r1"),
        conv("conv2", "r1", "c2"),
        Operation("add", "", 0, ("r1", "c2"), "a"),
        Operation("relu", "", 1, ("a",), "r2"),
        Operation("max_pool", "", 0, ("r2",), "p"),
        Operation("move", "", 0, ("p",), "flat"),
        Operation("linear", "fc", 0, ("flat",), "y", ("fc.weight",)),
    ]


WEIGHTS = ["conv1.weight", "conv2.weight", "fc.weight"]


def test_a_residual_block_is_integer_from_end_to_end():
    placed = place(residual(), ["x"], WEIGHTS)
    assert placed.points == {
        "x": ("", "input", 0),
        "r1": ("", "relu", 0),
        "c2": ("conv2", "conv", 0),
        "r2": ("", "relu", 1),
    }
    assert placed.follows == {"p": "r2", "flat": "r2"}
    actions = {one.operation.output: one.action for one in placed.decisions}
    assert actions == dict.fromkeys(("c1", "r1", "c2", "a", "r2", "y"), "integer")


def test_the_last_addition_stays_float_and_says_why():
    operations = [*residual()[:5], Operation("mean", "", 0, ("r2",), "y")]
    placed = place(operations, ["x"], WEIGHTS)
    add = next(one for one in placed.decisions if one.operation.kind == "add")
    assert (add.action, add.reason) == ("float", "its result reaches no integer operation")
    assert "c2" in placed.points  # a convolution gives integers
    assert "r2" not in placed.points


def test_a_relu_that_others_bypass_is_not_fused():
    operations = [
        conv("conv1", "x", "c1"),
        Operation("relu", "", 0, ("c1",), "r1"),
        conv("conv2", "r1", "c2"),
        Operation("mul", "", 0, ("c1", "c2"), "m"),
    ]
    placed = place(operations, ["x"], WEIGHTS)
    assert set(placed.points) == {"x", "c1", "r1", "c2"}


def test_a_weight_that_is_not_quantized_keeps_its_layer_float():
    placed = place(residual(), ["x"], ["conv1.weight", "conv2.weight"])
    last = placed.decisions[-1]
    assert (last.operation.path, last.action) == ("fc", "float")
    assert "not quantized" in last.reason
    assert "r2" not in placed.points


def test_a_rule_by_module_path_covers_what_is_inside():
    operations = [conv("body.0.conv", "x", "c1"), conv("body.1", "c1", "c2")]
    placed = place(operations, ["x"], ["body.0.conv.weight", "body.1.weight"], {"body.0": "rule 'body.0'"})
    first, second = placed.decisions
    assert (first.action, first.reason) == ("weights only", "rule 'body.0'")
    assert second.action == "integer"
    assert set(placed.points) == {"c1", "c2"}


def test_recurrent_layers_keep_weights_only():
    lstm = Operation("lstm", "lstm", 0, ("x",), "h", ("lstm.weight_ih_l0",))
    placed = place([lstm], ["x"], ["lstm.weight_ih_l0"])
    assert placed.points == {}
    assert placed.decisions[0].action == "weights only"
    assert "recurrent" in placed.decisions[0].reason


def test_a_chain_of_additions_is_integer_when_its_end_is_read_by_a_layer():
    operations = [
        Operation("add", "", 0, ("x", "z"), "a"),
        Operation("add", "", 1, ("a", "z"), "b"),
        conv("conv1", "b", "c"),
    ]
    assert set(place(operations, ["x", "z"], WEIGHTS).points) == {"x", "z", "a", "b", "c"}


def test_a_bias_that_is_added_leaves_the_addition_float():
    operations = [Operation("add", "", 0, ("x",), "a", ("shift",)), conv("conv1", "a", "c")]
    placed = place(operations, ["x"], WEIGHTS)
    assert set(placed.points) == {"a", "c"}
    assert "constant" in placed.decisions[0].reason


@pytest.mark.parametrize(("bits", "signed", "low", "high"), [(8, False, 0, 255), (8, True, -128, 127),
                                                             (4, False, 0, 15)])  # fmt: skip
def test_bounds_of_a_point(bits, signed, low, high):
    point = QuantPoint("", "input", 0, bits=bits, signed=signed, scale=0.1)
    assert (point.low, point.high, point.dynamic) == (low, high, False)


def points(keys, scale=0.1):
    return [QuantPoint(*key, scale=scale) for key in keys]


def integer(placed):
    return {one.operation.output for one in placed.decisions if one.action == "integer"}


def test_a_placement_is_found_again_from_its_points():
    placed = place(residual(), ["x"], WEIGHTS)
    again = placement_of(residual(), ["x"], WEIGHTS, points(placed.points.values()))
    assert (dict(again.points), again.follows, integer(again)) == (
        dict(placed.points), placed.follows, integer(placed),
    )  # fmt: skip


def test_a_rule_that_left_an_addition_out_is_found_again():
    # The addition is in a module that a rule skips; its result feeds a layer all the same.
    operations = [
        conv("conv1", "x", "c1"),
        Operation("add", "block", 0, ("x", "c1"), "a"),
        conv("conv2", "a", "c2"),
    ]
    weights = ["conv1.weight", "conv2.weight"]
    placed = place(operations, ["x"], weights, {"block": "skipped"})
    again = placement_of(operations, ["x"], weights, points(placed.points.values()))
    assert dict(again.points) == dict(placed.points)
    assert integer(again) >= integer(placed)


def test_a_layer_without_points_keeps_its_weights_only():
    operations = [conv("conv1", "x", "c1"), conv("conv2", "x", "c2"), conv("conv3", "c2", "c3")]
    keys = [("", "input", 0), ("conv1", "conv", 0)]
    placed = placement_of(operations, ["x"], [f"conv{at}.weight" for at in (1, 2, 3)], points(keys))
    actions = [one.action for one in placed.decisions]
    assert actions == ["integer", "integer", "weights only"]


def test_a_weight_that_lost_its_codes_makes_a_layer_float_and_keeps_the_points():
    placed = place(residual(), ["x"], WEIGHTS)
    again = placement_of(residual(), ["x"], WEIGHTS[1:], points(placed.points.values()))
    assert dict(again.points) == dict(placed.points)
    assert integer(again) == integer(placed) - {"c1", "r1"}


def test_dynamic_points_are_not_followed():
    operations = [
        Operation("linear", "a", 0, ("x",), "y", ("a.weight",)),
        Operation("move", "", 0, ("x",), "turned"),
        Operation("linear", "b", 0, ("turned",), "z", ("b.weight",)),
    ]
    placed = place(operations, ["x"], ["a.weight", "b.weight"], dynamic=True)
    assert list(placed.points) == ["x", "turned"]
    again = placement_of(operations, ["x"], ["a.weight", "b.weight"], points(placed.points.values(), 0.0))
    assert (dict(again.points), again.follows) == (dict(placed.points), {})
    only = placement_of(operations, ["x"], ["a.weight", "b.weight"], points([("", "input", 0)], 0.0))
    assert only.follows == {} and integer(only) == {"y"}


def test_between_dynamic_points_only_linear_layers_are_integer():
    operations = [
        Operation("linear", "a", 0, ("x",), "y", ("a.weight",)),
        Operation("add", "", 0, ("x", "y"), "z"),
        Operation("linear", "b", 0, ("z",), "w", ("b.weight",)),
        Operation("linear", "", 0, ("z",), "v"),
    ]
    names = ["a.weight", "b.weight"]
    assert list(place(operations, ["x"], names, dynamic=True).points) == ["x", "z"]
    everywhere = [("", "input", 0), ("a", "linear", 0), ("", "add", 0)]
    placed = placement_of(operations, ["x"], names, points(everywhere, 0.0))
    assert integer(placed) == {"y", "w"}
    assert integer(placement_of(operations, ["x"], names, points(everywhere))) == {"y", "z", "w"}
    assert seen_by(operations, "z") == ("w",) and seen_by(operations, "x") == ("y",)


def test_a_point_that_the_graph_lacks_is_named():
    with pytest.raises(VerificationError, match=r"no value for the point conv3 \(conv\)"):
        placement_of(residual(), ["x"], WEIGHTS, points([("conv3", "conv", 0)]))


def test_a_computed_weight_or_a_quantized_bias_makes_no_integer_layer():
    computed = Operation("linear", "fc", 0, ("x", "w"), "y")
    biased = Operation("linear", "fc", 0, ("x",), "y", ("fc.weight", "fc.bias"))
    placed = [place([one], ["x"], ["fc.bias"]).decisions[0] for one in (computed, biased)]
    assert [one.action for one in placed] == ["float", "weights only"]
    assert "computed" in placed[0].reason and "not quantized" in placed[1].reason


def test_labels_tell_keys_apart():
    keys = [("", "input", 0), ("", "relu", 0), ("", "relu", 1), ("a", "relu", 0), ("a.b", "relu", 0)]
    assert len({label(key) for key in keys}) == len(keys)
