"""``tersor recipe``: the presets, and whether a file is a recipe."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, fields
from typing import Any

import click

from tersor.cli import console

_ROLE = re.compile(r":\w+:`~?([^`]+)`")  # of a docstring


@click.group()
def recipe() -> None:
    """List, show and check recipes."""


@recipe.command("list")
@click.option("--json", "as_json", is_flag=True, help="Names and descriptions as JSON on stdout.")
def list_recipes(as_json: bool) -> None:
    """List the presets."""
    with console.json_alone(as_json) as emit:
        from tersor.recipe import load_recipe, preset_names
        from tersor.report import Table

        found = [load_recipe(name) for name in preset_names()]
        rows = tuple((one.name, one.description) for one in found)
        console.show(Table("presets", ("name", "description"), rows, left=2))
        emit([{"name": one.name, "description": one.description} for one in found])


@recipe.command()
@click.argument("source", metavar="NAME|FILE")
@click.option("--set", "sets", multiple=True, metavar="STEP.FIELD=VALUE", help="Change it; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="The checked recipe as JSON on stdout.")
def show(source: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe as YAML on stdout, ready to be saved and changed."""
    with console.json_alone(as_json) as emit:
        from tersor.recipe import apply_sets, dump_recipe, load_recipe, recipe_text, recipe_to_dict

        found = apply_sets(load_recipe(source), sets)
        emit(recipe_to_dict(found))
        if not as_json:
            click.echo(dump_recipe(found) if sets else recipe_text(source)[1], nl=False)


@recipe.command("fields")
@click.argument("kind", metavar="STEP")
@click.option("--json", "as_json", is_flag=True, help="Name, type and default of each field as JSON.")
def show_fields(kind: str, as_json: bool) -> None:
    """Say what a kind of step does and what each of its fields means (prune, shrink, distill, ...)."""
    with console.json_alone(as_json) as emit:
        from tersor.errors import SpecError, did_you_mean
        from tersor.report import Table
        from tersor.spec import STEPS, Distill, Match

        kinds: dict[str, Any] = {**STEPS, Distill.kind: Distill, Match.kind: Match}
        if kind not in kinds:
            raise SpecError(f"{kind!r} is no kind of step.{did_you_mean(kind, kinds)}")
        rows = [
            (one.name, str(one.type), "-" if one.default is MISSING else repr(one.default))
            for one in fields(kinds[kind])
        ]
        text = (inspect.getdoc(kinds[kind]) or "").partition(">>>")[0].rstrip()
        console.say(_ROLE.sub(r"\1", text).replace("``", ""))
        console.show(Table(f"fields of {kind}", ("field", "type", "default"), tuple(rows), left=3))
        emit([dict(zip(("name", "type", "default"), row, strict=True)) for row in rows])


@recipe.command()
@click.argument("source", metavar="NAME|FILE")
@click.option("--json", "as_json", is_flag=True, help="Its name and steps as JSON on stdout.")
def validate(source: str, as_json: bool) -> None:
    """Check a recipe; exit code 2 and the path of the mistake if it is wrong."""
    with console.json_alone(as_json) as emit:
        from tersor.recipe import load_recipe

        found = load_recipe(source)
        steps = [step.name for step in found.steps]
        console.say(f"{source} is a recipe: {found.name}, {' -> '.join(steps)}")
        emit({"valid": True, "name": found.name, "steps": steps})
