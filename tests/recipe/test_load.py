import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import SpecError
from tersor.recipe import apply_sets, dump_recipe, load_recipe, parse_recipe, preset_names, preset_text
from tersor.recipe.load import MAX_BYTES
from tersor.spec import Cluster, Code, Distill, Prune, Recipe, Train

FULL = """
name: deep
description: all of it
steps:
  - prune: {fraction: 0.92, schedule: gradual, train: {epochs: 10, lr: 1e-3}, targets: ["*"],
            rules: [{match: conv1, fraction: 0.34}, {match: "re:^head", skip: true}]}
  - cluster: {bits: 5, train: {epochs: 5}, name: share}
  - code: {speed: small}
"""


def test_the_shape_of_the_file():
    recipe = parse_recipe(FULL)
    prune, cluster, code = recipe.steps
    assert isinstance(prune, Prune) and isinstance(cluster, Cluster) and code == Code()
    assert prune.train is not None and prune.train.lr == 1e-3 and prune.train.epochs == 10.0
    assert [rule.match for rule in prune.rules] == ["conv1", "re:^head"]
    assert cluster.name == "share"


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("1E3", 1e3), (".5", 0.5), ("+2", 2.0), ("1_0", None), ("1:30", None)],
)
def test_numbers_are_those_of_yaml_1_2(written, value):
    text = f"steps: [train: {{lr: {written}}}]"
    if value is None:
        with pytest.raises(SpecError, match=r"train\.lr"):
            parse_recipe(text)
    else:
        assert parse_recipe(text).steps[0].lr == value


def test_a_leading_zero_is_no_octal_and_no_is_a_word():
    recipe = parse_recipe("name: no\nsteps: [cluster: {clusters: 010}]")
    assert recipe.name == "no" and recipe.steps[0].clusters == 10
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing in it"),
        ("# only a comment", "nothing in it"),
        ("- a", "mapping"),
        ("steps:\n - code: {\n", "line 3"),
        ("steps: [code: {speed: fast, speed: small}]", "'speed' is given twice, first in line 1"),
        ("[a]: 1", "word"),
        ("name: &x {}\n<<: *x\nsteps: []", "<<"),
        ("a: 1\n---\nb: 1", "single document"),
        ("{" * 5000, "not YAML"),
        ("x: " + "9" * 6000, "not YAML"),
        ("a: \x01", "not text"),
        ("steps: [code: {speed: !!python/object/apply:os.getcwd []}]", "os.getcwd has no place"),
        ("steps: !!map [code]", "column 8: tag:yaml.org,2002:map has no place"),
        ("steps: [*code]", "undefined alias"),
    ],
)
def test_text_that_is_no_recipe(text, message):
    with pytest.raises(SpecError) as error:
        parse_recipe(text)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["no", "~", "1e-3", "010", "\x85", "\u2028", "\ufeff", "a\nb", " a ", "", "- #", "é"]
)
def test_a_string_stays_the_string_it_is(text):
    recipe = Recipe(name=text, description=text, steps=(Code(),))
    assert parse_recipe(dump_recipe(recipe)) == recipe


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab1:-{}[]!&*,'\"|>#\n \t"), max_size=30) | st.text(max_size=30))
def test_any_text_is_a_recipe_or_one_error(text):
    for whole in (text, f"steps: [code: {text}]"):
        try:
            parse_recipe(whole)
        except SpecError as error:
            assert str(error)


def test_files_that_are_no_recipe(tmp_path):
    binary = tmp_path / "model.bin"
    binary.write_bytes(b"\x80\x00\xff")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (MAX_BYTES + 1))
    empty = tmp_path / "empty.yaml"
    empty.touch()
    for path, message in [
        (tmp_path / "none.yaml", "neither a preset nor a file"),
        (tmp_path, "not a file"),
        (binary, "not text"),
        (big, "more than"),
        (empty, "nothing in it"),
    ]:
        with pytest.raises(SpecError, match=message) as error:
            load_recipe(path)
        assert str(error.value).startswith(str(path))


def test_an_unknown_name_suggests_a_preset():
    with pytest.raises(SpecError, match="Did you mean 'deep-compression'"):
        load_recipe("deep-compresion")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Cluster(bits=4), r"not a step: give Recipe\(steps=\(Cluster\(...\),\)\)"),
        ([Cluster(bits=4)], r"not a list: give Recipe\(steps="),
        (None, "not a NoneType"),
        ({"steps": []}, "not a dict"),
    ],
)
def test_what_is_given_in_the_place_of_a_recipe(source, message):
    with pytest.raises(SpecError, match=message):
        load_recipe(source)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FULL, "utf-8")
    assert load_recipe(path) == load_recipe(str(path)) == parse_recipe(FULL)


