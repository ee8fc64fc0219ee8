from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor import spec
from tersor.errors import SpecError
from tersor.recipe import dump_recipe, load_recipe, parse_recipe, recipe_from_dict, recipe_to_dict
from tersor.recipe.schema import WHOLE_STEP

names = st.from_regex(r"[A-Za-z0-9_é-]{1,12}", fullmatch=True)
finite = st.floats(0, 1e6, allow_nan=False)
shares = st.floats(0, 1, exclude_max=True)
patterns = st.lists(st.text(max_size=12), max_size=3).map(tuple)
weights = st.floats(0, 1e6, exclude_min=True)
layers = st.builds(
    spec.Match,
    student=st.text(min_size=1, max_size=8).map("x".__add__),
    teacher=st.text(min_size=1, max_size=8).map("x".__add__),
    term=st.sampled_from(["mse", "cosine", "attention"]),
    weight=weights,
)
distills = st.builds(
    spec.Distill,
    temperature=weights,
    soft=weights,
    hard=finite,
    decoupled=st.none() | st.tuples(finite, finite),
    labels=st.integers(-2, 3) | st.text(max_size=8),
    class_axis=st.integers(-3, 3),
    layers=st.lists(layers, max_size=2).map(tuple),
)
trains = st.builds(
    spec.Train,
    name=names,
    epochs=st.floats(1e-9, 1e6),
    lr=st.floats(1e-300, 10),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    weight_decay=finite,
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup=shares,
    clip_norm=st.none() | st.floats(1e-9, 1e6),
    distill=st.just(spec.Distill()) | distills,
)


def rules(**overrides):
    chosen = st.fixed_dictionaries({}, optional=overrides).filter(bool)
    changing = st.builds(spec.Rule, match=st.text(max_size=8), override=chosen)
    return st.lists(changing | st.builds(spec.Rule, match=st.text(), skip=st.just(True)), max_size=3).map(
        tuple
    )


