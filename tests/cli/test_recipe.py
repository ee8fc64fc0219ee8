import json

import pytest

from tersor.cli.app import run
from tersor.recipe import load_recipe, parse_recipe, preset_names, preset_text, recipe_from_dict


def test_list(capsys):
    assert run(["recipe", "list"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and all(name in err and load_recipe(name).description in err for name in preset_names())


def test_list_as_json(capsys):
    assert run(["recipe", "list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(preset_names())


def test_show_gives_a_recipe_with_its_comments(capsys):
    assert run(["recipe", "show", "deep-compression"]) == 0
    assert capsys.readouterr().out == preset_text("deep-compression")


def test_show_with_changes(capsys):
    assert run(["recipe", "show", "cluster", "--set", "cluster.bits=2"]) == 0
    assert parse_recipe(capsys.readouterr().out).steps[0].bits == 2
    assert run(["recipe", "show", "cluster", "--set", "cluster.bits=2", "--json"]) == 0
    assert recipe_from_dict(json.loads(capsys.readouterr().out)).steps[0].bits == 2


def test_validate(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nsteps: [cluster: {bits: 4}, code: ]")
    assert run(["recipe", "validate", str(path)]) == 0
    assert "mine, cluster -> code" in capsys.readouterr().err
    assert run(["recipe", "validate", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "valid": True,
        "name": "mine",
        "steps": ["cluster", "code"],
    }


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_wrong_recipe_is_exit_code_2_and_no_json(capsys, tmp_path, flags):
    path = tmp_path / "mine.yaml"
    path.write_text("steps: [cluster: {bitz: 4}]")
    assert run(["recipe", "validate", str(path), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "mine.yaml: steps[0].cluster.bitz = 4" in err and "'bits'" in err
    assert run(["recipe", "show", "clustre", *flags]) == 2
    assert "Did you mean 'cluster'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("targets: ['re:(']", "steps[0].cluster.targets[0]"),
        ("rules: [{match: 're:(', bits: 2}]", "steps[0].cluster.rules[0].match"),
        ("rules: [{match: fc}]", "changes nothing"),
    ],
)
def test_a_pattern_or_a_rule_that_cannot_be_meant(capsys, tmp_path, body, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"steps: [cluster: {{bits: 4, {body}}}]")
    assert run(["recipe", "validate", str(path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["prune", "shrink", "train", "distill", "match", "quantize", "code"])
def test_the_fields_of_a_step_are_told_with_their_defaults(capsys, kind):
    assert run(["recipe", "fields", kind, "--json"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert {"name", "type", "default"} == set(rows[0])
    assert all(row["name"] in err for row in rows)
    assert "``" not in err and ":func:" not in err and ">>>" not in err


def test_the_fields_of_what_is_no_step(capsys):
    assert run(["recipe", "fields", "shrnk"]) == 2
    assert "Did you mean 'shrink'?" in capsys.readouterr().err