PRESETS = {
    "cluster", "cluster-int8", "cluster-tune", "deep-compression", "distill", "entropy", "int4-weights",
    "int8", "int8-dynamic", "int8-qat", "int8-transformer", "prune-cluster-int8", "prune-distill-cluster",
    "prune-iterative", "prune-structured",
}  # fmt: skip
TRAINED = {
    "cluster-tune", "deep-compression", "distill", "int8-qat", "prune-cluster-int8", "prune-distill-cluster",
    "prune-iterative", "prune-structured",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_load_and_explain_themselves(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert preset_text(name).startswith("#")
    trains = any(isinstance(step, Train) or getattr(step, "train", None) for step in recipe.steps)
    assert trains == (name in TRAINED)
    assert ("Takes training data" in recipe.description) == trains


def test_there_are_no_other_presets():
    assert preset_names() == tuple(sorted(PRESETS))
    with pytest.raises(SpecError, match="Did you mean 'cluster'"):
        preset_text("../cluster")


def test_sets_change_fields_and_nested_fields():
    recipe = load_recipe("deep-compression")
    changed = apply_sets(recipe, ["cluster.bits=3", "prune.train.lr=1e-4", "prune.targets=['fc*']"])
    assert changed.steps[1].bits == 3
    assert changed.steps[0].train.lr == 1e-4 and changed.steps[0].train.epochs == 10
    assert changed.steps[0].targets == ("fc*",)
    assert recipe == load_recipe("deep-compression")


def test_sets_find_a_step_by_its_own_name():
    recipe = parse_recipe(FULL)
    assert apply_sets(recipe, ["share.clusters=7"]).steps[1].clusters == 7
    with pytest.raises(SpecError, match="no step is named 'cluster'"):
        apply_sets(recipe, ["cluster.bits=3"])


def test_sets_swap_one_amount_for_another():
    recipe = load_recipe("deep-compression")
    changed = apply_sets(recipe, ["prune.schedule=one-shot", "prune.percentile=80", "cluster.clusters=5"])
    assert (changed.steps[0].fraction, changed.steps[0].percentile) == (None, 80)
    assert (changed.steps[1].bits, changed.steps[1].clusters) == (None, 5)


def test_sets_that_only_hold_together_come_in_any_order():
    sets = ["prune.count=5", "prune.schedule=one-shot"]
    recipe = load_recipe("deep-compression")
    assert apply_sets(recipe, sets) == apply_sets(recipe, sets[::-1])


def test_sets_reach_what_a_teacher_says():
    recipe = apply_sets(load_recipe("distill"), ["train.distill.temperature=2", "train.distill.soft=0.5"])
    assert recipe.steps[0].distill == Distill(temperature=2.0, soft=0.5)
    recipe = apply_sets(load_recipe("cluster-tune"), ["cluster.train.distill.hard=1", "cluster.train.lr=1"])
    assert recipe.steps[0].train.distill == Distill(hard=1.0) and recipe.steps[0].train.lr == 1
    off = apply_sets(load_recipe("cluster-tune"), ["cluster.train.teacher=none"])
    assert off.steps[0].train.teacher == "none"


def test_sets_add_and_take_away_a_train_phase():
    recipe = apply_sets(load_recipe("cluster"), ["cluster.train.epochs=2"])
    assert recipe.steps[0].train.epochs == 2
    assert apply_sets(recipe, ["cluster.train=null"]) == load_recipe("cluster")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bits=3", "STEP.FIELD=VALUE"),
        ("cluster.bits", "STEP.FIELD=VALUE"),
        ("cluster.bits=", "STEP.FIELD=VALUE"),
        ("clustr.bits=3", "Did you mean 'cluster'"),
        ("cluster.bitz=3", "Did you mean 'bits'"),
        ("cluster.train.epoch=3", "Did you mean 'epochs'"),
        ("cluster.bits=x", "integer"),
        ("cluster.bits=[", "not YAML"),
        ("cluster.rules.match=3", "no fields inside"),
        ("code.train.lr=3", "code has no such field"),
        ("cluster.train.train.lr=3", "no fields inside"),
        ("cluster.train.lr.x=3", "cluster.train.lr has no fields inside"),
        ("cluster.train.distill.temprature=3", "Did you mean 'temperature'"),
    ],
)
def test_a_wrong_set_is_named(text, message):
    with pytest.raises(SpecError, match="--set") as error:
        apply_sets(load_recipe("cluster-tune"), [text])
    assert message in str(error.value) and text in str(error.value)