prunes = st.builds(
    spec.Prune,
    name=names,
    targets=patterns,
    fraction=shares,
    rules=rules(fraction=shares),
    scope=st.sampled_from(["layer", "global"]),
    schedule=st.sampled_from(["one-shot", "gradual"]),
    train=trains,
)
shrinks = st.builds(
    spec.Shrink,
    name=names,
    targets=patterns,
    macs=st.floats(1e-9, 1, exclude_max=True),
    rules=rules(count=st.integers(1, 10**9)),
    scope=st.sampled_from(["layer", "global"]),
    importance=st.sampled_from(["l2", "l1", "norm_scale", "taylor", "fisher", "random"]),
    round_to=st.integers(1, 64),
    reestimate=st.integers(0, 100),
    train=st.none() | trains,
)
counted = st.builds(spec.Prune, name=names, count=st.integers(0, 10**30), train=st.none() | trains)
rounds = st.builds(
    spec.Prune,
    name=names,
    fraction=st.floats(0.01, 0.99),
    schedule=st.just("iterative"),
    rounds=st.integers(1, 99),
    max_drop=st.none() | shares,
    rewind=st.booleans(),
    train=trains,
)
structured = st.builds(
    spec.Prune,
    name=names,
    percentile=st.floats(0, 99),
    granularity=st.just("channel"),
    axis=st.integers(-3, 3),
    norm=st.just("inf") | st.floats(0.5, 9) | st.integers(1, 3),
    rules=rules(granularity=st.just("channel"), threshold=shares, axis=st.integers(-3, 3)),
)
blocks = st.builds(
    spec.Prune,
    name=names,
    pattern=st.none(),
    fraction=shares,
    granularity=st.just("block"),
    block_size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    importance=st.sampled_from(["magnitude", "random", "taylor", "fisher", "movement"]),
    batches=st.integers(1, 99),
)
patterned = st.builds(
    spec.Prune,
    name=names,
    pattern=st.sampled_from(["2:4", "1:4", "4:8"]),
    rules=rules(pattern=st.just("1:2")),
)
masked = st.builds(spec.Prune, name=names, mask=st.text(min_size=1, max_size=20))
pruning = prunes | counted | rounds | structured | blocks | patterned | masked
clusters = st.builds(
    spec.Cluster,
    name=names,
    targets=patterns,
    bits=st.integers(1, 16),
    rules=rules(bits=st.integers(1, 16), biases=st.booleans()),
    init=st.sampled_from(["optimal", "exact", "linear", "random", "density", "kmeans++"]),
    keep_zero=st.booleans(),
    axis=st.integers(-3, 3),
    train=st.none() | trains,
)
codes = st.builds(spec.Code, name=names, speed=st.sampled_from(["fast", "balanced", "small"]))
recipes = st.builds(
    spec.Recipe,
    name=st.text(max_size=20),
    description=st.text(max_size=40),
    steps=st.lists(
        pruning | shrinks | clusters | trains | codes,
        min_size=1,
        max_size=4,
        unique_by=lambda step: step.name,
    ).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(recipe=recipes)
def test_yaml_and_dataclasses_are_the_same_thing(recipe):
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert load_recipe(recipe) == recipe


def test_only_what_differs_from_the_defaults_is_written():
    recipe = spec.Recipe(steps=(spec.Cluster(bits=3, train=spec.Train(lr=0.5)), spec.Code()))
    assert recipe_to_dict(recipe) == {
        "steps": [{"cluster": {"bits": 3, "train": {"lr": 0.5}}}, {"code": {}}],
    }


def test_a_teacher_is_written_as_it_is_read():
    layers = [{"student": "block*", "teacher": "layer*", "term": "cosine"}]
    body = {"train": {"lr": 0.5, "distill": {"temperature": 2.0, "decoupled": [1.0, 8.0], "layers": layers}}}
    recipe = recipe_from_dict({"steps": [body, {"train": {"name": "alone", "teacher": "none"}}]})
    match = spec.Match(student="block*", teacher="layer*", term="cosine")
    assert recipe.steps[0].distill == spec.Distill(temperature=2.0, decoupled=(1.0, 8.0), layers=(match,))
    assert recipe_to_dict(recipe) == {
        "steps": [body, {"train": {"name": "alone", "teacher": "none"}}],
    }


def test_the_keys_of_a_rule_become_its_override():
    body = {"fraction": 0.9, "rules": [{"match": "conv1", "fraction": 0.3}, {"match": "re:^h", "skip": True}]}
    step = recipe_from_dict({"steps": [{"prune": body}]}).steps[0]
    assert step.rules == (spec.Rule("conv1", override={"fraction": 0.3}), spec.Rule("re:^h", skip=True))


def cluster(**fields):
    return {"steps": [{"cluster": {"bits": 4, **fields}}]}


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ([1], ["the recipe = [1]", "mapping"]),
        ({"stepz": []}, ["stepz = []", "'steps'"]),
        ({"name": "x"}, ["steps = None", "list of steps"]),
        ({"steps": []}, ["has no steps"]),
        ({"steps": ["code"]}, ["steps[0] = 'code'", "mapping"]),
        ({"steps": [{"prunr": {}}]}, ["steps[0].prunr", "'prune'"]),
        ({"steps": [{"code": {}, "prune": {}}]}, ["steps[0] = ", "one of prune, shrink, cluster"]),
        ({"steps": [{"code": {1: 2}}]}, ["steps[0].code = 1", "word"]),
        ({"steps": [{"code": {}}, {"code": {}}]}, ["two steps are named 'code'"]),
        ({"steps": [{"code": {"name": "a.b"}}]}, ["steps[0].code.name = 'a.b'", "--set"]),
        ({"steps": [{"prune": None}]}, ["steps[0].prune", "exactly one of"]),
        ({"steps": [{"prune": {"fraction": float("nan")}}]}, ["prune.fraction = nan", "finite"]),
        ({"name": 3, "steps": [{"code": None}]}, ["name = 3", "string"]),
        (cluster(bitz=3), ["steps[0].cluster.bitz = 3", "'bits'"]),
        (cluster(bits="4"), ["steps[0].cluster.bits = '4'", "integer"]),
        (cluster(bits=True), ["steps[0].cluster.bits = True", "integer"]),
        (cluster(bits=4.0), ["steps[0].cluster.bits = 4.0", "integer"]),
        (cluster(bits=17), ["steps[0].cluster: bits is 17", "1 to 16"]),
        (cluster(rate=True), ["cluster.rate = True", "number"]),
        (cluster(keep_zero=1), ["cluster.keep_zero = 1", "bool"]),
        (cluster(init="optimul"), ["cluster.init = 'optimul'", "'optimal'"]),
        (cluster(init=3), ["cluster.init = 3"]),
        (cluster(targets="conv*"), ["cluster.targets = 'conv*'", "list"]),
        (cluster(targets=["a", 3]), ["cluster.targets[1] = 3", "string"]),
        (cluster(train=3), ["cluster.train = 3", "mapping"]),
        (cluster(train={"epoch": 3}), ["cluster.train.epoch = 3", "'epochs'"]),
        (cluster(train={"lr": -1}), ["steps[0].cluster.train: lr is -1"]),
        (cluster(train={"momentum": -0.1}), ["cluster.train: momentum is -0.1", "0 or more"]),
        (cluster(train={"weight_decay": -1}), ["cluster.train: weight_decay is -1", "0 or more"]),
        (cluster(train={"clip_norm": 0}), ["cluster.train: clip_norm is 0", "more than 0"]),
        (cluster(train={"teacher": "nobody"}), ["cluster.train.teacher = 'nobody'", "original, none"]),
        (cluster(train={"teacher": None}), ["cluster.train.teacher = None"]),
        (cluster(train={"distil": {}}), ["cluster.train.distil = {}", "'distill'"]),
        (cluster(train={"distill": 3}), ["cluster.train.distill = 3", "mapping"]),
        (cluster(train={"distill": {"temprature": 2}}), ["train.distill.temprature = 2", "'temperature'"]),
        (cluster(train={"distill": {"temperature": 0}}), ["train.distill: temperature is 0", "more than 0"]),
        (cluster(train={"distill": {"decoupled": [1]}}), ["train.distill.decoupled", "(1,)"]),
        (cluster(train={"distill": {"decoupled": [1, -1]}}), ["train.distill: decoupled is (1.0, -1.0)"]),
        (cluster(train={"distill": {"soft": 0}}), ["train.distill: soft is 0", "teacher: none"]),
        (
            cluster(train={"distill": {"soft": 1}, "teacher": "none"}),
            ["cluster.train: distill", "teacher: none"],
        ),
        (cluster(train={"distill": {"layers": {}}}), ["distill.layers = {}", "list"]),
        (cluster(train={"distill": {"layers": ["a"]}}), ["distill.layers[0] = 'a'", "mapping"]),
        (cluster(train={"distill": {"layers": [{"student": "a"}]}}), ["layers[0] = ", "takes teacher"]),
        (
            cluster(train={"distill": {"layers": [{"student": "a", "teacher": "re:("}]}}),
            ["distill.layers[0].teacher", "'re:(' is no regular"],
        ),
        (
            cluster(train={"distill": {"layers": [{"student": "a", "teacher": "b", "term": "mes"}]}}),
            ["distill.layers[0].term = 'mes'", "'mse'"],
        ),
        (
            cluster(train={"distill": {"layers": [{"student": "a", "teacher": "b", "weight": 0}]}}),
            ["distill.layers[0]: weight is 0", "more than 0"],
        ),
        (cluster(rules={"match": "a"}), ["cluster.rules = ", "list"]),
        (cluster(rules=[{"skip": True}]), ["cluster.rules[0]", "takes match"]),
        (cluster(rules=[{"match": 3}]), ["rules[0].match = 3", "string"]),
        (cluster(rules=[{"match": "a", "skip": 1}]), ["rules[0].skip = 1", "bool"]),
        (cluster(rules=[{"match": "a", "skpi": True}]), ["rules[0].skpi = True", "'skip'"]),
        (cluster(rules=[{"match": "a", "bits": 99}]), ["cluster.rules[0]: bits is 99"]),
        (cluster(rules=[{"match": "a", "train": {}}]), ["rules[0].train", "whole step"]),
        (cluster(rules=[{"match": "a", "schedule": "gradual"}]), ["rules[0].schedule", "no such field"]),
        (cluster(rules=[{"match": "a", "skip": True, "bits": 3}]), ["rules[0]", "either skips"]),
        (cluster(rules=[{"match": "a"}]), ["cluster.rules[0]", "changes nothing"]),
        (cluster(rules=[{"match": "a", "skip": False}]), ["cluster.rules[0]", "changes nothing"]),
        (cluster(rules=[{"match": "re:(", "bits": 3}]), ["rules[0].match", "'re:(' is no regular"]),
        (cluster(targets=["a", "re:["]), ["cluster.targets[1]", "'re:[' is no regular expression"]),
    ],
)
def test_one_clear_error_with_path_value_and_what_to_do(data, parts):
    with pytest.raises(SpecError) as error:
        recipe_from_dict(data)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


def test_a_rule_may_say_an_amount_in_its_own_way():
    rule = {"match": "fc", "count": 5}
    step = recipe_from_dict({"steps": [{"prune": {"fraction": 0.5, "rules": [rule]}}]}).steps[0]
    assert spec.replace_fields(step, step.rules[0].override).count == 5


def test_a_recipe_made_in_python_is_checked_as_well():
    wrong = spec.Recipe(
        name="mine", steps=(spec.Cluster(bits=4, rules=(spec.Rule("a", override={"bitz": 1}),)),)
    )
    with pytest.raises(SpecError, match=r"recipe 'mine': steps\[0\].cluster.rules\[0\].bitz"):
        load_recipe(wrong)


WHOLE = [
    (
        spec.Prune(fraction=0.5),
        {
            "scope": "global",
            "schedule": "gradual",
            "begin": 0.1,
            "end": 0.5,
            "mask": "m.safetensors",
            "batches": 2,
            "rounds": 3,
            "max_drop": 0.1,
            "rewind": True,
            "regrow": 0.3,
            "regrow_every": 5,
        },
    ),
    (spec.Cluster(bits=4), {"reassign": 1, "fisher_batches": 2, "update": "mean"}),
    (spec.Smooth(), {"batches": 2}),
    (
        spec.Quantize(),
        {
            "batches": 2,
            "activations": "none",
            "calibrator": "max",
            "correct_bias": True,
            "learn_scales": False,
        },
    ),
]


@pytest.mark.parametrize(
    ("step", "field", "value"), [(step, *one) for step, fields in WHOLE for one in fields.items()]
)
def test_a_rule_cannot_change_what_is_one_for_the_whole_step(step, field, value):
    wrong = replace(step, rules=(spec.Rule("a", override={field: value}),))
    path = rf"steps\[0\].{step.kind}.rules\[0\].{field} = {value!r}: .*whole step"
    for load in (load_recipe, lambda recipe: recipe_from_dict(recipe_to_dict(recipe))):
        with pytest.raises(SpecError, match=path):
            load(spec.Recipe(steps=(wrong,)))


def test_every_field_is_of_the_whole_step_or_one_for_each_tensor():
    # A new field has to be sorted in: what a rule may say and no tensor reads would be ignored in silence.
    own = {
        spec.Smooth: {"alpha"},
        spec.Quantize: {"bits", "symmetric", "signed", "narrow", "power_of_two", "granularity", "axis",
                        "block_size", "scale", "percentile", "rounding", "activation_bits"},
        spec.Prune: {"fraction", "count", "threshold", "percentile", "pattern", "importance", "granularity",
                     "axis", "block_size", "norm"},
        spec.Cluster: {"bits", "clusters", "rate", "init", "granularity", "axis", "block_size", "keep_zero",
                       "biases", "importance"},
    }  # fmt: skip
    for kind, names in own.items():
        assert {field.name for field in fields(kind)} - set(WHOLE_STEP) == names


def test_a_percentile_in_a_rule_is_of_the_weights():
    def quantize(rule, **given):
        return recipe_from_dict({"steps": [{"quantize": {**given, "rules": [{"match": "a", **rule}]}}]})

    for whole, rule in (({}, {"scale": "percentile"}), ({"scale": "percentile"}, {})):
        step = quantize({"percentile": 99.0} | rule, **whole).steps[0]
        assert spec.replace_fields(step, step.rules[0].override).percentile == 99.0
    for whole, rule in (({}, {}), ({"scale": "percentile"}, {"scale": "mse"})):
        with pytest.raises(SpecError, match=r"rules\[0\].percentile = 99.0: .* whole step.* by '(max|mse)'"):
            quantize({"percentile": 99.0} | rule, **whole)


def test_a_huge_or_endless_value_is_shortened():
    endless: list = []
    endless.append(endless)
    for value in (endless, ["x" * 10_000] * 10_000):
        with pytest.raises(SpecError) as error:
            recipe_from_dict(cluster(bits=value))
        assert len(str(error.value)) < 500
